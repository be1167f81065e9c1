package snapshot

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
)

// The page format of bbolt 1.x, file format version 2, as its README and
// internal/common describe it. It uses the byte order of the machine, which
// is little-endian on every one that Cairn or an etcd of note runs on.
//
// A file is a sequence of pages. Pages 0 and 1 hold metadata, the valid one
// with the greater transaction counts. The others form B+trees, each node one
// page and so many directly after it ("overflow") as its content needs. The
// values of the root tree are buckets: trees of their own, or small ones as a
// page inside the value.
const (
	boltMagic   = 0xED0CDAED
	boltVersion = 2

	branchPage   = 0x01
	leafPage     = 0x02
	metaPage     = 0x04
	freelistPage = 0x10

	headerSize  = 16 // id 8, flags 2, count 2, overflow 4
	elementSize = 16 // leaf: flags 4, position 4, key size 4, value size 4; branch: position 4, key size 4, page 8
	metaSize    = 64
	bucketSize  = 16 // root page 8, sequence 8

	bucketElement = 0x01 // flag of a leaf element whose value is a bucket
)

// header is the start of every page.
type header struct {
	id       uint64
	flags    uint16
	count    int
	overflow uint32
}

func (h header) append(to []byte) []byte {
	to = binary.LittleEndian.AppendUint64(to, h.id)
	to = binary.LittleEndian.AppendUint16(to, h.flags)
	to = binary.LittleEndian.AppendUint16(to, uint16(h.count))
	return binary.LittleEndian.AppendUint32(to, h.overflow)
}

// parseHeader wants at least headerSize bytes.
func parseHeader(b []byte) header {
	return header{
		id: binary.LittleEndian.Uint64(b), flags: binary.LittleEndian.Uint16(b[8:]),
		count: int(binary.LittleEndian.Uint16(b[10:])), overflow: binary.LittleEndian.Uint32(b[12:]),
	}
}

// meta is the content of pages 0 and 1.
type meta struct {
	pageSize    int
	root        uint64 // page of the root tree
	pages       uint64 // number of pages in use
	freelist    uint64
	transaction uint64
}

func (m meta) append(to []byte) []byte {
	start := len(to)
	to = binary.LittleEndian.AppendUint32(to, boltMagic)
	to = binary.LittleEndian.AppendUint32(to, boltVersion)
	to = binary.LittleEndian.AppendUint32(to, uint32(m.pageSize))
	to = binary.LittleEndian.AppendUint32(to, 0) // Flags.
	to = binary.LittleEndian.AppendUint64(to, m.root)
	to = binary.LittleEndian.AppendUint64(to, 0) // Sequence.
	to = binary.LittleEndian.AppendUint64(to, m.freelist)
	to = binary.LittleEndian.AppendUint64(to, m.pages)
	to = binary.LittleEndian.AppendUint64(to, m.transaction)
	return binary.LittleEndian.AppendUint64(to, checksum(to[start:]))
}

// parseMeta reads the metadata at the start of a page; b holds at least
// headerSize and metaSize bytes.
func parseMeta(b []byte) (meta, error) {
	if h := parseHeader(b); h.flags != metaPage {
		return meta{}, fmt.Errorf("page flags %#x; want %#x, a meta page", h.flags, metaPage)
	}
	b = b[headerSize : headerSize+metaSize]
	if got := binary.LittleEndian.Uint32(b); got != boltMagic {
		return meta{}, fmt.Errorf("magic number %#x; want %#x", got, uint32(boltMagic))
	}
	if got := binary.LittleEndian.Uint32(b[4:]); got != boltVersion {
		return meta{}, fmt.Errorf("bbolt format version %d; want %d", got, boltVersion)
	}
	if got, want := binary.LittleEndian.Uint64(b[metaSize-8:]), checksum(b[:metaSize-8]); got != want {
		return meta{}, fmt.Errorf("checksum %#x; want %#x", got, want)
	}
	m := meta{
		pageSize:    int(binary.LittleEndian.Uint32(b[8:])),
		root:        binary.LittleEndian.Uint64(b[16:]),
		freelist:    binary.LittleEndian.Uint64(b[32:]),
		pages:       binary.LittleEndian.Uint64(b[40:]),
		transaction: binary.LittleEndian.Uint64(b[48:]),
	}
	if m.pageSize < minPageSize || m.pageSize > maxPageSize || m.pageSize&(m.pageSize-1) != 0 {
		return meta{}, fmt.Errorf("page size %d", m.pageSize)
	}
	return m, nil
}

func checksum(b []byte) uint64 {
	h := fnv.New64a()
	h.Write(b)
	return h.Sum64()
}

// element is one entry of a node. Of a branch the value is absent and page is
// the child whose first key is key.
type element struct {
	flags uint32
	key   []byte
	value []byte
	page  uint64
}

// appendNode appends the elements of a node, header not included. Positions
// count from the start of their own element.
func appendNode(to []byte, flags uint16, elements []element) []byte {
	data := len(elements) * elementSize
	for i, e := range elements {
		position := uint32(data - i*elementSize)
		if flags == leafPage {
			to = binary.LittleEndian.AppendUint32(to, e.flags)
			to = binary.LittleEndian.AppendUint32(to, position)
			to = binary.LittleEndian.AppendUint32(to, uint32(len(e.key)))
			to = binary.LittleEndian.AppendUint32(to, uint32(len(e.value)))
		} else {
			to = binary.LittleEndian.AppendUint32(to, position)
			to = binary.LittleEndian.AppendUint32(to, uint32(len(e.key)))
			to = binary.LittleEndian.AppendUint64(to, e.page)
		}
		data += len(e.key) + len(e.value)
	}
	for _, e := range elements {
		to = append(append(to, e.key...), e.value...)
	}
	return to
}

// parseElement reads element i of a node, header included in node. Key and
// value are parts of node.
func parseElement(node []byte, h header, i int) (element, error) {
	at := headerSize + i*elementSize
	if at+elementSize > len(node) {
		return element{}, fmt.Errorf("element %d of %d is beyond the page's end", i, h.count)
	}
	var e element
	var position, keySize, valueSize uint64
	if h.flags == leafPage {
		e.flags = binary.LittleEndian.Uint32(node[at:])
		position = uint64(binary.LittleEndian.Uint32(node[at+4:]))
		keySize = uint64(binary.LittleEndian.Uint32(node[at+8:]))
		valueSize = uint64(binary.LittleEndian.Uint32(node[at+12:]))
	} else {
		position = uint64(binary.LittleEndian.Uint32(node[at:]))
		keySize = uint64(binary.LittleEndian.Uint32(node[at+4:]))
		e.page = binary.LittleEndian.Uint64(node[at+8:])
	}
	start := uint64(at) + position
	if end := start + keySize + valueSize; end > uint64(len(node)) {
		return element{}, fmt.Errorf("element %d of %d reaches to byte %d of %d", i, h.count, end, len(node))
	}
	e.key = node[start : start+keySize]
	e.value = node[start+keySize : start+keySize+valueSize]
	if keySize == 0 {
		return element{}, fmt.Errorf("element %d of %d has no key", i, h.count)
	}
	return e, nil
}
