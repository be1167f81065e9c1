package sweep

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// SectorSize is the unit that a disk writes whole or not at all, in bytes.
const SectorSize = 512

// Flag says what an entry of a log is.
type Flag uint64

// The flags of Linux's dm-log-writes, whose format QEMU's blklogwrites has too.
const (
	Flush    Flag = 1 << iota // all that was completed before is durable
	FUA                       // the data are durable when the write completes
	Discard                   // the sectors' content is gone
	Mark                      // no request: a name for this point
	Metadata                  // a file system's own data; means nothing here

	allFlags = Flush | FUA | Discard | Mark | Metadata
)

// Entry is one completed request. A flush that carries data comes before them.
type Entry struct {
	Flags  Flag
	Sector int64  // first sector on the disk
	Count  int64  // sectors
	Data   int64  // where the data are in the log, in bytes; unless it is a write, nowhere
	End    int64  // where the entry ends in the log, in bytes
	Text   string // of a mark
}

// writes reports whether the entry changes the disk.
func (e Entry) writes() bool { return e.Count > 0 && e.Flags&Mark == 0 }

const (
	logMagic   = 0x6a736677736872
	logVersion = 1
	entrySize  = 32
	maxEntries = 1 << 26
)

// ErrLog says that something is no log of writes.
var ErrLog = errors.New("not a log of writes")

// ReadLog reads the entries of a log of size bytes; of the data it reads none.
// disk is the size in bytes of the disk whose writes they are. An empty log is
// what QEMU leaves of a disk that was not written to. Entries after the last
// flush that the log's head counts are not read: who wrote them was killed
// before they were whole.
//
// Format: Linux, Documentation/admin-guide/device-mapper/log-writes.rst and
// drivers/md/dm-log-writes.c; QEMU, block/blklogwrites.c. QEMU leaves data_len
// 0 and has the data of flushes, which have no sectors, nowhere.
func ReadLog(r io.ReaderAt, size, disk int64) ([]Entry, error) {
	if size == 0 {
		return nil, nil
	}
	head := make([]byte, SectorSize)
	if _, err := r.ReadAt(head, 0); err != nil {
		return nil, fmt.Errorf("read log: head: %w: %w", ErrLog, err)
	}
	le := binary.LittleEndian
	n := le.Uint64(head[16:])
	switch {
	case le.Uint64(head) != logMagic:
		return nil, fmt.Errorf("read log: %w: magic number %#x", ErrLog, le.Uint64(head))
	case le.Uint64(head[8:]) != logVersion:
		return nil, fmt.Errorf("read log: %w: version %d", ErrLog, le.Uint64(head[8:]))
	case le.Uint32(head[24:]) != SectorSize:
		return nil, fmt.Errorf("read log: %w: sectors of %d bytes; want %d", ErrLog, le.Uint32(head[24:]), SectorSize)
	case n > maxEntries || int64(n) > size/SectorSize:
		return nil, fmt.Errorf("read log: %w: %d entries in %d bytes", ErrLog, n, size)
	}
	entries := make([]Entry, 0, n)
	for at := int64(SectorSize); uint64(len(entries)) < n; {
		if _, err := r.ReadAt(head, at); err != nil {
			return nil, fmt.Errorf("read log: entry %d: %w: %w", len(entries), ErrLog, err)
		}
		e, err := readEntry(head, at, size, disk/SectorSize)
		if err != nil {
			return nil, fmt.Errorf("read log: entry %d: %w: %w", len(entries), ErrLog, err)
		}
		entries = append(entries, e)
		at = e.End
	}
	return entries, nil
}

// readEntry reads the sector at the offset at of a log of size bytes.
func readEntry(head []byte, at, size, sectors int64) (Entry, error) {
	le := binary.LittleEndian
	sector, count, flags, length := le.Uint64(head), le.Uint64(head[8:]), Flag(le.Uint64(head[16:])), le.Uint64(head[24:])
	e := Entry{Flags: flags, Sector: int64(sector), Count: int64(count), End: at + SectorSize}
	if flags&^allFlags != 0 {
		return e, fmt.Errorf("flags %#x", uint64(flags))
	}
	if flags&Mark != 0 {
		if length > SectorSize-entrySize || count != 0 || flags != Mark {
			return e, fmt.Errorf("a mark of %d bytes and %d sectors with flags %#x", length, count, uint64(flags))
		}
		e.Text = string(bytes.TrimRight(head[entrySize:entrySize+length], "\x00"))
		return e, nil
	}
	if count == 0 {
		if flags&Flush == 0 {
			return e, fmt.Errorf("no sectors and no flush")
		}
		return e, nil
	}
	if sector > uint64(sectors) || count > uint64(sectors)-sector {
		return e, fmt.Errorf("%d sectors from %d of a disk of %d", count, sector, sectors)
	}
	if flags&Discard != 0 {
		return e, nil
	}
	e.Data, e.End = e.End, e.End+int64(count)*SectorSize
	if e.End > size {
		return e, fmt.Errorf("it ends at byte %d of %d", e.End, size)
	}
	return e, nil
}

// appendEntry appends the sector that an entry of a log begins with.
func appendEntry(b []byte, e Entry) []byte {
	le := binary.LittleEndian
	end := len(b) + SectorSize
	b = le.AppendUint64(b, uint64(e.Sector))
	b = le.AppendUint64(b, uint64(e.Count))
	b = le.AppendUint64(b, uint64(e.Flags))
	b = le.AppendUint64(b, uint64(len(e.Text)))
	b = append(b, e.Text...)
	return append(b, make([]byte, end-len(b))...)
}

// appendHead appends the first sector of a log of n entries.
func appendHead(b []byte, n int) []byte {
	le := binary.LittleEndian
	end := len(b) + SectorSize
	b = le.AppendUint64(b, logMagic)
	b = le.AppendUint64(b, logVersion)
	b = le.AppendUint64(b, uint64(n))
	b = le.AppendUint32(b, SectorSize)
	return append(b, make([]byte, end-len(b))...)
}
