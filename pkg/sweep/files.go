package sweep

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"

	"github.com/cairn-os/cairn/pkg/bootloader/selector"
	"github.com/cairn-os/cairn/pkg/partition"
	"github.com/cairn-os/cairn/pkg/slot"
	"github.com/cairn-os/cairn/pkg/sweep/fat"
)

// diskView is a state as a selector sees it. It remembers sums by what the
// partition holds, because a state differs from most others in a few sectors.
type diskView struct {
	j      *judge
	v      *view
	k      key
	open   [4]*fat.FS // by partition number
	writes []sectorWrite
	err    error // of the recording, not of the disk that it is of
}

var _ selector.Disk = (*diskView)(nil)

// numbers are the FAT partitions.
var numbers = map[string]int{
	partition.System: partition.SystemNumber, partition.BootA: partition.BootANumber, partition.BootB: partition.BootBNumber,
}

// ReadAt reads the disk as it is now.
func (d *diskView) ReadAt(p []byte, at int64) (int, error) {
	n, err := d.v.ReadAt(p, at)
	if err != nil {
		d.err = err
	}
	return n, err
}

// fs returns the file system of a partition and the sector where it begins.
func (d *diskView) fs(name string) (*fat.FS, int64, error) {
	number, ok := numbers[name]
	if !ok {
		return nil, 0, fmt.Errorf("%s is no FAT partition", name)
	}
	x := d.j.base[number]
	if d.open[number] == nil {
		f, err := fat.Open(d.section(x), (x.to-x.from)*SectorSize)
		if err != nil {
			return nil, 0, fmt.Errorf("%s: %w", name, err)
		}
		d.open[number] = f
	}
	return d.open[number], x.from, nil
}

func (d *diskView) section(x extent) *io.SectionReader {
	return io.NewSectionReader(d, x.from*SectorSize, (x.to-x.from)*SectorSize)
}

// Size implements selector.Disk.
func (d *diskView) Size(name, path string) (int64, error) {
	f, _, err := d.fs(name)
	if err != nil {
		return 0, err
	}
	return f.Size(path)
}

// Head implements selector.Disk.
func (d *diskView) Head(name, path string, n int) ([]byte, error) {
	f, _, err := d.fs(name)
	if err != nil {
		return nil, err
	}
	return f.Head(path, n)
}

// Sum implements selector.Disk.
func (d *diskView) Sum(name, path string) (_ sum, err error) {
	f, _, err := d.fs(name)
	if err != nil {
		return sum{}, err
	}
	id := fileKey{name, d.k[areaOf(name)], path}
	s, ok := d.j.files[id]
	if !ok {
		s = sumFile(f, d.section(d.j.base[numbers[name]]), path)
		d.j.files[id] = s
	}
	return s.sum, s.err
}

// areaOf is the region of a FAT partition.
func areaOf(name string) region {
	switch name {
	case partition.System:
		return systemArea
	case partition.BootA:
		return bootArea
	}
	return bootArea + 1
}

func sumFile(f *fat.FS, r io.ReaderAt, path string) (s fileSum) {
	parts, _, err := f.Extents(path)
	if err != nil {
		return fileSum{err: err}
	}
	h := sha256.New()
	buf := make([]byte, 1<<16)
	for _, p := range parts {
		if _, err := io.CopyBuffer(h, io.NewSectionReader(r, p.At, p.Length), buf); err != nil {
			return fileSum{err: err}
		}
	}
	h.Sum(s.sum[:0])
	return s
}

// holds reports whether a slot's boot files are those of a release.
func (d *diskView) holds(s slot.Slot, r Release) bool {
	boot := partition.BootA
	if s == slot.B {
		boot = partition.BootB
	}
	for name, want := range r.Files {
		if sum, err := d.Sum(boot, name); err != nil || sum != want {
			return false
		}
	}
	return len(r.Files) > 0
}

// Write implements selector.Disk: it changes those sectors whose content is
// another one, in place.
func (d *diskView) Write(path string, data []byte) error {
	f, start, err := d.fs(partition.System)
	if err != nil {
		return err
	}
	parts, size, err := f.Extents(path)
	if err != nil {
		return err
	}
	if size != int64(len(data)) {
		return fmt.Errorf("%s: %d bytes over a file of %d", path, len(data), size)
	}
	was := make([]byte, SectorSize)
	for _, p := range parts {
		for at := int64(0); at < p.Length; at += SectorSize {
			sector := start + (p.At+at)/SectorSize
			if err := readFull(d.v, was, sector*SectorSize); err != nil {
				return err
			}
			now := bytes.Clone(was)
			data = data[copy(now, data):]
			if !bytes.Equal(was, now) {
				d.writes = append(d.writes, sectorWrite{sector, now})
				d.v, d.k = d.j.written(d.v, d.k, sector, was, now)
			}
		}
	}
	return nil
}

// written is the state after a sector was written.
func (j *judge) written(v *view, k key, sector int64, was, now []byte) (*view, key) {
	in, _ := j.g.at(sector)
	if in != ignored {
		k[in] = k[in].xor(j.hash.sector(sector, was)).xor(j.hash.sector(sector, now))
	}
	return v.with(sector, now), k
}
