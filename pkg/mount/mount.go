// Package mount attaches and detaches file systems from tables of values.
//
// A boot's name space is data: a slice of Mount that can be printed, tested and applied. Applying is idempotent in the
// sense that matters at boot: a target that already carries a mount of the wanted type is left alone.
package mount

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Mount is one entry of a mount table, with the meaning of mount(2)'s arguments.
type Mount struct {
	Source string
	Target string // absolute path below the root that Apply is given
	Type   string // empty for a bind mount
	Flags  uintptr
	Data   string
	Mode   fs.FileMode // of a target that had to be made; 0: 0755
	// Optional mounts may fail because the kernel lacks the file system (ENODEV, ENOENT); everything else is an error.
	Optional bool
	// NoCreate leaves a missing target missing: the mount fails. For targets of a kernel file system (sysfs).
	NoCreate bool
}

// flagNames are the flags this project uses, in the order in which they print.
var flagNames = []struct {
	flag uintptr
	name string
}{
	{unix.MS_BIND, "bind"}, {unix.MS_REC, "rec"}, {unix.MS_REMOUNT, "remount"}, {unix.MS_RDONLY, "ro"},
	{unix.MS_NOSUID, "nosuid"}, {unix.MS_NODEV, "nodev"}, {unix.MS_NOEXEC, "noexec"}, {unix.MS_NOATIME, "noatime"},
	{unix.MS_RELATIME, "relatime"}, {unix.MS_SHARED, "shared"}, {unix.MS_SYNCHRONOUS, "sync"},
}

// String prints the mount in the manner of fstab(5).
func (m Mount) String() string {
	kind := m.Type
	if kind == "" {
		kind = "none"
	}
	return fmt.Sprintf("%s %s %s %s", m.Source, m.Target, kind, m.options())
}

func (m Mount) options() string {
	var opts []string
	for _, f := range flagNames {
		if m.Flags&f.flag != 0 {
			opts = append(opts, f.name)
		}
	}
	if m.Data != "" {
		opts = append(opts, m.Data)
	}
	if len(opts) == 0 {
		return "defaults"
	}
	return strings.Join(opts, ",")
}

// Apply mounts m below root ("/" on a node), making the target when it is missing.
func (m Mount) Apply(root string) error {
	target := filepath.Join(root, m.Target)
	if m.done(target) {
		return nil
	}
	if !m.NoCreate {
		if err := makeTarget(target, m); err != nil {
			return fmt.Errorf("mount %s: %w", m.Target, err)
		}
	}
	err := unix.Mount(m.Source, target, m.Type, m.Flags, m.Data)
	if err != nil && m.Optional && (errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOENT)) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("mount %s: %w", m, err)
	}
	return nil
}

// done reports whether target shows already what m would mount there.
func (m Mount) done(target string) bool {
	switch {
	case m.Flags&unix.MS_REMOUNT != 0:
		return false
	case m.Flags&unix.MS_BIND != 0:
		source, err1 := os.Stat(m.Source)
		shown, err2 := os.Stat(target)
		return err1 == nil && err2 == nil && os.SameFile(source, shown)
	}
	return mountedAs(target, m.Type)
}

func makeTarget(target string, m Mount) error {
	mode := m.Mode
	if mode == 0 {
		mode = 0o755
	}
	if m.Flags&unix.MS_BIND != 0 {
		if info, err := os.Stat(m.Source); err == nil && !info.IsDir() {
			return touch(target)
		}
	}
	return os.MkdirAll(target, mode)
}

// touch makes the empty file that a bind mount of a file needs as its target.
func touch(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o644)
	if err != nil {
		return err
	}
	return f.Close()
}

// mountedAs reports whether target is the root of a mount of the given type.
func mountedAs(target, kind string) bool {
	mounts, err := Table()
	if err != nil {
		return false // no /proc yet: nothing of ours can be mounted
	}
	for i := len(mounts) - 1; i >= 0; i-- {
		if mounts[i].Target == filepath.Clean(target) {
			return mounts[i].Type == kind
		}
	}
	return false
}

// ApplyAll applies the mounts in order and stops at the first error.
func ApplyAll(root string, mounts []Mount) error {
	for _, m := range mounts {
		if err := m.Apply(root); err != nil {
			return err
		}
	}
	return nil
}

// IsRAM reports whether path lies on a ramfs or tmpfs, as the root of an initramfs does.
func IsRAM(path string) (bool, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return false, fmt.Errorf("statfs %s: %w", path, err)
	}
	// The field's type differs between architectures; the magics fit 32 bits.
	magic := uint32(st.Type)
	return magic == unix.TMPFS_MAGIC || magic == unix.RAMFS_MAGIC, nil
}
