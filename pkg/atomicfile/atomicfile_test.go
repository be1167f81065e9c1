package atomicfile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}

func TestWrite(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	for _, content := range []string{"one", "", "a longer two"} {
		if err := Write(path, []byte(content), 0o640); err != nil {
			t.Fatal(err)
		}
		if got := read(t, path); got != content {
			t.Errorf("content = %q; want %q", got, content)
		}
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode() != 0o640 {
		t.Errorf("mode = %v; want 0640 whatever the umask", info.Mode())
	}
	if diff := cmp.Diff([]string{"f"}, names(t, dir)); diff != "" {
		t.Error(diff)
	}
}

func TestWriteReplacesLink(t *testing.T) {
	dir := t.TempDir()
	target, link := filepath.Join(dir, "target"), filepath.Join(dir, "link")
	if err := os.WriteFile(target, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(target, link); err != nil {
		t.Fatal(err)
	}
	if err := Write(link, []byte("new"), 0o600); err != nil {
		t.Fatal(err)
	}
	if read(t, target) != "old" || read(t, link) != "new" {
		t.Error("Write followed a symbolic link")
	}
}

func TestOwnerAndSetuid(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: changes an owner")
	}
	path := filepath.Join(t.TempDir(), "f")
	if err := WriteOptions(path, nil, Options{Perm: 0o755 | fs.ModeSetuid, Chown: true, UID: 7, GID: 8}); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	st := info.Sys().(*syscall.Stat_t)
	if st.Uid != 7 || st.Gid != 8 || info.Mode() != 0o755|fs.ModeSetuid {
		t.Errorf("owner %d:%d mode %v; want 7:8 u+s", st.Uid, st.Gid, info.Mode())
	}
}

// TestFailure fails every step in turn and looks at what a reader finds.
func TestFailure(t *testing.T) {
	boom := errors.New("boom")
	for _, step := range []string{"create", "write", "chown", "chmod", "flush", "rename", "flush directory"} {
		t.Run(step, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "f")
			if err := Write(path, []byte("old"), 0o600); err != nil {
				t.Fatal(err)
			}
			failed := false
			s := steps{before: func(at string) error {
				if at == step {
					failed = true
					return boom
				}
				return nil
			}}
			err := write(s, path, []byte("new"), Options{Perm: 0o600, Chown: true, UID: os.Getuid(), GID: os.Getgid()})
			if !errors.Is(err, boom) || !failed {
				t.Fatalf("error = %v; want that of step %s", err, step)
			}
			want, durable := "old", true
			if step == "flush directory" {
				want, durable = "new", false
			}
			if got := read(t, path); got != want {
				t.Errorf("content = %q; want %q", got, want)
			}
			if errors.Is(err, ErrNotDurable) == durable {
				t.Errorf("error %v; ErrNotDurable wanted: %v", err, !durable)
			}
			if diff := cmp.Diff([]string{"f"}, names(t, dir)); diff != "" {
				t.Error("left behind:", diff)
			}
		})
	}
}

func TestMissingDirectory(t *testing.T) {
	err := Write(filepath.Join(t.TempDir(), "no", "f"), nil, 0o600)
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error = %v; want one that wraps fs.ErrNotExist", err)
	}
}
