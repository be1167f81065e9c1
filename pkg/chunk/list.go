package chunk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"path"
	"strings"
)

const (
	sizesMagic  = "CAIRNSZ1"
	deltasMagic = "CAIRNDL1"
	// MaxList is the longest list of sizes or of deltas that is read, in
	// bytes: each takes less than the index that it belongs to.
	MaxList = MaxIndex
	// maxVersion is the longest version of a release, in bytes.
	maxVersion = 64
)

// ErrList says that a file is no list of sizes or deltas of the index at hand.
var ErrList = errors.New("not a list that fits the index")

// SizesPath is where the list of sizes lies that belongs to an index.
func SizesPath(index string) string { return stem(index) + ".sizes" }

// DeltasPath is where the list of deltas lies that belongs to an index and a
// version that machines come from.
func DeltasPath(index, version string) string { return stem(index) + ".from-" + version + ".deltas" }

func stem(index string) string { return strings.TrimSuffix(index, path.Ext(index)) }

// Sizes are the lengths in bytes of an index's chunks in the store, in the
// index's order and repeated like them; 0 for a chunk of zeros. They let a
// machine say what an update costs before it begins, and stop a store that sends
// more.
type Sizes []int

// Encode returns the file that DecodeSizes reads: a mark, the number of chunks,
// then each size, as the unsigned varints of encoding/binary.
func (s Sizes) Encode() ([]byte, error) {
	out := binary.AppendUvarint([]byte(sizesMagic), uint64(len(s)))
	for i, n := range s {
		if n < 0 || n > MaxStored {
			return nil, fmt.Errorf("encode sizes: chunk %d has %d bytes", i, n)
		}
		out = binary.AppendUvarint(out, uint64(n))
	}
	return out, nil
}

// DecodeSizes reads the sizes of x's chunks. Errors wrap ErrList.
func DecodeSizes(data []byte, x Index) (Sizes, error) {
	r, err := newReader(data, sizesMagic)
	if err != nil {
		return nil, err
	}
	if n := r.number(uint64(len(x.Chunks))); n != len(x.Chunks) {
		return nil, fmt.Errorf("%w: sizes of %d chunks for an index of %d", ErrList, n, len(x.Chunks))
	}
	sizes := make(Sizes, len(x.Chunks))
	for i, zero := range x.Zeros() {
		sizes[i] = r.number(MaxStored)
		if (sizes[i] == 0) != zero {
			r.fail("chunk %d weighs %d bytes", i, sizes[i])
		}
	}
	return sizes, r.end()
}

// Base is an image of an earlier release.
type Base struct {
	Version string
	SHA256  [32]byte // of the whole image
}

// Delta says that a chunk comes cheaper as the difference to a part of the base
// image.
type Delta struct {
	Chunk  int   // its number in the index; of a chunk that repeats, the first
	Offset int64 // of the dictionary in the base image
	Length int   // of the dictionary
	Size   int   // of the delta's file in the store
}

// Deltas are what an image offers to machines that run a certain earlier one.
type Deltas struct {
	Base Base
	List []Delta // by rising number of chunk
}

// Encode returns the file that DecodeDeltas reads: a mark, the base, the number
// of deltas, then each one's distance to the previous chunk, offset, length and
// size, as the unsigned varints of encoding/binary.
func (d Deltas) Encode() ([]byte, error) {
	if len(d.Base.Version) > maxVersion {
		return nil, fmt.Errorf("encode deltas: version of %d bytes", len(d.Base.Version))
	}
	out := binary.AppendUvarint([]byte(deltasMagic), uint64(len(d.Base.Version)))
	out = append(append(out, d.Base.Version...), d.Base.SHA256[:]...)
	out = binary.AppendUvarint(out, uint64(len(d.List)))
	last := -1
	for _, x := range d.List {
		if x.Chunk <= last || x.Offset < 0 || x.Offset > MaxLength || checkDictionary(x.Length) != nil || x.Size <= 0 || x.Size > MaxStored {
			return nil, fmt.Errorf("encode deltas: after chunk %d: %+v", last, x)
		}
		for _, v := range []int64{int64(x.Chunk - last), x.Offset, int64(x.Length), int64(x.Size)} {
			out = binary.AppendUvarint(out, uint64(v))
		}
		last = x.Chunk
	}
	return out, nil
}

// DecodeDeltas reads the deltas of x's chunks. Errors wrap ErrList.
func DecodeDeltas(data []byte, x Index) (Deltas, error) {
	r, err := newReader(data, deltasMagic)
	if err != nil {
		return Deltas{}, err
	}
	d := Deltas{}
	d.Base.Version = string(r.bytes(r.number(maxVersion)))
	copy(d.Base.SHA256[:], r.bytes(len(d.Base.SHA256)))
	last, chunks := -1, uint64(len(x.Chunks))
	for range r.number(chunks) {
		e := Delta{Chunk: last + r.number(chunks), Offset: int64(r.number(MaxLength)), Length: r.number(MaxDictionary), Size: r.number(MaxStored)}
		if r.err == nil && (e.Chunk <= last || e.Chunk >= len(x.Chunks) || e.Length < minDictionary || e.Size == 0) {
			r.fail("after chunk %d: %+v", last, e)
		}
		if r.err != nil {
			return Deltas{}, r.err
		}
		d.List = append(d.List, e)
		last = e.Chunk
	}
	return d, r.end()
}

// reader takes numbers off a list and keeps the first error.
type reader struct {
	rest *bytes.Reader
	err  error
}

func newReader(data []byte, magic string) (*reader, error) {
	rest, ok := bytes.CutPrefix(data, []byte(magic))
	if !ok || len(data) > MaxList {
		return nil, fmt.Errorf("%w: another file type, or longer than %d bytes", ErrList, MaxList)
	}
	return &reader{rest: bytes.NewReader(rest)}, nil
}

func (r *reader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf("%w: "+format, append([]any{ErrList}, args...)...)
	}
}

func (r *reader) number(limit uint64) int {
	if r.err != nil {
		return 0
	}
	v, err := binary.ReadUvarint(r.rest)
	if err != nil || v > limit {
		r.fail("number %d; want at most %d", v, limit)
		return 0
	}
	return int(v)
}

func (r *reader) bytes(n int) []byte {
	if n > r.rest.Len() {
		r.fail("torn")
		return nil
	}
	b := make([]byte, n)
	if _, err := r.rest.Read(b); err != nil && n > 0 {
		r.fail("torn")
	}
	return b
}

func (r *reader) end() error {
	if r.err == nil && r.rest.Len() > 0 {
		r.fail("%d bytes after its end", r.rest.Len())
	}
	return r.err
}
