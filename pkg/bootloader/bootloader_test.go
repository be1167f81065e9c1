package bootloader

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// inNamespace reports whether the test runs in a mount name space of its own;
// the outer run starts that one and ends.
func inNamespace(t *testing.T) bool {
	t.Helper()
	if os.Getenv("CAIRN_TEST_NAMESPACE") == "1" {
		return true
	}
	if os.Getuid() != 0 {
		t.Skip("needs root for a mount name space")
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), "CAIRN_TEST_NAMESPACE=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("in a mount name space: %v\n%s", err, out)
	}
	return false
}

func flags(t *testing.T, dir string) int64 {
	t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	return int64(st.Flags)
}

// TestRemount makes a read-only mount writable and read-only again.
func TestRemount(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	dir := t.TempDir()
	hard := uintptr(unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC | unix.MS_NOATIME)
	if err := unix.Mount("tmpfs", dir, "tmpfs", hard, "size=1m,mode=0700"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	writable := Remount(dir)
	restore, err := writable()
	if err != nil {
		t.Fatal(err)
	}
	if err := restore(); err != nil || flags(t, dir)&unix.ST_RDONLY != 0 {
		t.Errorf("a writable mount became read-only: %v", err)
	}
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY|hard, ""); err != nil {
		t.Fatal(err)
	}
	before := flags(t, dir)
	for range 2 {
		if restore, err = writable(); err != nil {
			t.Fatal(err)
		}
		f, err := os.Create(filepath.Join(dir, "x"))
		if err != nil {
			t.Fatal(err)
		}
		if now := flags(t, dir); now != before&^unix.ST_RDONLY {
			t.Errorf("flags while writable: %#x; before: %#x", now, before)
		}
		// An open file keeps the mount writable, and that must be told.
		if err := restore(); err == nil {
			t.Error("read-only with a file open for writing")
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		if err := restore(); err != nil {
			t.Error(err)
		}
		if now := flags(t, dir); now != before {
			t.Errorf("flags then: %#x; before: %#x", now, before)
		}
		if _, err := os.Create(filepath.Join(dir, "y")); err == nil {
			t.Error("written to a read-only mount")
		}
	}
	if _, err := Remount(filepath.Join(dir, "no"))(); err == nil {
		t.Error("no error for a directory that is not there")
	}
}

func TestRestartRefusesABrokenArgument(t *testing.T) {
	if err := (Restart{Argument: "0 try\x00boot"}).Do(); err == nil {
		t.Error("no error")
	}
}
