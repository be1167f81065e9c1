package sweep

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/diskfs/go-diskfs/filesystem/fat32"

	"github.com/cairn-os/cairn/pkg/bootloader/sysfile"
	"github.com/cairn-os/cairn/pkg/partition"
	"github.com/cairn-os/cairn/pkg/sweep/fat"
)

// System is CAIRN_SYS on a Recorder, without a kernel that mounts it: what a
// boot loader's backend does to its files is recorded as it would be by a
// kernel that writes a file in place. It must not be used concurrently.
type System struct {
	disk        *Recorder
	start, size int64 // bytes
}

var _ sysfile.Disk = (*System)(nil)

// System returns the CAIRN_SYS of the disk.
func (r *Recorder) System() (*System, error) {
	info, err := r.Stat()
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", partition.System, err)
	}
	t, err := readTable(r, info.Size())
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", partition.System, err)
	}
	x := t[partition.SystemNumber]
	return &System{r, x.from * SectorSize, (x.to - x.from) * SectorSize}, nil
}

// Do implements sysfile.Disk.
func (s *System) Do(_ bool, f func() error) error { return f() }

func (s *System) extents(name string) ([]fat.Extent, int64, error) {
	f, err := fat.Open(io.NewSectionReader(s.disk, s.start, s.size), s.size)
	if err != nil {
		return nil, 0, err
	}
	return f.Extents(name)
}

// Read implements sysfile.Disk.
func (s *System) Read(name string) ([]byte, error) {
	parts, _, err := s.extents(name)
	if errors.Is(err, fat.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var data []byte
	for _, p := range parts {
		b := make([]byte, p.Length)
		if err := readFull(s.disk, b, s.start+p.At); err != nil {
			return nil, err
		}
		data = append(data, b...)
	}
	return data, nil
}

// Overwrite implements sysfile.Disk. A file of another length, or none, is made
// anew by a writer of FAT that is not Linux's.
func (s *System) Overwrite(name string, data []byte) error {
	parts, size, err := s.extents(name)
	if err != nil && !errors.Is(err, fat.ErrNotExist) {
		return err
	}
	if err != nil || size != int64(len(data)) {
		return s.create(name, data)
	}
	rest := data
	for _, p := range parts {
		if _, err := s.disk.WriteAt(rest[:p.Length], s.start+p.At); err != nil {
			return err
		}
		rest = rest[p.Length:]
	}
	return s.finish(name, data)
}

func (s *System) create(name string, data []byte) error {
	fs, err := fat32.Read(s.disk, s.size, s.start, SectorSize)
	if err != nil {
		return err
	}
	f, err := fs.OpenFile("/"+name, os.O_CREATE|os.O_RDWR|os.O_TRUNC)
	if err != nil {
		return err
	}
	if _, err := f.Write(data); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return s.finish(name, data)
}

// finish flushes and reads back.
func (s *System) finish(name string, data []byte) error {
	if err := s.disk.Sync(); err != nil {
		return err
	}
	if now, err := s.Read(name); err != nil || !bytes.Equal(now, data) {
		return fmt.Errorf("%s: %w", name, errors.Join(err, sysfile.ErrReadBack))
	}
	return nil
}
