package mount

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// persistent are the file systems that hold data of the owner on a block device.
var persistent = map[string]bool{"ext4": true, "vfat": true, "xfs": true, "btrfs": true, "exfat": true, "f2fs": true}

// essential targets are needed until the very end: PID 1 still logs and reads /proc.
var essential = map[string]bool{"/": true, "/proc": true, "/sys": true, "/dev": true, "/run": true}

// UnmountOrder returns the targets to unmount at shutdown, in order: the reverse of the order in which they were
// mounted, so that what covers something goes first. The root and the kernel's file systems stay, as does what is
// below them unless it holds data of a block device.
func UnmountOrder(table []Entry) []string {
	var order []string
	for i := len(table) - 1; i >= 0; i-- {
		e := table[i]
		if essential[e.Target] || (kernelOwned(e.Target) && !persistent[e.Type]) {
			continue
		}
		order = append(order, e.Target)
	}
	return order
}

func kernelOwned(target string) bool {
	for _, dir := range []string{"/proc/", "/sys/", "/dev/"} {
		if strings.HasPrefix(target, dir) {
			return true
		}
	}
	return false
}

// UnmountAll unmounts everything that UnmountOrder lists, saying by logf what could not be. It goes round again as
// long as that helps. What stays busy is remounted read-only, or else detached; an error tells that a file system
// with data is still writable.
func UnmountAll(logf func(format string, args ...any)) error {
	for round := 0; round < 4; round++ {
		table, err := Table()
		if err != nil {
			return err
		}
		progress := false
		for _, target := range UnmountOrder(table) {
			if err := unix.Unmount(target, unix.UMOUNT_NOFOLLOW); err == nil {
				progress = true
			}
		}
		if !progress {
			break
		}
	}
	table, err := Table()
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range table {
		if !persistent[e.Type] {
			continue
		}
		logf("%s is busy: making it read-only", e.Target)
		if err := unix.Mount("", e.Target, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
			errs = append(errs, fmt.Errorf("remount %s read-only: %w", e.Target, err))
		}
	}
	return errors.Join(errs...)
}
