package damage

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"

	"github.com/pierrec/lz4/v4"
)

// A snapshot is two files. The one with the data, `snapshot-<term>-<index>-<ms>`,
// is an LZ4 frame with the content's length and checksum; the one beside it,
// `.meta`, is u64 format, checksum, index and length of the configuration and
// then the configuration (src/raft/uv_snapshot.c, uv_fs.c). The meta file is
// written first, and removed first; each appears whole, by a rename.
const (
	metaHeader = 32
	maxConfig  = 1 << 20
	metaSuffix = ".meta"
)

type snapshot struct {
	name              string // Without suffix.
	term, index, time uint64
	meta, data        bool
	size              int64 // Of the data.
}

// before is the order in which dqlite prefers snapshots: the last one wins.
func (s snapshot) before(t snapshot) bool {
	switch {
	case s.term != t.term:
		return s.term < t.term
	case s.index != t.index:
		return s.index < t.index
	default:
		return s.time < t.time
	}
}

// checkMeta checks the content of a .meta file as uvSnapshotLoadMeta does.
func checkMeta(data []byte) error {
	if len(data) < metaHeader {
		return fmt.Errorf("%d bytes, less than its header of %d", len(data), metaHeader)
	}
	if format := binary.LittleEndian.Uint64(data); format != diskFormat {
		return fmt.Errorf("the format is %d instead of %d", format, diskFormat)
	}
	length := binary.LittleEndian.Uint64(data[24:])
	if length == 0 || length > maxConfig {
		return fmt.Errorf("a configuration of %d bytes", length)
	}
	if uint64(len(data)-metaHeader) < length {
		return fmt.Errorf("%d bytes of a configuration of %d", len(data)-metaHeader, length)
	}
	if sum := binary.LittleEndian.Uint64(data[8:]); uint64(checksum(data[16:metaHeader+length])) != sum&math.MaxUint32 {
		return errors.New("the checksum does not match")
	}
	return nil
}

// checkFrame reads an LZ4 frame to its end and compares its checksums. It
// wants what dqlite writes: a content length and a content checksum, and
// nothing behind the frame.
func checkFrame(r io.Reader) error {
	var head [15]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return frameError(err)
	}
	const magic = 0x184d2204
	if m := binary.LittleEndian.Uint32(head[:]); m != magic {
		return fmt.Errorf("it starts with %08x and not as an LZ4 frame", m)
	}
	// Version 01, content length, content checksum; blocks may depend on
	// each other and have no checksums of their own.
	const version, length, sum = 0x40, 0x08, 0x04
	if f := head[4]; f&0xc0 != version || f&length == 0 || f&sum == 0 {
		return fmt.Errorf("the LZ4 frame has flags %02x", f)
	}
	want := binary.LittleEndian.Uint64(head[6:])
	exact := &exactReader{head: head[:], r: r}
	z := lz4.NewReader(exact)
	n, err := io.Copy(io.Discard, io.LimitReader(z, int64(min(want, math.MaxInt64-1))+1))
	if err != nil {
		return frameError(err)
	}
	if uint64(n) != want {
		return fmt.Errorf("%d bytes instead of %d", n, want)
	}
	if extra, err := exact.Read(head[:1]); extra != 0 || !errors.Is(err, io.EOF) {
		return errors.New("there is more behind its end")
	}
	return nil
}

func frameError(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("it ends too early")
	}
	return err
}

// exactReader gives what was read already, then the rest.
type exactReader struct {
	head []byte
	r    io.Reader
}

func (e *exactReader) Read(p []byte) (int, error) {
	if len(e.head) > 0 {
		n := copy(p, e.head)
		e.head = e.head[n:]
		return n, nil
	}
	return e.r.Read(p)
}

// checkSnapshot reads a snapshot's files to their ends.
func (in *inspection) checkSnapshot(s snapshot, severity Severity, note string) {
	bad := func(file string, err error) {
		var path *os.PathError
		if errors.As(err, &path) {
			in.add(unreadable(severity, file, err))
			return
		}
		in.add(Finding{Severity: severity, Kind: Snapshot, File: file, Offset: -1, Text: fmt.Sprintf("%v%s", err, note)})
	}
	meta := s.name + metaSuffix
	data, err := in.read(meta, metaHeader+maxConfig)
	if err == nil {
		err = checkMeta(data)
	}
	if err != nil {
		bad(meta, err)
	}
	f, err := in.openFile(s.name)
	if err == nil {
		err = checkFrame(f)
		_ = f.Close()
	}
	if err != nil {
		bad(s.name, err)
	}
}
