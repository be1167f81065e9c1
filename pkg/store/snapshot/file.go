package snapshot

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// maxDepth is far more than a tree of 2^63 bytes has levels.
const maxDepth = 20

// file reads a bbolt file that nobody writes to. It believes nothing: every
// position is checked, and each page is visited once at most.
type file struct {
	r        io.ReaderAt
	pageSize int
	pages    uint64
	buckets  map[string]bucket
	seen     []uint64 // bit set of pages that a check has visited; nil outside one
}

// bucket is where a bucket's tree begins.
type bucket struct {
	root   uint64
	inline []byte // the only node of a small bucket, root being 0
}

// openFile reads the metadata and the root tree of a file of size bytes.
func openFile(r io.ReaderAt, size int64) (*file, error) {
	m, err := readMeta(r, size)
	if err != nil {
		return nil, err
	}
	if m.pages > uint64(size)/uint64(m.pageSize) {
		return nil, fmt.Errorf("%d pages of %d bytes in a file of %d bytes", m.pages, m.pageSize, size)
	}
	f := &file{r: r, pageSize: m.pageSize, pages: m.pages, buckets: map[string]bucket{}}
	err = f.walkFrom(bucket{root: m.root}, func(e element) error {
		if e.flags&bucketElement == 0 || len(e.value) < bucketSize {
			return fmt.Errorf("key %q of the root is no bucket", e.key)
		}
		b := bucket{root: binary.LittleEndian.Uint64(e.value)}
		if b.root == 0 {
			b.inline = bytes.Clone(e.value[bucketSize:])
		}
		f.buckets[string(e.key)] = b
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list of buckets: %w", err)
	}
	return f, nil
}

// readMeta returns the newer valid one of the two copies of the metadata. The
// second one's place follows from the page size, which the first tells; where
// the first is damaged every size is tried.
func readMeta(r io.ReaderAt, size int64) (meta, error) {
	read := func(at int64) (meta, error) {
		if at+headerSize+metaSize > size {
			return meta{}, fmt.Errorf("the file ends at byte %d", size)
		}
		b := make([]byte, headerSize+metaSize)
		if _, err := r.ReadAt(b, at); err != nil {
			return meta{}, err
		}
		return parseMeta(b)
	}
	first, firstErr := read(0)
	if firstErr == nil {
		second, err := read(int64(first.pageSize))
		if err == nil && second.pageSize == first.pageSize && second.transaction > first.transaction {
			return second, nil
		}
		return first, nil
	}
	for at := int64(minPageSize); at <= maxPageSize; at *= 2 {
		if m, err := read(at); err == nil && int64(m.pageSize) == at {
			return m, nil
		}
	}
	return meta{}, fmt.Errorf("no bbolt database: %w", firstErr)
}

// walk calls fn for every key of a bucket in order. What fn is given is valid
// during the call. A bucket that does not exist is empty.
func (f *file) walk(name string, fn func(key, value []byte) error) error {
	b, ok := f.buckets[name]
	if !ok {
		return nil
	}
	err := f.walkFrom(b, func(e element) error {
		if e.flags&bucketElement != 0 {
			return fmt.Errorf("key %q is a bucket inside a bucket", e.key)
		}
		return fn(e.key, e.value)
	})
	if err != nil {
		return fmt.Errorf("bucket %q: %w", name, err)
	}
	return nil
}

func (f *file) walkFrom(b bucket, fn func(element) error) error {
	w := walk{file: f, fn: fn}
	if b.root == 0 {
		if len(b.inline) < headerSize {
			return fmt.Errorf("a page of %d bytes", len(b.inline))
		}
		return w.leaf(0, b.inline, nil)
	}
	return w.node(b.root, nil, 0)
}

// walk is one pass through one tree.
type walk struct {
	file    *file
	fn      func(element) error
	last    []byte
	visited uint64
	buffers [maxDepth][]byte
}

// node visits the tree at page id, whose first key its parent tells.
func (w *walk) node(id uint64, first []byte, depth int) error {
	if depth == maxDepth {
		return fmt.Errorf("page %d: more than %d levels", id, maxDepth)
	}
	node, err := w.read(id, depth)
	if err != nil {
		return fmt.Errorf("page %d: %w", id, err)
	}
	h := parseHeader(node)
	if h.flags == leafPage {
		return w.leaf(id, node, first)
	}
	for i := range h.count {
		e, err := parseElement(node, h, i)
		if err != nil {
			return fmt.Errorf("page %d: %w", id, err)
		}
		if err := w.ordered(e.key); i > 0 && err != nil {
			return fmt.Errorf("page %d: %w", id, err)
		}
		if err := follows(e.key, first); i == 0 && err != nil {
			return fmt.Errorf("page %d: %w", id, err)
		}
		if err := w.node(e.page, e.key, depth+1); err != nil {
			return err
		}
	}
	return nil
}

func (w *walk) leaf(id uint64, node, first []byte) error {
	h := parseHeader(node)
	if h.flags != leafPage {
		return fmt.Errorf("page %d: flags %#x; want %#x, a leaf", id, h.flags, leafPage)
	}
	for i := range h.count {
		e, err := parseElement(node, h, i)
		if err == nil {
			err = w.ordered(e.key)
		}
		if err == nil && i == 0 {
			err = follows(e.key, first)
		}
		if err != nil {
			return fmt.Errorf("page %d: %w", id, err)
		}
		w.last = append(w.last[:0], e.key...)
		if err := w.fn(e); err != nil {
			return err
		}
	}
	return nil
}

func (w *walk) ordered(key []byte) error {
	if bytes.Compare(key, w.last) <= 0 {
		return fmt.Errorf("key %q after %q: not in order", key, w.last)
	}
	return nil
}

func follows(key, parent []byte) error {
	if bytes.Compare(key, parent) < 0 {
		return fmt.Errorf("first key %q is before %q, which its parent tells", key, parent)
	}
	return nil
}

// read returns the node at page id with its overflow.
func (w *walk) read(id uint64, depth int) ([]byte, error) {
	f := w.file
	if id < 2 || id >= f.pages {
		return nil, fmt.Errorf("out of the file's %d pages", f.pages)
	}
	if w.visited++; w.visited > f.pages {
		return nil, errors.New("the tree has a cycle")
	}
	offset := int64(id) * int64(f.pageSize)
	buffer := grow(w.buffers[depth], f.pageSize)
	if _, err := f.r.ReadAt(buffer, offset); err != nil {
		return nil, err
	}
	h := parseHeader(buffer)
	switch {
	case h.id != id:
		return nil, fmt.Errorf("says that it is page %d", h.id)
	case h.flags != leafPage && h.flags != branchPage:
		return nil, fmt.Errorf("flags %#x; want a leaf or a branch", h.flags)
	case uint64(h.overflow) >= f.pages-id:
		return nil, fmt.Errorf("%d pages follow it, beyond the file's %d", h.overflow, f.pages)
	}
	if h.overflow > 0 {
		buffer = grow(buffer, (int(h.overflow)+1)*f.pageSize)
		if _, err := f.r.ReadAt(buffer[f.pageSize:], offset+int64(f.pageSize)); err != nil {
			return nil, err
		}
	}
	w.buffers[depth] = buffer
	return buffer, f.see(id, h.overflow)
}

// see notes that a check has come by pages.
func (f *file) see(id uint64, overflow uint32) error {
	if f.seen == nil {
		return nil
	}
	for p := id; p <= id+uint64(overflow); p++ {
		if f.seen[p/64]&(1<<(p%64)) != 0 {
			return errors.New("belongs to two trees")
		}
		f.seen[p/64] |= 1 << (p % 64)
	}
	return nil
}

// grow returns b with n bytes, of which it keeps those it had.
func grow(b []byte, n int) []byte {
	if n <= cap(b) {
		return b[:n]
	}
	return append(b, make([]byte, n-len(b))...)
}
