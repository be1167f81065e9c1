// Package cgroup gives every supervised process a cgroup v2 group of its own, for accounting and for killing what it
// leaves behind.
//
// Groups are made below <root>/cairn. A nil *Group and a nil *Tree are valid and do nothing: that is what callers hold
// on machines with cgroup v1 or without cgroups (the node-in-namespace lane), so they need no second code path.
// Reference: Documentation/admin-guide/cgroup-v2.rst.
package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Root is where cgroup v2 is mounted.
const Root = "/sys/fs/cgroup"

// ErrUnsupported says that root is no cgroup v2 mount.
var ErrUnsupported = errors.New("no cgroup v2")

// Tree is the parent of all groups of supervised processes.
type Tree struct{ dir string }

// controllers are switched on for children where the kernel has them. The kubelet needs the same ones at the root.
func controllers() []string { return []string{"cpu", "cpuset", "io", "memory", "pids", "hugetlb"} }

// Open makes <root>/cairn and enables the controllers for root's and its children. It fails with ErrUnsupported where
// root is no cgroup v2 file system; the caller then goes on with a nil *Tree and says so.
func Open(root string) (*Tree, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(root, &st); err != nil {
		return nil, fmt.Errorf("%w: statfs %s: %w", ErrUnsupported, root, err)
	}
	if st.Type != unix.CGROUP2_SUPER_MAGIC {
		return nil, fmt.Errorf("%w: %s is of another type (%#x)", ErrUnsupported, root, st.Type)
	}
	if err := enable(root); err != nil {
		return nil, err
	}
	t := &Tree{dir: filepath.Join(root, "cairn")}
	if err := mkdir(t.dir); err != nil {
		return nil, err
	}
	return t, enable(t.dir)
}

// enable switches on, one by one so that a missing one costs no other, the controllers that dir offers.
func enable(dir string) error {
	data, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return fmt.Errorf("read controllers: %w", err)
	}
	have := make(map[string]bool)
	for c := range strings.FieldsSeq(string(data)) {
		have[c] = true
	}
	for _, c := range controllers() {
		if !have[c] {
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+c), 0); err != nil {
			return fmt.Errorf("enable %s in %s: %w", c, dir, err)
		}
	}
	return nil
}

func mkdir(dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make cgroup: %w", err)
	}
	return nil
}

// Group is the cgroup of one service.
type Group struct{ dir string }

// Create makes the group called name, or returns the one that exists.
func (t *Tree) Create(name string) (*Group, error) {
	if t == nil {
		return nil, nil
	}
	if name == "" || name != filepath.Base(name) || name[0] == '.' {
		return nil, fmt.Errorf("cgroup name %q: not a plain name", name)
	}
	g := &Group{dir: filepath.Join(t.dir, name)}
	return g, mkdir(g.dir)
}

// Open returns the group's directory, for CLONE_INTO_CGROUP (syscall.SysProcAttr.CgroupFD); nil of a nil Group.
func (g *Group) Open() (*os.File, error) {
	if g == nil {
		return nil, nil
	}
	f, err := os.Open(g.dir)
	if err != nil {
		return nil, fmt.Errorf("open cgroup: %w", err)
	}
	return f, nil
}

// Memory returns memory.current and memory.peak in bytes; 0 where the kernel does not tell.
func (g *Group) Memory() (current, peak int64) {
	if g == nil {
		return 0, 0
	}
	return g.number("memory.current"), g.number("memory.peak")
}

func (g *Group) number(file string) int64 {
	data, err := os.ReadFile(filepath.Join(g.dir, file))
	if err != nil {
		return 0
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// Populated says whether processes live in the group or below.
func (g *Group) Populated() bool {
	if g == nil {
		return false
	}
	data, err := os.ReadFile(filepath.Join(g.dir, "cgroup.events"))
	return err == nil && strings.Contains(string(data), "populated 1")
}

// Kill sends SIGKILL to all processes of the group and below, at once and without a race (Linux 5.14).
func (g *Group) Kill() error {
	if g == nil {
		return nil
	}
	if err := os.WriteFile(filepath.Join(g.dir, "cgroup.kill"), []byte("1"), 0); err != nil {
		return fmt.Errorf("kill cgroup: %w", err)
	}
	return nil
}
