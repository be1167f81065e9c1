package mount

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

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
// long as that helps. What holds data and stays busy is remounted read-only; an error tells that one is still writable.
func UnmountAll(logf func(format string, args ...any)) error {
	for round := 0; round < 4; round++ {
		table, err := Table()
		if err != nil {
			return err
		}
		progress := false
		for _, e := range table {
			if served(e.Type) && !essential[e.Target] {
				detach(e.Target, logf)
			}
		}
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

// served reports whether a file system of this type needs a server, or a process, to answer before it can be unmounted.
func served(kind string) bool {
	return slices.Contains([]string{"nfs", "nfs4", "cifs", "smb3", "ceph", "9p", "fuse"}, kind) || strings.HasPrefix(kind, "fuse.")
}

// serverPatience is how long a server may take to take the last of its data.
const serverPatience = 5 * time.Second

// detach takes a file system off the tree at once and waits only so long for its server: one that is gone must not keep
// the machine's own data mounted.
func detach(target string, logf func(format string, args ...any)) {
	done := make(chan error, 1)
	go func() { done <- unix.Unmount(target, unix.MNT_DETACH|unix.MNT_FORCE|unix.UMOUNT_NOFOLLOW) }()
	timer := time.NewTimer(serverPatience)
	defer timer.Stop()
	select {
	case err := <-done:
		if err != nil && !errors.Is(err, unix.EINVAL) { // EINVAL: gone with another one
			logf("detach %s: %v", target, err)
		}
	case <-timer.C:
		logf("detach %s: its server does not answer; going on", target)
	}
}
