package releasedir

import (
	"encoding/binary"
	"slices"

	"github.com/cairn-os/cairn/pkg/chunk"
)

const (
	// dictionarySize is how much of the old image a delta leans on, in bytes.
	dictionarySize = 256 << 10
	// sampleSize is the length of the pieces by which places are recognized, in
	// bytes: some five instructions.
	sampleSize = 24
	// sampleBits says that one place in 2^6 is a sample.
	sampleBits = 6
)

// similarity finds the place in an old image that looks like a piece of a new
// one. When a program is compiled anew, nearly all of its code is still there,
// but addresses in it have changed every few bytes, so that no long piece is the
// same; many short ones are, though, and they are all shifted by about the same
// distance. Samples are chosen by their content, so that the same bytes are
// sampled wherever they lie.
type similarity struct {
	places map[uint64]int32 // of samples; -1 of those that come more than once
	size   int
}

func newSimilarity(old []byte) similarity {
	s := similarity{places: map[uint64]int32{}, size: len(old)}
	for at, sum := range samples(old) {
		if _, twice := s.places[sum]; twice {
			s.places[sum] = -1
		} else {
			s.places[sum] = int32(at)
		}
	}
	return s
}

// place returns the part of the old image that is the best dictionary for data;
// ok is false where nothing is alike.
func (s similarity) place(data []byte) (from, to int, ok bool) {
	var shifts []int
	for at, sum := range samples(data) {
		if old, known := s.places[sum]; known && old >= 0 {
			shifts = append(shifts, int(old)-at)
		}
	}
	if len(shifts) == 0 {
		return 0, 0, false
	}
	slices.Sort(shifts)
	middle := shifts[len(shifts)/2] + len(data)/2
	length := min(dictionarySize, chunk.MaxDictionary, s.size)
	from = max(0, min(middle-length/2, s.size-length))
	return from, from + length, true
}

// samples yields the places of data's samples and their hashes. The multipliers
// are those of xxHash64: odd, with bits well spread.
func samples(data []byte) func(yield func(at int, sum uint64) bool) {
	return func(yield func(int, uint64) bool) {
		for at := 0; at+sampleSize <= len(data); at++ {
			first := binary.LittleEndian.Uint64(data[at:]) * 0x9e3779b185ebca87
			if first>>(64-sampleBits) != 0 {
				continue
			}
			sum := (first ^ binary.LittleEndian.Uint64(data[at+8:])) * 0xc2b2ae3d27d4eb4f
			sum = (sum ^ sum>>29 ^ binary.LittleEndian.Uint64(data[at+16:])) * 0x165667b19e3779f9
			if !yield(at, sum) {
				return
			}
		}
	}
}
