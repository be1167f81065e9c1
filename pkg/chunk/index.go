package chunk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Numbers of casync's index format (src/caformat.h), all little-endian.
const (
	indexType   = 0x96824d9c7b129ff9 // first block: flags and lengths
	tableType   = 0xe75b9e112f17417d // second block: offset of a chunk's end, id; for each chunk
	tableMarker = 0x4b4f050e5549ecd1 // last 40 bytes of the table
	flagSHA512  = 0x2000000000000000 // ids are SHA-512/256
	flagNoDump  = 0x8000000000000000 // what desync and casync also set; of no meaning for one file

	indexSize = 48
	itemSize  = 8 + 32
	// openEnd is the table's length in its own header: not known yet when
	// casync begins to write it.
	openEnd = ^uint64(0)
)

const (
	// MaxIndex is the longest index that is read, in bytes: 26,000 chunks.
	MaxIndex = 1 << 20
	// MaxLength is the longest image that an index may describe, in bytes.
	MaxLength = 64 << 30
)

// ErrIndex says that a file is no index, or one of another kind.
var ErrIndex = errors.New("not an index of chunks")

// Index is an image as a list of chunks. It is a value; its methods are safe
// for concurrent use while nobody changes it.
type Index struct {
	Params Params
	Chunks []Ref
}

// MakeIndex cuts what r gives.
func MakeIndex(r io.Reader, p Params) (Index, error) {
	x := Index{Params: p}
	for c, err := range Split(r, p) {
		if err != nil {
			return Index{}, fmt.Errorf("make index: %w", err)
		}
		x.Chunks = append(x.Chunks, Ref{c.ID, len(c.Data)})
	}
	return x, nil
}

// Length is the number of bytes that x describes.
func (x Index) Length() int64 {
	var n int64
	for _, c := range x.Chunks {
		n += int64(c.Size)
	}
	return n
}

// Zeros tells for each chunk whether it holds nothing but zero bytes. Such a
// chunk is neither stored nor fetched.
func (x Index) Zeros() []bool {
	known := map[int]ID{}
	zeros := make([]bool, len(x.Chunks))
	for i, c := range x.Chunks {
		id, ok := known[c.Size]
		if !ok {
			id = ZeroID(c.Size)
			known[c.Size] = id
		}
		zeros[i] = c.ID == id
	}
	return zeros
}

// Encode returns the file that DecodeIndex, casync and desync read.
func (x Index) Encode() ([]byte, error) {
	if err := x.check(); err != nil {
		return nil, fmt.Errorf("encode index: %w", err)
	}
	le := binary.LittleEndian
	out := make([]byte, 0, indexSize+16+(len(x.Chunks)+1)*itemSize)
	for _, v := range []uint64{
		indexSize, indexType, flagSHA512 | flagNoDump, uint64(x.Params.Min), uint64(x.Params.Avg), uint64(x.Params.Max),
		openEnd, tableType,
	} {
		out = le.AppendUint64(out, v)
	}
	var end uint64
	for _, c := range x.Chunks {
		end += uint64(c.Size)
		out = le.AppendUint64(out, end)
		out = append(out, c.ID[:]...)
	}
	table := uint64(len(out)-indexSize) + itemSize
	for _, v := range []uint64{0, 0, indexSize, table, tableMarker} {
		out = le.AppendUint64(out, v)
	}
	return out, nil
}

// check holds x to what DecodeIndex accepts.
func (x Index) check() error {
	if err := x.Params.Check(); err != nil {
		return err
	}
	if size := indexSize + 16 + (len(x.Chunks)+1)*itemSize; size > MaxIndex {
		return fmt.Errorf("%d chunks make an index of %d bytes; want at most %d: use longer chunks", len(x.Chunks), size, MaxIndex)
	}
	for i, c := range x.Chunks {
		last := i == len(x.Chunks)-1
		if c.Size <= 0 || c.Size > x.Params.Max || c.Size < x.Params.Min && !last {
			return fmt.Errorf("chunk %d has %d bytes; the index says %d to %d", i, c.Size, x.Params.Min, x.Params.Max)
		}
	}
	if n := x.Length(); n > MaxLength {
		return fmt.Errorf("image of %d bytes; want at most %d", n, int64(MaxLength))
	}
	return nil
}

// DecodeIndex reads an index of SHA-512/256 chunks. Errors wrap ErrIndex. It
// takes memory in proportion to data, and refuses more than MaxIndex bytes of it
// and whatever follows the index.
func DecodeIndex(data []byte) (Index, error) {
	x, err := decodeIndex(data)
	if err == nil {
		err = x.check()
	}
	if err != nil {
		return Index{}, fmt.Errorf("%w: %w", ErrIndex, err)
	}
	return x, nil
}

func decodeIndex(data []byte) (Index, error) {
	if len(data) > MaxIndex || len(data) < indexSize+16+itemSize {
		return Index{}, fmt.Errorf("%d bytes", len(data))
	}
	u := func(at int) uint64 { return binary.LittleEndian.Uint64(data[at:]) }
	switch {
	case u(0) != indexSize || u(8) != indexType:
		return Index{}, errors.New("another file type")
	case u(16)&flagSHA512 == 0:
		return Index{}, errors.New("its ids are not SHA-512/256")
	case u(indexSize) != openEnd || u(indexSize+8) != tableType:
		return Index{}, errors.New("no table of chunks")
	case (len(data)-indexSize-16)%itemSize != 0:
		return Index{}, errors.New("torn table")
	}
	lengths := [3]int{}
	for i := range lengths {
		v := u(24 + 8*i)
		if v > MaxChunk {
			return Index{}, fmt.Errorf("chunk length %d", v)
		}
		lengths[i] = int(v)
	}
	x := Index{Params: Params{lengths[0], lengths[1], lengths[2]}}
	tail := len(data) - itemSize
	table := uint64(len(data) - indexSize)
	if u(tail) != 0 || u(tail+8) != 0 || u(tail+16) != indexSize || u(tail+24) != table || u(tail+32) != tableMarker {
		return Index{}, errors.New("the table has no end")
	}
	x.Chunks = make([]Ref, 0, (tail-indexSize-16)/itemSize)
	var start uint64
	for at := indexSize + 16; at < tail; at += itemSize {
		end := u(at)
		if end <= start || end-start > MaxChunk {
			return Index{}, fmt.Errorf("chunk from %d to %d", start, end)
		}
		x.Chunks = append(x.Chunks, Ref{ID(data[at+8 : at+itemSize]), int(end - start)})
		start = end
	}
	return x, nil
}
