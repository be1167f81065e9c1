package snapshot

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"slices"
)

const (
	pageSize    = 4096 // of the files written here; a file tells its own
	minPageSize = 512
	maxPageSize = 64 << 10
	// nodeSize is how much a node holds before the next begins: several
	// pages, so that little is lost at the end of each to values that do
	// not fit.
	nodeSize = 16 << 10
	// firstPage is the first one of the trees: two meta pages and the list of
	// free pages come before.
	firstPage = 3
)

// pageWriter writes a bbolt file from its first tree page on, once and in
// order; finish writes the pages before.
type pageWriter struct {
	file interface {
		io.Writer
		io.WriterAt
	}
	out  *bufio.Writer
	next uint64 // page
	node []byte // reused
}

// newPageWriter wants an empty file.
func newPageWriter(file interface {
	io.Writer
	io.WriterAt
}) (*pageWriter, error) {
	w := &pageWriter{file: file, out: bufio.NewWriterSize(file, 256<<10), next: firstPage}
	_, err := w.out.Write(make([]byte, firstPage*pageSize))
	return w, err
}

// write adds one node and returns its page.
func (w *pageWriter) write(flags uint16, elements []element) (uint64, error) {
	w.node = append(w.node[:0], make([]byte, headerSize)...)
	w.node = appendNode(w.node, flags, elements)
	pages := (len(w.node) + pageSize - 1) / pageSize
	h := header{id: w.next, flags: flags, count: len(elements), overflow: uint32(pages - 1)}
	h.append(w.node[:0])
	w.node = append(w.node, make([]byte, pages*pageSize-len(w.node))...)
	_, err := w.out.Write(w.node)
	w.next += uint64(pages)
	return h.id, err
}

// finish writes the root tree, which holds buckets with the pages of their
// roots, then the pages at the start. It returns the size of the file.
func (w *pageWriter) finish(buckets map[string]uint64) (int64, error) {
	t := tree{pages: w}
	for _, name := range slices.Sorted(maps.Keys(buckets)) {
		value := make([]byte, bucketSize)
		binary.LittleEndian.PutUint64(value, buckets[name])
		if err := t.putElement(element{flags: bucketElement, key: []byte(name), value: value}); err != nil {
			return 0, err
		}
	}
	root, err := t.finish()
	if err != nil {
		return 0, err
	}
	if err := w.out.Flush(); err != nil {
		return 0, err
	}
	head := make([]byte, 0, firstPage*pageSize)
	for id := range uint64(2) {
		head = header{id: id, flags: metaPage}.append(head)
		// A transaction's metadata is on the page of its number modulo two.
		head = meta{pageSize: pageSize, root: root, pages: w.next, freelist: 2, transaction: 2 - id}.append(head)
		head = append(head, make([]byte, pageSize-headerSize-metaSize)...)
	}
	head = header{id: 2, flags: freelistPage}.append(head)
	_, err = w.file.WriteAt(head, 0)
	return int64(w.next) * pageSize, err
}

// tree builds one bucket from its leaves up. Keys come in ascending order.
type tree struct {
	pages    *pageWriter
	last     []byte
	elements []element // of the leaf being filled
	size     int
	leaves   []element // first key and page of each leaf written
}

// put adds a key, which is not empty and greater than the one before.
func (t *tree) put(key, value []byte) error {
	return t.putElement(element{key: bytes.Clone(key), value: bytes.Clone(value)})
}

func (t *tree) putElement(e element) error {
	if bytes.Compare(e.key, t.last) <= 0 {
		return fmt.Errorf("key %q after %q: not in ascending order", e.key, t.last)
	}
	t.last = e.key
	size := elementSize + len(e.key) + len(e.value)
	if len(t.elements) > 0 && t.size+size > nodeSize-headerSize {
		if err := t.flush(); err != nil {
			return err
		}
	}
	t.elements = append(t.elements, e)
	t.size += size
	return nil
}

// flush writes the leaf being filled.
func (t *tree) flush() error {
	id, err := t.pages.write(leafPage, t.elements)
	if err != nil {
		return err
	}
	first := element{page: id}
	if len(t.elements) > 0 {
		first.key = t.elements[0].key
	}
	t.leaves = append(t.leaves, first)
	clear(t.elements)
	t.elements, t.size = t.elements[:0], 0
	return nil
}

// branchSize is the greatest number of children of a branch: with keys of
// revisions, 17 bytes, a node is then about nodeSize.
const branchSize = 400

// finish writes what is left and the branches above, and returns the page of
// the root. An empty bucket is one empty leaf.
func (t *tree) finish() (uint64, error) {
	if len(t.elements) > 0 || len(t.leaves) == 0 {
		if err := t.flush(); err != nil {
			return 0, err
		}
	}
	level := t.leaves
	for len(level) > 1 {
		// In equal parts: a branch of one child is of no use to anybody.
		parts := (len(level) + branchSize - 1) / branchSize
		above := make([]element, 0, parts)
		for i := range parts {
			children := level[len(level)*i/parts : len(level)*(i+1)/parts]
			id, err := t.pages.write(branchPage, children)
			if err != nil {
				return 0, err
			}
			above = append(above, element{key: children[0].key, page: id})
		}
		level = above
	}
	return level[0].page, nil
}
