package membership

import (
	"os"
	"path/filepath"
	"testing"
)

func TestRoleOf(t *testing.T) {
	path := filepath.Join(t.TempDir(), "membership.json")
	if got := RoleOf(path, Agent); got != Agent {
		t.Errorf("RoleOf before joining = %s; want what is configured, agent", got)
	}
	m := &Membership{Role: Server, Node: "shop-1", Founded: true, Settings: DefaultSettings()}
	if err := m.Save(path); err != nil {
		t.Fatal(err)
	}
	if got := RoleOf(path, Agent); got != Server {
		t.Errorf("RoleOf a server whose configuration says agent = %s; want server", got)
	}
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := RoleOf(path, Witness); got != Witness {
		t.Errorf("RoleOf a damaged membership = %s; want what is configured, witness", got)
	}
}
