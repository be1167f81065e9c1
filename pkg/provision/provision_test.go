package provision

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-os/cairn/pkg/config"
)

func newRoot(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	put(t, filepath.Join(root, "etc/passwd"), "root:x:0:0:root:/root:/bin/sh\ntill:x:1000:1001::/home/till:/bin/sh\n")
	put(t, filepath.Join(root, "etc/group"), "root:x:0:\nadm:x:4:till\n")
	return root
}

func put(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, elem ...string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(elem...))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: changes owners")
	}
}

func TestWriteFiles(t *testing.T) {
	needRoot(t)
	root := newRoot(t)
	files := []config.File{
		{Path: "/etc/motd", Content: "one"},
		{Path: "/a/b/c", Content: "aGVsbG8=", Encoding: "b64", Owner: "till:adm", Permissions: "04750"},
		{Path: "/etc/motd", Content: "two", Owner: "till", Permissions: "0600"},
		{Path: "/etc/n", Owner: "77:88"},
		{Path: "/etc/m", Owner: "77"},
	}
	for range 2 {
		if err := WriteFiles(root, files); err != nil {
			t.Fatal(err)
		}
		for _, want := range []struct {
			path, content string
			mode          fs.FileMode
			uid, gid      uint32
		}{
			{"etc/motd", "two", 0o600, 1000, 1001},
			{"a/b/c", "hello", 0o750 | fs.ModeSetuid, 1000, 4},
			{"etc/n", "", 0o644, 77, 88},
			{"etc/m", "", 0o644, 77, 0},
		} {
			info, err := os.Stat(filepath.Join(root, want.path))
			if err != nil {
				t.Fatal(err)
			}
			st := info.Sys().(*syscall.Stat_t)
			if got := read(t, root, want.path); got != want.content || info.Mode() != want.mode || st.Uid != want.uid || st.Gid != want.gid {
				t.Errorf("%s: %q %v %d:%d; want %v", want.path, got, info.Mode(), st.Uid, st.Gid, want)
			}
		}
	}
	for _, dir := range []string{"a", "a/b"} {
		if info, err := os.Stat(filepath.Join(root, dir)); err != nil || info.Mode().Perm() != 0o755 {
			t.Errorf("%s: %v %v; want 0755", dir, info, err)
		}
	}
}

func TestWriteFilesErrors(t *testing.T) {
	needRoot(t)
	root := newRoot(t)
	err := WriteFiles(root, []config.File{
		{Path: "/etc/a", Owner: "nobody"},
		{Path: "/etc/b", Owner: "root:nogroup"},
		{Path: "/etc/passwd/x"},
		{Path: "/etc/c", Content: "hunter2", Encoding: "gz"},
		{Path: "/etc/d", Content: "fine"},
	})
	want := `write_files /etc/a: owner: no user nobody
write_files /etc/b: owner: no group nogroup
write_files /etc/passwd/x: ` + root + `/etc/passwd is not a directory
write_files /etc/c: not gzip, as encoding says`
	if err == nil || err.Error() != want {
		t.Errorf("error = %v\nwant %s", err, want)
	}
	if got := read(t, root, "etc/d"); got != "fine" {
		t.Errorf("the file after the bad ones holds %q", got)
	}
	for _, name := range []string{"a", "b", "c"} {
		if _, err := os.Lstat(filepath.Join(root, "etc", name)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v; want none", name, err)
		}
	}
}

func TestSSHKeys(t *testing.T) {
	root := newRoot(t)
	path := filepath.Join(root, "root/.ssh/authorized_keys")
	for _, tt := range []struct {
		keys []string
		want string
	}{
		{[]string{"ssh-ed25519 A a", " ssh-ed25519 B b\n"}, "ssh-ed25519 A a\nssh-ed25519 B b\n"},
		{[]string{"ssh-ed25519 B b"}, "ssh-ed25519 B b\n"},
	} {
		if err := SSHKeys(root, tt.keys); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(tt.want, read(t, path)); diff != "" {
			t.Error(diff)
		}
		for p, want := range map[string]fs.FileMode{path: 0o600, filepath.Dir(path): 0o700 | fs.ModeDir} {
			if info, err := os.Stat(p); err != nil || info.Mode() != want {
				t.Errorf("%s: %v, %v; want %v", p, info.Mode(), err, want)
			}
		}
	}
	for range 2 {
		if err := SSHKeys(root, nil); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("keys remain: %v", err)
		}
	}
}

func TestEnvironment(t *testing.T) {
	root := newRoot(t)
	path := filepath.Join(root, "etc/environment")
	put(t, path, "# comment\nPATH=/bin\nA=old")
	odd := "a \"b\" $HOME `id` \\ 'c' #d"
	for range 2 {
		if err := Environment(root, map[string]string{"B": odd, "A": ""}); err != nil {
			t.Fatal(err)
		}
		want := "# comment\nPATH=/bin\nA=\"\"\nB=" + `"a \"b\" \$HOME \` + "`id\\`" + ` \\ 'c' #d"` + "\n"
		if diff := cmp.Diff(want, read(t, path)); diff != "" {
			t.Error(diff)
		}
	}
	out, err := exec.Command("sh", "-c", `. "$0"; printf %s "$B"`, path).Output()
	if string(out) != odd || err != nil {
		t.Errorf("a shell reads %q, %v; want %q", out, err, odd)
	}
}

func TestRunCommands(t *testing.T) {
	dir := t.TempDir()
	run := func(ctx context.Context, argv []string) error {
		cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
		cmd.Dir = dir
		return cmd.Run()
	}
	err := RunCommands(t.Context(), run, []string{"echo a >> log", "echo b >> log; exit 3", "echo c >> log"})
	if want := "run_cmd[1]: exit status 3"; err == nil || err.Error() != want {
		t.Errorf("error = %v; want %s", err, want)
	}
	if got := read(t, dir, "log"); got != "a\nb\n" {
		t.Errorf("ran %q; want a and b only", got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := RunCommands(ctx, run, []string{"echo d >> log"}); !errors.Is(err, context.Canceled) || strings.Contains(read(t, dir, "log"), "d") {
		t.Errorf("cancelled: %v", err)
	}
}
