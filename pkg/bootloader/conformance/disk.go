package conformance

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io/fs"
	"maps"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/cairn-os/cairn/pkg/bootloader/selector"
	"github.com/cairn-os/cairn/pkg/bootloader/sysfile"
	"github.com/cairn-os/cairn/pkg/partition"
)

// errPower is what everything returns once the power is cut.
var errPower = errors.New("the power is cut")

// Disk is the medium of a machine, as the running system and the boot selector
// see it. It can be cut off in the middle of a write.
type Disk struct {
	files    map[string]map[string][]byte // by partition and path
	readOnly bool

	writes []write // done so far
	fault  *fault
	dead   bool
}

var (
	_ sysfile.Disk  = (*Disk)(nil)
	_ selector.Disk = (*Disk)(nil)
)

// write is one overwriting of a file of CAIRN_SYS.
type write struct {
	path     string
	old, new []byte
}

// fault is what happens to one write.
type fault struct {
	index   int    // of the write, from 0
	content []byte // what the sector holds then; nil: what it held before
	goOn    bool   // the medium lies: all goes on as if it had written
}

// newDisk returns the disk of an installed machine.
func newDisk(files map[string]map[string][]byte) *Disk {
	d := &Disk{files: map[string]map[string][]byte{}}
	for part, list := range files {
		d.files[part] = maps.Clone(list)
	}
	return d
}

// Do implements sysfile.Disk.
func (d *Disk) Do(change bool, f func() error) error {
	switch {
	case d.dead:
		return errPower
	case change && d.readOnly:
		return unix.EROFS
	}
	return f()
}

// Read implements sysfile.Disk.
func (d *Disk) Read(name string) ([]byte, error) {
	if d.dead {
		return nil, errPower
	}
	return slices.Clone(d.files[partition.System][name]), nil
}

// Overwrite implements sysfile.Disk.
func (d *Disk) Overwrite(name string, data []byte) error {
	if d.dead {
		return errPower
	}
	if d.readOnly {
		return unix.EROFS
	}
	system := d.files[partition.System]
	f := d.fault
	hit := f != nil && f.index == len(d.writes)
	d.writes = append(d.writes, write{name, system[name], bytes.Clone(data)})
	if !hit {
		system[name] = bytes.Clone(data)
		return nil
	}
	if f.content != nil {
		system[name] = f.content
	}
	if f.goOn {
		return nil
	}
	d.dead = true
	return errPower
}

// Write implements selector.Disk.
func (d *Disk) Write(path string, data []byte) error { return d.Overwrite(path, data) }

// Size implements selector.Disk.
func (d *Disk) Size(part, path string) (int64, error) {
	data, err := d.Head(part, path, 1<<30)
	return int64(len(data)), err
}

// Head implements selector.Disk.
func (d *Disk) Head(part, path string, n int) ([]byte, error) {
	if d.dead {
		return nil, errPower
	}
	data, ok := d.files[part][path]
	if !ok {
		return nil, fs.ErrNotExist
	}
	return data[:min(n, len(data))], nil
}

// Sum implements selector.Disk.
func (d *Disk) Sum(part, path string) ([sha256.Size]byte, error) {
	data, err := d.Head(part, path, 1<<30)
	return sha256.Sum256(data), err
}
