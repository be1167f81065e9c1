package space

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/cairn-os/cairn/pkg/atomicfile"
)

const (
	// DefaultReserve is what a snapshot, a few segments of dqlite and a
	// compaction of a store of usual size take.
	DefaultReserve = 64 << 20
	// share of the file system that a reserve takes at most: one part in 50.
	share = 50
)

// Reserve is a file that takes space until it is needed for a clean stop, a
// snapshot or a compaction on a full disk. Its methods may be called at any
// time.
type Reserve struct {
	path string
	mu   sync.Mutex
	size int64 // What it shall take.
}

// NewReserve returns the reserve in the file at path and allocates it, if
// there is space. Size 0 means DefaultReserve; it is at most 2 % of the file
// system. An error says that there is no reserve now; Rebuild may succeed later.
func NewReserve(path string, size int64) (*Reserve, error) {
	if size == 0 {
		size = DefaultReserve
	}
	r := &Reserve{path: path, size: size}
	return r, r.Rebuild()
}

// Release gives the space back.
func (r *Reserve) Release() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := os.Remove(r.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("release the reserve: %w", err)
	}
	return nil
}

// Rebuild takes the space again. It does nothing if the reserve is whole.
func (r *Reserve) Rebuild() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.rebuild(); err != nil {
		return fmt.Errorf("reserve %d MiB in %s: %w", r.size>>20, r.path, err)
	}
	return nil
}

func (r *Reserve) rebuild() error {
	f, err := os.OpenFile(r.path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		return os.NewSyscallError("fstatfs", err)
	}
	r.size = min(r.size, int64(st.Blocks)*st.Bsize/share)
	if err := r.allocate(f); err != nil {
		// Part of a reserve takes space from those who know better what to
		// do with it.
		return errors.Join(err, os.Remove(r.path))
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return atomicfile.SyncDir(filepath.Dir(r.path))
}

// allocate makes the file take its size. Unwritten extents of ext4, XFS and
// btrfs are space that is taken, and cost no writes.
func (r *Reserve) allocate(f *os.File) error {
	if held(f) >= r.size {
		return nil
	}
	err := unix.Fallocate(int(f.Fd()), 0, 0, r.size)
	if !errors.Is(err, unix.EOPNOTSUPP) {
		return os.NewSyscallError("fallocate", err)
	}
	block := make([]byte, 1<<20)
	for at := int64(0); at < r.size; at += int64(len(block)) {
		if _, err := f.WriteAt(block[:min(int64(len(block)), r.size-at)], at); err != nil {
			return err
		}
	}
	return nil
}

// Size is what the reserve shall take, and Held what it takes now.
func (r *Reserve) Size() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.size
}

// Held is the space that the reserve takes now.
func (r *Reserve) Held() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	f, err := os.Open(r.path)
	if err != nil {
		return 0
	}
	defer f.Close()
	return held(f)
}

// held is the space that a file takes, holes not counted.
func held(f *os.File) int64 {
	var st unix.Stat_t
	if unix.Fstat(int(f.Fd()), &st) != nil {
		return 0
	}
	const unit = 512 // Of st_blocks, whatever the file system's block size.
	return min(st.Blocks*unit, st.Size)
}
