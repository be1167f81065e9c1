package chunk

import (
	"bytes"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestListPaths(t *testing.T) {
	if got := SizesPath("amd64/1.2.3/root.caibx"); got != "amd64/1.2.3/root.sizes" {
		t.Error(got)
	}
	if got := DeltasPath("amd64/1.2.3/root.caibx", "1.2.2"); got != "amd64/1.2.3/root.from-1.2.2.deltas" {
		t.Error(got)
	}
}

// vectorLists are sizes and deltas of vectorIndex.
func vectorLists(t testing.TB) (Index, Sizes, Deltas) {
	x := vectorIndex(t)
	sizes := make(Sizes, len(x.Chunks))
	for i, zero := range x.Zeros() {
		if !zero {
			sizes[i] = x.Chunks[i].Size / 2
		}
	}
	return x, sizes, Deltas{Base{"1.2.2", [32]byte{9, 8, 7}}, []Delta{
		{Chunk: 0, Offset: 0, Length: minDictionary, Size: 1},
		{Chunk: 1, Offset: MaxLength, Length: MaxDictionary, Size: MaxStored},
		{Chunk: len(x.Chunks) - 1, Offset: 123_456, Length: 789, Size: 20},
	}}
}

func TestListsRoundTrip(t *testing.T) {
	x, sizes, deltas := vectorLists(t)
	file, err := sizes.Encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := DecodeSizes(file, x)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(sizes, got); diff != "" {
		t.Error(diff)
	}
	if file, err = deltas.Encode(); err != nil {
		t.Fatal(err)
	}
	gotDeltas, err := DecodeDeltas(file, x)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(deltas, gotDeltas); diff != "" {
		t.Error(diff)
	}
}

func TestListsRefuse(t *testing.T) {
	x, sizes, deltas := vectorLists(t)
	s, err := sizes.Encode()
	if err != nil {
		t.Fatal(err)
	}
	d, err := deltas.Encode()
	if err != nil {
		t.Fatal(err)
	}
	short := Index{x.Params, x.Chunks[:5]}
	for name, f := range map[string]func() error{
		"sizes as deltas":        func() error { _, err := DecodeDeltas(s, x); return err },
		"deltas as sizes":        func() error { _, err := DecodeSizes(d, x); return err },
		"sizes of another index": func() error { _, err := DecodeSizes(s, short); return err },
		"deltas of another":      func() error { _, err := DecodeDeltas(d, short); return err },
		"torn sizes":             func() error { _, err := DecodeSizes(s[:len(s)-1], x); return err },
		"more sizes":             func() error { _, err := DecodeSizes(append(bytes.Clone(s), 0), x); return err },
		"more deltas":            func() error { _, err := DecodeDeltas(append(bytes.Clone(d), 0), x); return err },
		"long":                   func() error { _, err := DecodeSizes(append(bytes.Clone(s), make([]byte, MaxList)...), x); return err },
	} {
		if err := f(); !errors.Is(err, ErrList) {
			t.Errorf("%s: %v; want ErrList", name, err)
		}
	}
	for n := range d {
		if _, err := DecodeDeltas(d[:n], x); !errors.Is(err, ErrList) {
			t.Errorf("deltas torn at %d: %v; want ErrList", n, err)
		}
	}
	some := sizes[0]
	sizes[0] = 0
	if file, err := sizes.Encode(); err != nil {
		t.Fatal(err)
	} else if _, err := DecodeSizes(file, x); !errors.Is(err, ErrList) {
		t.Errorf("size 0 of a chunk that is not zeros: %v", err)
	}
	sizes[0] = -some
	if _, err := sizes.Encode(); err == nil {
		t.Error("negative size encoded")
	}
	for _, bad := range []Deltas{
		{List: []Delta{{Chunk: 0, Length: 7, Size: 1}}},
		{List: []Delta{{Chunk: 0, Length: 8, Size: 0}}},
		{List: []Delta{{Chunk: 0, Offset: -1, Length: 8, Size: 1}}},
		{List: []Delta{{Chunk: 1, Length: 8, Size: 1}, {Chunk: 1, Length: 8, Size: 1}}},
		{Base: Base{Version: string(make([]byte, 65))}},
	} {
		if _, err := bad.Encode(); err == nil {
			t.Errorf("encoded %+v", bad)
		}
	}
}

// FuzzDecode holds the three parsers of files from outside to their word: no
// panic, and what they accept means the same when it is written again.
func FuzzDecode(f *testing.F) {
	x, sizes, deltas := vectorLists(f)
	for _, encode := range []func() ([]byte, error){x.Encode, sizes.Encode, deltas.Encode} {
		file, err := encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(file)
		f.Add(file[:len(file)/2])
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if got, err := DecodeIndex(data); err == nil {
			again := must(t, got.Encode)
			if second, err := DecodeIndex(again); err != nil || !cmp.Equal(got, second) {
				t.Errorf("index changed when written again: %v", err)
			}
		}
		if got, err := DecodeSizes(data, x); err == nil {
			if second, err := DecodeSizes(must(t, got.Encode), x); err != nil || !cmp.Equal(got, second) {
				t.Errorf("sizes changed when written again: %v", err)
			}
		}
		if got, err := DecodeDeltas(data, x); err == nil {
			if second, err := DecodeDeltas(must(t, got.Encode), x); err != nil || !cmp.Equal(got, second) {
				t.Errorf("deltas changed when written again: %v", err)
			}
		}
	})
}

// FuzzDecompress feeds frames of strangers to the decoders.
func FuzzDecompress(f *testing.F) {
	c := newCodec(f)
	data := vectorImage()[:5000]
	ref, dictionary := Ref{Sum(data), len(data)}, noise(1, 3000)
	stored, err := c.Compress(data)
	if err != nil {
		f.Fatal(err)
	}
	delta, err := EncodeDelta(data, dictionary)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(stored)
	f.Add(delta)
	f.Fuzz(func(t *testing.T, in []byte) {
		if got, err := c.Decompress(in, ref); err == nil && !bytes.Equal(got, data) {
			t.Error("wrong bytes accepted")
		}
		if got, err := DecodeDelta(in, dictionary, ref); err == nil && !bytes.Equal(got, data) {
			t.Error("wrong bytes accepted")
		}
	})
}

func must(t *testing.T, encode func() ([]byte, error)) []byte {
	t.Helper()
	b, err := encode()
	if err != nil {
		t.Fatalf("what was read cannot be written: %v", err)
	}
	return b
}
