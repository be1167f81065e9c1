package bootloader

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// statfsFlags pairs the flags that statfs(2) reports of a mount with those that
// mount(2) takes; a remount that leaves one out takes it off.
var statfsFlags = []struct{ reported, taken uintptr }{
	{unix.ST_NOSUID, unix.MS_NOSUID}, {unix.ST_NODEV, unix.MS_NODEV}, {unix.ST_NOEXEC, unix.MS_NOEXEC},
	{unix.ST_NOATIME, unix.MS_NOATIME}, {unix.ST_NODIRATIME, unix.MS_NODIRATIME}, {unix.ST_RELATIME, unix.MS_RELATIME},
	{unix.ST_SYNCHRONOUS, unix.MS_SYNCHRONOUS},
}

// Remount returns a function that makes the file system mounted at dir writable
// and returns one that makes it read-only again. A file system that was
// writable already stays so. Other mount options stay as they are. The functions
// must not run concurrently for one file system; sysfile.Dir's lock sees to it.
//
// FAT marks itself dirty while it is mounted for writing: a power cut then
// leaves that mark, which no boot selector looks at, and nothing else.
func Remount(dir string) func() (restore func() error, err error) {
	return func() (func() error, error) {
		var st unix.Statfs_t
		if err := unix.Statfs(dir, &st); err != nil {
			return nil, fmt.Errorf("look at the mount %s: %w", dir, err)
		}
		reported := uintptr(st.Flags)
		if reported&unix.ST_RDONLY == 0 {
			return func() error { return nil }, nil
		}
		flags := uintptr(unix.MS_REMOUNT)
		for _, f := range statfsFlags {
			if reported&f.reported != 0 {
				flags |= f.taken
			}
		}
		if err := unix.Mount("", dir, "", flags, ""); err != nil {
			return nil, fmt.Errorf("make %s writable: %w", dir, err)
		}
		return func() error {
			if err := unix.Mount("", dir, "", flags|unix.MS_RDONLY, ""); err != nil {
				return fmt.Errorf("make %s read-only: %w", dir, err)
			}
			return nil
		}, nil
	}
}
