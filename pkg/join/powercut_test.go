package join

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/cairn-os/cairn/pkg/atomicfile"
	"github.com/cairn-os/cairn/pkg/membership"
	"github.com/cairn-os/cairn/pkg/pki"
	"github.com/cairn-os/cairn/pkg/token"
)

var errCut = errors.New("power cut")

// cutAt cuts the power at the n-th write, before it took effect or, if late, after it. A late cut leaves what the next
// early one does, except at the last write.
func cutAt(n int, late bool) writeFile {
	return func(path string, data []byte, mode fs.FileMode) error {
		n--
		if n < 0 && !(late && n == -1) {
			return errCut
		}
		if err := atomicfile.Write(path, data, mode); err != nil {
			return err
		}
		if n < 0 {
			return errCut
		}
		return nil
	}
}

// TestPowerCuts cuts the power at each write of each way into a cluster. The next Run completes it with the identity of
// the first.
func TestPowerCuts(t *testing.T) {
	c := newCluster(t)
	once, _ := c.create(TokenRequest{Role: "server", Once: true})
	for _, tt := range []struct {
		name  string
		role  membership.Role
		token string
		found bool
		late  bool
	}{
		{"agent", membership.Agent, c.token(token.Agent), false, false},
		{"agent-late", membership.Agent, c.token(token.Agent), false, true},
		{"witness", membership.Witness, c.token(token.Server), false, true},
		{"server", membership.Server, once, false, false},
		{"first", membership.Server, "", true, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cuts := 0
			for n := 0; ; n++ {
				name := fmt.Sprintf("%s-%d", tt.name, n)
				if tt.token == once {
					tt.token, _ = c.create(TokenRequest{Role: "server", Once: true})
					once = tt.token
				}
				o, _ := c.machine(tt.role, name, tt.token)
				o.Addresses = []netip.Addr{netip.AddrFrom4([4]byte{198, 51, 100, byte(n)})}
				if tt.found {
					o.ServerURL = ""
				}
				o.write = cutAt(n, tt.late)
				if tt.role == membership.Agent {
					o.ObtainNode = c.obtain(&o)
				}
				err := run(t, o)
				if err == nil {
					break
				}
				if !errors.Is(err, errCut) {
					t.Fatalf("cut %d: %v", n, err)
				}
				cuts++
				identity, _ := Identity(o.Dir)
				if _, err := os.Stat(o.membershipFile()); err == nil && lackingAny(t, o) {
					t.Errorf("cut %d: a membership without all files", n)
				}
				o.write = nil
				m := mustRun(t, o)
				if m.Node != name || lackingAny(t, o) {
					t.Errorf("cut %d: files %v", n, files(t, o.Dir))
				}
				if identity != "" && identity != identityOf(t, o) {
					t.Errorf("cut %d: the identity changed", n)
				}
			}
			if cuts < 5 {
				t.Errorf("%d cuts; want one at each write", cuts)
			}
		})
	}
}

// lackingAny reports whether a file lacks that the role needs.
func lackingAny(t *testing.T, o Options) bool {
	t.Helper()
	if o.lacking(o.Role) != "" {
		return true
	}
	for _, name := range ownFiles(o.Role) {
		if _, err := loadLeaf(o.path(name)); err != nil {
			return true
		}
	}
	if o.Role != membership.Server {
		return false
	}
	_, err := loadLeaf(pki.PairFile(o.path(serverTLS), pki.APIServer))
	return err != nil
}

// TestChangeOfCluster begins to join one cluster and ends in another: nothing of the first stays.
func TestChangeOfCluster(t *testing.T) {
	c, other := newCluster(t), newCluster(t)
	for _, role := range []membership.Role{membership.Agent, membership.Server} {
		o, _ := c.machine(role, "moving", c.token(token.Server))
		writes := 0
		o.write = func(path string, data []byte, mode fs.FileMode) error {
			if filepath.Base(path) == "membership.json" {
				return errCut // all else is there
			}
			writes++
			return atomicfile.Write(path, data, mode)
		}
		if role == membership.Agent {
			o.ObtainNode = c.obtain(&o)
		}
		if err := run(t, o); !errors.Is(err, errCut) || writes < 5 {
			t.Fatalf("Run = %v after %d writes; want the cut at the last", err, writes)
		}
		to, _ := other.machine(role, "moving", other.token(token.Server))
		dir := o.Dir
		o = to
		o.Dir = dir
		if role == membership.Agent {
			o.ObtainNode = other.obtain(&o)
		}
		mustRun(t, o)
		for _, f := range filesFor(role) {
			want, err := os.ReadFile(filepath.Join(other.dir, "server/tls", f.name))
			if f.name == encryptionName {
				want, err = os.ReadFile(filepath.Join(other.dir, serverDir, f.name))
			}
			if err != nil {
				t.Fatal(err)
			}
			have, err := os.ReadFile(o.path(f.dir, f.name))
			if err != nil || string(have) != string(want) {
				t.Errorf("%s: %s is not the second cluster's: %v", role, f.name, err)
			}
		}
		for name, file := range map[string]string{pki.KubeletClient: pki.ClientCA, pki.KubeletServer: pki.KubeletCA} {
			dir := nodeTLS
			if role == membership.Server {
				dir = serverTLS
			}
			leaf, err := loadLeaf(pki.PairFile(o.path(dir), name))
			if err != nil {
				t.Fatal(err)
			}
			if ca, err := loadLeaf(pki.PairFile(other.dir+"/server/tls", file)); err != nil || leaf.CheckSignatureFrom(ca) != nil {
				t.Errorf("%s: %s is signed by the first cluster: %v", role, name, err)
			}
		}
		if err := Forget(t.Context(), other.client, "moving"); err != nil {
			t.Fatal(err)
		}
		if err := Forget(t.Context(), c.client, "moving"); err != nil {
			t.Fatal(err)
		}
	}
}
