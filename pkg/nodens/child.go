package nodens

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/cairn-os/cairn/pkg/mount"
	"golang.org/x/sys/unix"
)

const (
	// childEnv marks the process that is to become a node's init.
	childEnv = "CAIRN_NODENS_CHILD"
	// probe is its value for a process that only shows that it can.
	probe = "probe"

	orderFD  = 3
	reportFD = 4
)

// order is what the first process is told through a pipe.
type order struct {
	Tree, StateDir, Name string
	Console              string // the node's side of its console
	Init                 []string
	Seed                 map[string][]byte
	Cgroups              cgroups
}

// Child must be called first of all by every program that starts nodes, and
// by TestMain in tests. In an ordinary process it does nothing. In a node's
// first process it becomes the node's init and does not return: when it fails
// it ends the process itself, because the program's own code must never run in
// a half-made node.
func Child() {
	switch os.Getenv(childEnv) {
	case "":
		return
	case probe:
		end(unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	}
	// Namespaces are entered thread by thread; exec must come from the one.
	runtime.LockOSThread()
	unix.CloseOnExec(orderFD)
	unix.CloseOnExec(reportFD)
	report := os.NewFile(reportFD, "report")
	err := become(os.NewFile(orderFD, "order"))
	if _, writeErr := report.WriteString(err.Error()); writeErr != nil {
		err = errors.Join(err, writeErr)
	}
	end(err)
}

// end ends the process.
func end(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		unix.Exit(1)
	}
	unix.Exit(0)
}

// become makes the node's world and executes its init in it.
func become(orders *os.File) error {
	var o order
	if err := json.NewDecoder(orders).Decode(&o); err != nil {
		return fmt.Errorf("read orders: %w", err)
	}
	if err := enterCgroups(o.Cgroups); err != nil {
		return err
	}
	root, err := o.buildRoot()
	if err != nil {
		return err
	}
	if err := o.seed(root); err != nil {
		return err
	}
	if err := pivot(root); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte(o.Name)); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	if err := unix.Exec(o.Init[0], o.Init, initEnv()); err != nil {
		return fmt.Errorf("execute %s: %w", o.Init[0], err)
	}
	return nil
}

func initEnv() []string {
	return []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/", "TERM=linux", "container=cairn"}
}

func enterCgroups(c cgroups) error {
	if err := c.join(); err != nil {
		return err
	}
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("enter a cgroup namespace: %w", err)
	}
	if !c.unified() {
		return nil
	}
	// Only the machine's true root may hold processes and hand down
	// controllers at once, so that init moves aside.
	leaf := filepath.Join(c[0].Dir, "init")
	if err := os.Mkdir(leaf, 0o755); err != nil {
		return err
	}
	return joinGroup(leaf)
}

// buildRoot mounts the node's root and what lies in it, and returns its path.
func (o *order) buildRoot() (string, error) {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return "", fmt.Errorf("make mounts private: %w", err)
	}
	base := filepath.Join(o.StateDir, "mnt")
	root := filepath.Join(base, "root")
	upper, work := filepath.Join(base, "upper"), filepath.Join(base, "work")
	if err := unix.Mount("tmpfs", base, "tmpfs", 0, "mode=0755"); err != nil {
		return "", fmt.Errorf("mount tmpfs for changes: %w", err)
	}
	for _, dir := range []string{root, upper, work} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return "", err
		}
	}
	data := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", o.Tree, upper, work)
	if err := unix.Mount("overlay", root, "overlay", 0, data); err != nil {
		return "", fmt.Errorf("mount overlay of %s: %w", o.Tree, err)
	}
	if err := mount.ApplyAll(root, o.mounts()); err != nil {
		return "", err
	}
	return root, o.addDevices(root)
}

// devices are the nodes of the build machine that a node shares. Those that
// its kernel lacks are left out.
var devices = []string{"null", "zero", "full", "random", "urandom", "tty", "kmsg", "fuse", "net/tun"}

func (o *order) mounts() []mount.Mount {
	const noExec = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	all := []mount.Mount{
		{Source: filepath.Join(o.StateDir, "var"), Target: "/var", Flags: unix.MS_BIND},
		{Source: "proc", Target: "/proc", Type: "proc", Flags: noExec},
		{Source: "sysfs", Target: "/sys", Type: "sysfs", Flags: noExec},
		{Source: "tmpfs", Target: "/run", Type: "tmpfs", Flags: unix.MS_NOSUID | unix.MS_NODEV, Data: "mode=0755"},
		{Source: "tmpfs", Target: "/tmp", Type: "tmpfs", Flags: unix.MS_NOSUID | unix.MS_NODEV, Data: "mode=1777"},
		{Source: "tmpfs", Target: "/dev", Type: "tmpfs", Flags: unix.MS_NOSUID, Data: "mode=0755"},
		{Source: "devpts", Target: "/dev/pts", Type: "devpts", Flags: unix.MS_NOSUID | unix.MS_NOEXEC, Data: "newinstance,ptmxmode=0666,mode=0620"},
		{Source: "tmpfs", Target: "/dev/shm", Type: "tmpfs", Flags: unix.MS_NOSUID | unix.MS_NODEV, Data: "mode=1777"},
		{Source: "mqueue", Target: "/dev/mqueue", Type: "mqueue", Flags: noExec, Optional: true},
	}
	return append(all, o.Cgroups.mounts()...)
}

// addDevices fills the node's /dev.
func (o *order) addDevices(root string) error {
	sources := map[string]string{"console": o.Console}
	for _, d := range devices {
		if source := filepath.Join("/dev", d); exists(source) {
			sources[d] = source
		}
	}
	for name, source := range sources {
		target := filepath.Join("/dev", name)
		if err := os.MkdirAll(filepath.Join(root, filepath.Dir(target)), 0o755); err != nil {
			return err
		}
		if err := (mount.Mount{Source: source, Target: target, Flags: unix.MS_BIND}).Apply(root); err != nil {
			return err
		}
	}
	for name, target := range map[string]string{
		"ptmx": "pts/ptmx", "fd": "/proc/self/fd",
		"stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2",
	} {
		if err := os.Symlink(target, filepath.Join(root, "dev", name)); err != nil {
			return err
		}
	}
	return nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// seed writes the caller's files; links in the tree cannot lead them out of
// the root.
func (o *order) seed(dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	for name, data := range o.Seed {
		inside := strings.TrimPrefix(path.Clean("/"+name), "/")
		if err := root.MkdirAll(path.Dir(inside), 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("seed %s: %w", name, err)
		}
		if err := root.WriteFile(inside, data, 0o600); err != nil {
			return fmt.Errorf("seed %s: %w", name, err)
		}
	}
	return nil
}

// pivot makes root the root and drops the build machine's. Mounts are shared
// from here on, as kubelet wants them.
func pivot(root string) error {
	if err := os.Chdir(root); err != nil {
		return err
	}
	// The old root ends up on top of the new one at the same place, from where
	// it can be detached without a directory for it: pivot_root(2).
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot to %s: %w", root, err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("detach the old root: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("make mounts shared: %w", err)
	}
	return nil
}
