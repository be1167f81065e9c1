package nodens

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cairn-os/cairn/pkg/mount"
	"golang.org/x/sys/unix"
)

const cgroupRoot = "/sys/fs/cgroup"

// hierarchy is one mounted cgroup hierarchy of the build machine.
type hierarchy struct {
	Mount string // where the machine has it, and where the node will
	Type  string // cgroup or cgroup2
	Data  string // the mount option that names its controllers (cgroup v1)
	Dir   string // the node's group in it
}

// cgroups is a node's group in every hierarchy. The node sees each of them as
// the whole hierarchy, through a cgroup namespace.
type cgroups []hierarchy

// openCgroups finds the machine's hierarchies.
func openCgroups(node string) (cgroups, error) {
	table, err := mount.Table()
	if err != nil {
		return nil, fmt.Errorf("find cgroups: %w", err)
	}
	var all cgroups
	for _, m := range table {
		if m.Type != "cgroup" && m.Type != "cgroup2" {
			continue
		}
		if m.Target != cgroupRoot && filepath.Dir(m.Target) != cgroupRoot {
			continue
		}
		all = append(all, hierarchy{
			Mount: m.Target, Type: m.Type, Data: controllerOptions(m.Type, m.SuperOpts),
			Dir: filepath.Join(m.Target, "cairn", node),
		})
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("find cgroups: none is mounted at %s", cgroupRoot)
	}
	return all, nil
}

// controllerOptions picks from a cgroup v1 mount's options those that say
// which hierarchy it is.
func controllerOptions(kind, options string) string {
	if kind == "cgroup2" {
		return ""
	}
	other := []string{"rw", "ro", "xattr", "clone_children", "cpuset_v2_mode", "noprefix"}
	return strings.Join(slices.DeleteFunc(strings.Split(options, ","), func(o string) bool {
		return slices.Contains(other, o) || strings.HasPrefix(o, "release_agent=")
	}), ",")
}

// unified reports whether the machine has cgroup v2 alone.
func (c cgroups) unified() bool {
	return len(c) == 1 && c[0].Type == "cgroup2"
}

// create makes the groups, after removing what a killed run left.
func (c cgroups) create(ctx context.Context) error {
	if err := c.thaw(); err != nil {
		return err
	}
	if err := c.remove(ctx); err != nil {
		return err
	}
	for _, h := range c {
		for _, dir := range []string{filepath.Dir(h.Dir), h.Dir} {
			if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
				return fmt.Errorf("make cgroup: %w", err)
			}
			if err := prepare(dir); err != nil {
				return err
			}
		}
	}
	return nil
}

// prepare lets a fresh group be used: a cpuset of cgroup v1 starts empty and
// takes no process so; cgroup v2 hands controllers down on request.
func prepare(dir string) error {
	parent := filepath.Dir(dir)
	for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
		value, err := os.ReadFile(filepath.Join(parent, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if len(strings.TrimSpace(string(value))) == 0 {
			continue // cgroup v2: inherited
		}
		if err := os.WriteFile(filepath.Join(dir, name), value, 0); err != nil {
			return fmt.Errorf("prepare cgroup: %w", err)
		}
	}
	controllers, err := os.ReadFile(filepath.Join(parent, "cgroup.controllers"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for name := range strings.FieldsSeq(string(controllers)) {
		if err := os.WriteFile(filepath.Join(parent, "cgroup.subtree_control"), []byte("+"+name), 0); err != nil {
			return fmt.Errorf("hand down cgroup controller %s: %w", name, err)
		}
	}
	return nil
}

// join moves the calling process into the groups.
func (c cgroups) join() error {
	for _, h := range c {
		if err := joinGroup(h.Dir); err != nil {
			return err
		}
	}
	return nil
}

func joinGroup(dir string) error {
	err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0)
	if err != nil {
		return fmt.Errorf("join cgroup: %w", err)
	}
	return nil
}

// mounts are the node's view of the groups.
func (c cgroups) mounts() []mount.Mount {
	var all []mount.Mount
	if !c.unified() {
		all = append(all, mount.Mount{Source: "tmpfs", Target: cgroupRoot, Type: "tmpfs", Data: "mode=0755"})
	}
	for _, h := range c {
		all = append(all, mount.Mount{Source: h.Type, Target: h.Mount, Type: h.Type, Data: h.Data})
	}
	return all
}

// remove deletes the groups with all groups below them. Processes that are
// being killed hold them for a moment, until ctx ends.
func (c cgroups) remove(ctx context.Context) error {
	var problems []error
	for _, h := range c {
		if err := removeGroup(ctx, h.Dir); err != nil {
			problems = append(problems, err)
			continue
		}
		// The common parent goes with the last node.
		if err := os.Remove(filepath.Dir(h.Dir)); err != nil && !errors.Is(err, fs.ErrNotExist) && !isBusy(err) {
			problems = append(problems, err)
		}
	}
	return errors.Join(problems...)
}

func removeGroup(ctx context.Context, dir string) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := removeTree(dir)
		if err == nil || !isBusy(err) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("remove cgroup: %w%s", err, members(dir))
		case <-tick.C:
		}
	}
}

// removeTree removes directories only: the files of a group go with it.
func removeTree(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		if err := removeTree(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// members says which processes keep a group alive.
func members(dir string) string {
	data, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err != nil || len(data) == 0 {
		return ""
	}
	return " (processes " + strconv.Quote(strings.Join(strings.Fields(string(data)), " ")) + ")"
}

// isBusy reports whether a group still has members or children.
func isBusy(err error) bool {
	return errors.Is(err, unix.EBUSY) || errors.Is(err, unix.ENOTEMPTY)
}

// isGone reports whether a group was removed while a file of it was open.
func isGone(err error) bool { return errors.Is(err, unix.ENODEV) }
