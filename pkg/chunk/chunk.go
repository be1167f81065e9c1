// Package chunk cuts images into chunks and puts them together again: casync's
// content-defined chunks and indexes, a store of them, and deltas of chunks.
//
// A chunk is named by the SHA-512/256 of its bytes, so whoever has the bytes
// can prove it: a machine trusts an index, which is signed, and no store. Chunks
// end where a rolling hash of the content says so, so what was inserted or
// removed early in an image does not change the chunks after it.
//
// Three files go with an image. The index (.caibx) lists its chunks in order;
// casync and desync read it. Sizes lists what each chunk weighs in the store.
// Deltas lists the chunks that come cheaper from an image that the machine has
// already, and where in that image to look. The store's chunks (.cacnk) are
// zstd frames, as desync writes them.
//
// Formats: https://github.com/systemd/casync (src/caformat.h, src/cachunker.c)
// and https://github.com/folbricht/desync, v1.0.0, by which testdata was made.
// They are written anew because desync is one package with the clients of three
// cloud stores: reading an index and splitting a file with it adds 7.8 MB and
// 300 packages to a static program (measured 2026-11), this package 0.3 MB.
package chunk

import (
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
)

// ErrMismatch says that bytes are not the chunk that they stand for.
var ErrMismatch = errors.New("not the chunk that the index names")

// ID is the SHA-512/256 of a chunk's bytes.
type ID [sha512.Size256]byte

// Sum returns the ID of data.
func Sum(data []byte) ID { return sha512.Sum512_256(data) }

// ParseID reads 64 hexadecimal digits.
func ParseID(s string) (ID, error) {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(ID{}) {
		return ID{}, fmt.Errorf("chunk id %q: not %d hexadecimal digits", s, 2*len(ID{}))
	}
	return ID(b), nil
}

// String is the ID in hexadecimal digits.
func (id ID) String() string { return hex.EncodeToString(id[:]) }

// ZeroID is the ID of size zero bytes.
func ZeroID(size int) ID { return Sum(make([]byte, size)) }

// folder is where a chunk's files are, relative to the release directory.
func (id ID) folder() string { return "chunks/" + hex.EncodeToString(id[:2]) + "/" }

// Path is where a release directory keeps the chunk.
func (id ID) Path() string { return id.folder() + id.String() + ".cacnk" }

// DeltaPath is where a release directory keeps the chunk's delta against b.
func (id ID) DeltaPath(b Base) string {
	return id.folder() + id.String() + "." + hex.EncodeToString(b.SHA256[:4]) + ".delta"
}

// Ref is a chunk that someone wants: what it must hash to, and its length.
type Ref struct {
	ID   ID
	Size int
}

// check returns an error that wraps ErrMismatch unless data is r's chunk.
func (r Ref) check(data []byte) error {
	if len(data) != r.Size {
		return fmt.Errorf("chunk %s: %d bytes instead of %d: %w", r.ID, len(data), r.Size, ErrMismatch)
	}
	if got := Sum(data); got != r.ID {
		return fmt.Errorf("chunk %s: content is %s: %w", r.ID, got, ErrMismatch)
	}
	return nil
}
