package nodes

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// disk is a small ext4 file system in a sparse file. ext4 takes O_DIRECT,
// which tmpfs refuses, and is what servers have.
type disk struct {
	dir   string // where it is mounted
	image string
}

func newDisk(ctx context.Context, dir string, size int64) (*disk, error) {
	d := &disk{dir: dir, image: dir + ".img"}
	f, err := os.Create(d.image)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(f.Truncate(size), f.Close(), os.Mkdir(dir, 0o755)); err != nil {
		return nil, err
	}
	for _, argv := range [][]string{
		{"mkfs.ext4", "-q", "-m", "0", d.image}, // nothing is kept for root, who writes here
		{"mount", "-o", "loop", d.image, dir},   // the loop device goes with the mount
	} {
		if out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("%s: %w: %s", argv[0], err, bytes.TrimSpace(out))
		}
	}
	return d, nil
}

func (d *disk) ballast() string { return filepath.Join(d.dir, "ballast") }

// fill takes all the space that is left.
func (d *disk) fill() error {
	f, err := os.OpenFile(d.ballast(), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("fill %s: %w", d.dir, err)
	}
	defer f.Close()
	// Pieces of halving size: an allocation that does not fit takes nothing.
	end := int64(0)
	for piece := int64(64 << 20); piece >= 4<<10; {
		switch err := unix.Fallocate(int(f.Fd()), 0, end, piece); {
		case err == nil:
			end += piece
		case errors.Is(err, unix.ENOSPC):
			piece /= 2
		case errors.Is(err, unix.EINTR):
		default:
			return fmt.Errorf("fill %s: %w", d.dir, err)
		}
	}
	return nil
}

// free gives it back.
func (d *disk) free() error {
	if err := os.Remove(d.ballast()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

func (d *disk) close() error {
	if err := unix.Unmount(d.dir, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount %s: %w", d.dir, err)
	}
	return os.Remove(d.image)
}
