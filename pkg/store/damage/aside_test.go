package damage

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// damaged makes a damaged member's directory.
func damaged(t *testing.T, dir string) Report {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, data := range base(map[string][]byte{"metadata2": nil}) {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r, err := Inspect(dir)
	if err != nil || !r.Damaged() {
		t.Fatalf("the directory is not damaged: %v, %v", r, err)
	}
	return r
}

func TestSetAside(t *testing.T) {
	store := t.TempDir()
	dir, aside := filepath.Join(store, "member"), filepath.Join(store, "damaged")
	var paths []string
	for range 4 {
		path, err := SetAside(damaged(t, dir), aside)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(dir); !os.IsNotExist(err) {
			t.Fatalf("the member's directory after it was set aside: %v", err)
		}
		paths = append(paths, filepath.Base(path))
	}
	if diff := cmp.Diff([]string{"0001-metadata", "0002-metadata", "0003-metadata", "0004-metadata"}, paths); diff != "" {
		t.Errorf("set aside as (-want +got):\n%s", diff)
	}
	sets, err := Sets(aside)
	if err != nil || len(sets) != KeepSets || sets[1].Number != 4 {
		t.Errorf("sets = %v, %v; want the newest %d", sets, err, KeepSets)
	}
	text, err := os.ReadFile(filepath.Join(aside, "0004-metadata", reportFile))
	if err != nil || !strings.Contains(string(text), "metadata2: missing") {
		t.Errorf("report: %v\n%s", err, text)
	}
	// What was set aside can be inspected as it was.
	if r, err := Inspect(filepath.Join(aside, "0004-metadata")); err != nil || r.Reason() != Metadata || len(r.Findings) != 1 {
		t.Errorf("the directory set aside: %v, %v", r, err)
	}
	removed, err := Prune(aside, 1)
	if err != nil || len(removed) != 1 || removed[0].Number != 3 {
		t.Errorf("Prune to 1 removed %v, %v; want number 3", removed, err)
	}
	if _, err := SetAside(inspect(t, base(nil)), aside); err == nil {
		t.Error("a directory in good order is set aside")
	}
}

// TestSetAsideAfterPowerCut finds a report that was written before the rename
// was lost.
func TestSetAsideAfterPowerCut(t *testing.T) {
	store := t.TempDir()
	dir := filepath.Join(store, "member")
	damaged(t, dir)
	if err := os.WriteFile(filepath.Join(dir, reportFile), []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := Inspect(dir)
	if err != nil || len(r.Findings) != 1 {
		t.Fatalf("%v, %v; want the damage alone", r, err)
	}
	path, err := SetAside(r, filepath.Join(store, "damaged"))
	if err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(filepath.Join(path, reportFile)); err != nil || string(text) == "old" {
		t.Errorf("report %q, %v; want a new one", text, err)
	}
}

func TestRefusal(t *testing.T) {
	r := damaged(t, filepath.Join(t.TempDir(), "member"))
	err := Refusal(r, "/var/lib/cairn/store/snapshots/7.db")
	if !errors.Is(err, ErrDamaged) {
		t.Errorf("%v is not ErrDamaged", err)
	}
	for _, want := range []string{"metadata2", "kept in place", "`cairnctl store restore /var/lib/cairn/store/snapshots/7.db`"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("refusal does not say %q: %v", want, err)
		}
	}
	if err := Refusal(r, ""); !strings.Contains(err.Error(), "there is no snapshot") {
		t.Errorf("refusal without a snapshot: %v", err)
	}
	if err := Refusal(inspect(t, base(nil)), ""); err != nil {
		t.Errorf("refusal of a directory in good order: %v", err)
	}
}
