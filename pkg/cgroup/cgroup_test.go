package cgroup

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

func TestOpenElsewhere(t *testing.T) {
	for _, dir := range []string{t.TempDir(), t.TempDir() + "/none"} {
		if _, err := Open(dir); !errors.Is(err, ErrUnsupported) {
			t.Errorf("Open(%s) = %v; want ErrUnsupported", dir, err)
		}
	}
}

// TestNil: without cgroups callers hold nil and need no second path.
func TestNil(t *testing.T) {
	var tree *Tree
	g, err := tree.Create("store")
	if g != nil || err != nil {
		t.Fatalf("Create() = %v, %v", g, err)
	}
	f, err := g.Open()
	current, peak := g.Memory()
	if f != nil || err != nil || current != 0 || peak != 0 || g.Populated() || g.Kill() != nil {
		t.Error("a nil Group does something")
	}
}

// TestFork places a child by CLONE_INTO_CGROUP and kills it through the group. It needs a cgroup v2 hierarchy, with or
// without controllers.
func TestFork(t *testing.T) {
	root := mounted(t)
	tree, err := Open(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"", ".x", "a/b"} {
		if _, err := tree.Create(bad); err == nil {
			t.Errorf("Create(%q) succeeded", bad)
		}
	}
	g, err := tree.Create("forktest")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, dir := range []string{g.dir, tree.dir} {
			if err := os.Remove(dir); err != nil && dir == g.dir {
				t.Errorf("remove: %v", err)
			}
		}
	})
	if _, err := tree.Create("forktest"); err != nil {
		t.Errorf("Create() again: %v", err)
	}
	f, err := g.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd := exec.Command("sleep", "300")
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(f.Fd())}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if !g.Populated() {
		t.Error("Populated() = false with a child inside")
	}
	if err := g.Kill(); err != nil {
		t.Error(err)
		cmd.Process.Kill()
	}
	if err := cmd.Wait(); err == nil || err.Error() != "signal: killed" {
		t.Errorf("the child ended with %v; want it killed", err)
	}
	for deadline := time.Now().Add(10 * time.Second); g.Populated() && time.Now().Before(deadline); {
		time.Sleep(5 * time.Millisecond)
	}
	if g.Populated() {
		t.Error("Populated() = true after the kill")
	}
}

// mounted finds a cgroup v2 hierarchy that may be written.
func mounted(t *testing.T) string {
	t.Helper()
	for _, dir := range []string{Root, filepath.Join(Root, "unified")} {
		if _, err := os.Stat(filepath.Join(dir, "cgroup.controllers")); err != nil {
			continue
		}
		probe := filepath.Join(dir, "cairn")
		if err := os.Mkdir(probe, 0o755); err == nil {
			return dir
		}
	}
	t.Skip("no writable cgroup v2 hierarchy here")
	return ""
}
