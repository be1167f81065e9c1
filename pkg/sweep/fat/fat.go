// Package fat reads files of a FAT32 file system as a boot loader does: from
// the sectors as they are, torn or not, without repairing or caching anything.
//
// What it takes and refuses follows Microsoft's FAT specification (1.03) and
// GRUB 2.12's fs/fat.c. It looks at the first copy of the table only, as GRUB
// does, and it ends on every input: chains, folders and sizes have limits.
package fat

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf16"
)

const (
	sectorSize  = 512
	dirEntry    = 32
	folder      = 0x10
	label       = 0x08
	longName    = 0x0f
	firstData   = 2
	endOfChain  = 0x0ffffff8
	maxFolder   = 2 << 20 // bytes; the specification's limit
	maxNameSlot = 20      // of a long name
)

// Errors that a caller tells apart.
var (
	ErrDamaged  = errors.New("the FAT file system is damaged")
	ErrNotExist = errors.New("no such file")
)

// FS is a file system on r. It keeps nothing of what it reads but the layout.
type FS struct {
	r        io.ReaderAt
	table    int64 // byte offset of the first FAT
	data     int64 // of cluster 2
	cluster  int64 // bytes
	clusters uint32
	root     uint32
}

// Extent is a part of a file: length bytes at offset at of the file system.
type Extent struct{ At, Length int64 }

// Open reads the boot sector of a file system of size bytes.
func Open(r io.ReaderAt, size int64) (*FS, error) {
	b := make([]byte, sectorSize)
	if _, err := r.ReadAt(b, 0); err != nil {
		return nil, fmt.Errorf("open FAT: %w", err)
	}
	le := binary.LittleEndian
	perCluster, reserved, fats := int64(b[13]), int64(le.Uint16(b[14:])), int64(b[16])
	total, perFAT := int64(le.Uint32(b[32:])), int64(le.Uint32(b[36:]))
	switch {
	case b[510] != 0x55 || b[511] != 0xaa:
		return nil, fmt.Errorf("open FAT: %w: no boot sector", ErrDamaged)
	case le.Uint16(b[11:]) != sectorSize || perCluster == 0 || perCluster&(perCluster-1) != 0 || reserved == 0 || fats == 0 || fats > 2:
		return nil, fmt.Errorf("open FAT: %w: boot sector: sectors of %d bytes, clusters of %d, %d reserved, %d tables",
			ErrDamaged, le.Uint16(b[11:]), perCluster, reserved, fats)
	case le.Uint16(b[17:]) != 0 || le.Uint16(b[22:]) != 0 || perFAT == 0:
		return nil, fmt.Errorf("open FAT: %w: not FAT32", ErrDamaged)
	}
	data := reserved + fats*perFAT
	if total <= data || total > size/sectorSize {
		return nil, fmt.Errorf("open FAT: %w: %d sectors, %d of them tables, in a partition of %d", ErrDamaged, total, data, size/sectorSize)
	}
	f := &FS{
		r: r, table: reserved * sectorSize, data: data * sectorSize, cluster: perCluster * sectorSize,
		clusters: uint32((total - data) / perCluster), root: le.Uint32(b[44:]),
	}
	f.clusters = min(f.clusters, uint32(min(perFAT*sectorSize/4, endOfChain))-firstData)
	return f, nil
}

// chain calls visit with the byte offset of each cluster from first on, until
// visit says that it has enough. It ends with an error where the chain is
// broken, longer than the file system, or goes on although more is wanted.
func (f *FS) chain(first uint32, visit func(at int64) (more bool, err error)) error {
	sector, buf := int64(-1), make([]byte, sectorSize)
	c := first
	for range f.clusters {
		if c < firstData || c >= f.clusters+firstData {
			return fmt.Errorf("%w: cluster %d", ErrDamaged, c)
		}
		more, err := visit(f.data + int64(c-firstData)*f.cluster)
		if err != nil || !more {
			return err
		}
		at := f.table + int64(c)*4
		if s := at / sectorSize; s != sector {
			if _, err := f.r.ReadAt(buf, s*sectorSize); err != nil {
				return err
			}
			sector = s
		}
		if c = binary.LittleEndian.Uint32(buf[at%sectorSize:]) & 0x0fffffff; c >= endOfChain {
			return io.EOF
		}
	}
	return fmt.Errorf("%w: a chain of clusters without end", ErrDamaged)
}

// node is a file or a folder.
type node struct {
	first  uint32
	size   int64
	folder bool
}

// find looks for name in the folder that begins at first.
func (f *FS) find(first uint32, name string) (found node, err error) {
	var (
		long  longNames
		block = make([]byte, f.cluster)
		read  int64
		ok    bool
	)
	err = f.chain(first, func(at int64) (bool, error) {
		if read += f.cluster; read > maxFolder {
			return false, fmt.Errorf("%w: a folder of %d bytes", ErrDamaged, read)
		}
		if _, err := f.r.ReadAt(block, at); err != nil {
			return false, err
		}
		for e := block; len(e) >= dirEntry; e = e[dirEntry:] {
			switch {
			case e[0] == 0:
				return false, nil
			case e[0] == 0xe5:
				long.reset()
			case e[11]&0x3f == longName:
				long.add(e)
			case e[11]&label != 0:
				long.reset()
			default:
				if strings.EqualFold(long.take(e), name) || strings.EqualFold(shortName(e), name) {
					found = node{
						first: uint32(binary.LittleEndian.Uint16(e[20:]))<<16 | uint32(binary.LittleEndian.Uint16(e[26:])),
						size:  int64(binary.LittleEndian.Uint32(e[28:])), folder: e[11]&folder != 0,
					}
					ok = true
					return false, nil
				}
			}
		}
		return true, nil
	})
	if err != nil && !errors.Is(err, io.EOF) {
		return node{}, err
	}
	if !ok {
		return node{}, ErrNotExist
	}
	return found, nil
}

// lookup finds the file at the slash-separated path.
func (f *FS) lookup(path string) (node, error) {
	n := node{first: f.root, folder: true}
	for name := range strings.SplitSeq(strings.Trim(path, "/"), "/") {
		if !n.folder {
			return node{}, ErrNotExist
		}
		var err error
		if n, err = f.find(n.first, name); err != nil {
			return node{}, err
		}
	}
	if n.folder {
		return node{}, fmt.Errorf("%w: it is a folder", ErrNotExist)
	}
	return n, nil
}

// Extents returns where the file at path is, and its size in bytes. The error
// is ErrNotExist when there is no such file, ErrDamaged when it is there and
// cannot be read.
func (f *FS) Extents(path string) (parts []Extent, size int64, err error) {
	n, err := f.lookup(path)
	if err != nil {
		return nil, 0, fmt.Errorf("%s: %w", path, err)
	}
	parts, err = f.extents(n, n.size)
	if err != nil {
		return nil, 0, fmt.Errorf("%s: %w", path, err)
	}
	return parts, n.size, nil
}

// extents returns where the first length bytes of a file are.
func (f *FS) extents(n node, length int64) (parts []Extent, err error) {
	if n.size > int64(f.clusters)*f.cluster {
		return nil, fmt.Errorf("%w: a file of %d bytes", ErrDamaged, n.size)
	}
	if length == 0 {
		return nil, nil
	}
	left := length
	err = f.chain(n.first, func(at int64) (bool, error) {
		length := min(left, f.cluster)
		if last := len(parts) - 1; last >= 0 && parts[last].At+parts[last].Length == at {
			parts[last].Length += length
		} else {
			parts = append(parts, Extent{at, length})
		}
		left -= length
		return left > 0, nil
	})
	if errors.Is(err, io.EOF) {
		err = fmt.Errorf("%w: the chain of clusters ends %d bytes early", ErrDamaged, left)
	}
	return parts, err
}

// Size returns the length in bytes that the folder tells of the file at path.
func (f *FS) Size(path string) (int64, error) {
	n, err := f.lookup(path)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", path, err)
	}
	return n.size, nil
}

// Head returns the first n bytes of the file at path, or all when it has
// fewer. Its errors are those of Extents, of the part that is read.
func (f *FS) Head(path string, n int) ([]byte, error) {
	file, err := f.lookup(path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	size := min(int64(n), file.size)
	parts, err := f.extents(file, size)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	data := make([]byte, size)
	rest := data
	for _, p := range parts {
		if _, err := f.r.ReadAt(rest[:p.Length], p.At); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		rest = rest[p.Length:]
	}
	return data, nil
}

// longNames collects the entries of a long name, which come before the short
// one, the last part first.
type longNames struct {
	units [13 * maxNameSlot]uint16
	slots int // of the whole name
	next  int // number of the slot that must come next; 0 when all are there
	sum   byte
}

func (l *longNames) reset() { *l = longNames{} }

func (l *longNames) add(e []byte) {
	number := int(e[0] & 0x1f)
	if e[0]&0x40 != 0 && number >= 1 && number <= maxNameSlot {
		l.reset()
		l.slots, l.next, l.sum = number, number, e[13]
	}
	if number == 0 || number != l.next || e[13] != l.sum {
		l.reset()
		return
	}
	l.next--
	units := l.units[(number-1)*13:]
	for i, at := range [13]int{1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30} {
		units[i] = binary.LittleEndian.Uint16(e[at:])
	}
}

// take returns the long name that belongs to the short entry e, or nothing.
func (l *longNames) take(e []byte) string {
	defer l.reset()
	var sum byte
	for _, c := range e[:11] {
		sum = sum>>1 | sum<<7
		sum += c
	}
	if l.slots == 0 || l.next != 0 || sum != l.sum {
		return ""
	}
	units := l.units[:l.slots*13]
	for i, u := range units {
		if u == 0 {
			units = units[:i]
			break
		}
	}
	return string(utf16.Decode(units))
}

// shortName is the 8.3 name of an entry.
func shortName(e []byte) string {
	name := strings.TrimRight(string(e[:8]), " ")
	if suffix := strings.TrimRight(string(e[8:11]), " "); suffix != "" {
		name += "." + suffix
	}
	return name
}
