package member

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestIdentityIsWrittenOnce(t *testing.T) {
	dir := t.TempDir()
	first, err := loadIdentity(dir, false)
	if err != nil {
		t.Fatal(err)
	}
	if first.ID != BootstrapID || first.Address == "" {
		t.Errorf("identity of a new directory = %+v; want the bootstrap id and an address", first)
	}
	info, err := os.Stat(filepath.Join(dir, identityFile))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("identity file: %v, %v; want mode 0600", info, err)
	}
	again, err := loadIdentity(dir, false)
	if err != nil || again != first {
		t.Errorf("second load = %+v, %v; want %+v", again, err, first)
	}
}

func TestIdentityMissingBesideData(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "metadata1"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if id, err := loadIdentity(dir, false); err == nil || !strings.Contains(err.Error(), "not empty") {
		t.Errorf("identity of a directory with data and no identity = %+v, %v; want an error that says so", id, err)
	}
}

// TestIdentityAfterPowerCut starts anew where the first attempt got no further
// than its temporary file.
func TestIdentityAfterPowerCut(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, ".tmp-123"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := loadIdentity(dir, false); err != nil {
		t.Errorf("identity beside a temporary file: %v; want a new one", err)
	}
}

func TestIdentityDamaged(t *testing.T) {
	for _, content := range []string{"", "{", "{}", `{"id":1}`, `{"address":"a"}`, `{"id":1,"address":"a"}`, `{"id":-1,"address":"a"}`, "null", "\x00\x00"} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, identityFile), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if id, err := loadIdentity(dir, false); err == nil {
			t.Errorf("identity %q = %+v; want an error", content, id)
		}
	}
}

func FuzzIdentity(f *testing.F) {
	f.Add([]byte(`{"id":1,"address":"member-0000000000000001"}`))
	f.Add([]byte(`{"id":18446744073709551616}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		id, err := parseIdentity("x", data)
		if err == nil && (id.ID == 0 || id.Address == "") {
			t.Errorf("parseIdentity(%q) = %+v without an error", data, id)
		}
	})
}
