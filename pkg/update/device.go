package update

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/cairn-os/cairn/pkg/slot"
)

// Device is a partition of a slot.
type Device interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	// Size is in bytes.
	Size() int64
	// Sync brings all that was written to the medium.
	Sync() error
	// Forget makes the next ReadAt read from the medium rather than from memory. What was not synced may stay.
	Forget() error
}

// Slots opens the partitions of both slots.
type Slots interface {
	// Open opens the partition for an image, release.BootImage or release.RootImage, of a slot; for reading only unless
	// write is set.
	Open(s slot.Slot, image string, write bool) (Device, error)
}

// Partitions are Slots on block devices; the function returns a device's path.
type Partitions func(s slot.Slot, image string) (path string, err error)

var _ Slots = Partitions(nil)

// Open implements Slots. A partition that is mounted or mapped cannot be opened for writing.
func (p Partitions) Open(s slot.Slot, image string, write bool) (Device, error) {
	path, err := p(s, image)
	if err != nil {
		return nil, fmt.Errorf("open %s of slot %s: %w", image, s, err)
	}
	flags := os.O_RDONLY
	if write {
		// Of a block device O_EXCL says: not while something else of the kernel's holds it.
		flags = os.O_RDWR | os.O_EXCL
	}
	f, err := os.OpenFile(path, flags, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s of slot %s: %w", image, s, err)
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open %s of slot %s: %w", image, s, err), f.Close())
	}
	return &partition{f, size}, nil
}

type partition struct {
	*os.File
	size int64
}

func (p *partition) Size() int64 { return p.size }

func (p *partition) Forget() error {
	if err := unix.Fadvise(int(p.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		return fmt.Errorf("drop the cache of %s: %w", p.Name(), err)
	}
	return nil
}
