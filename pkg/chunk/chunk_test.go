package chunk

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
)

var vectorParams = Params{Min: 2048, Avg: 8192, Max: 32768}

// noise returns n bytes that look random and are the same every time.
func noise(seed, n int) []byte {
	var counter [16]byte
	binary.LittleEndian.PutUint64(counter[:], uint64(seed))
	var b []byte
	for i := 0; len(b) < n; i++ {
		binary.LittleEndian.PutUint64(counter[8:], uint64(i))
		s := sha256.Sum256(counter[:])
		b = append(b, s[:]...)
	}
	return b[:n]
}

// vectorImage is what testdata/desync.caibx was made of, by desync v1.0.0 with
// chunks of 2048:8192:32768 bytes: noise, zeros, text, and the first noise again.
func vectorImage() []byte {
	b := append(noise(1, 192<<10), make([]byte, 96<<10)...)
	b = append(b, noise(2, 64<<10)...)
	for i := 0; len(b) < 448<<10; i++ {
		b = append(b, fmt.Sprintf("line %d of a text\n", i)...)
	}
	b = append(b, noise(1, 64<<10)...)
	return b[:len(b)-1000]
}

func TestSameAsDesync(t *testing.T) {
	file, err := os.ReadFile("testdata/desync.caibx")
	if err != nil {
		t.Fatal(err)
	}
	want, err := DecodeIndex(file)
	if err != nil {
		t.Fatal(err)
	}
	for name, r := range map[string]io.Reader{
		"whole":   bytes.NewReader(vectorImage()),
		"in bits": iotest.HalfReader(iotest.DataErrReader(bytes.NewReader(vectorImage()))),
	} {
		got, err := MakeIndex(r, vectorParams)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: cut otherwise than desync (-desync +got):\n%s", name, diff)
		}
	}
	again, err := want.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(again, file) {
		t.Errorf("Encode differs from what desync wrote:\n% x\n% x", again[:80], file[:80])
	}
	if n := want.Length(); n != int64(len(vectorImage())) || len(want.Chunks) != 47 {
		t.Errorf("%d chunks of %d bytes; want 47 of %d", len(want.Chunks), n, len(vectorImage()))
	}
}

func TestDecompressChunkOfDesync(t *testing.T) {
	const name = "d892d5988d6ffffc7e044459ba1badd6907ff946373f814b61fc50a94c9278ad"
	stored, err := os.ReadFile("testdata/" + name + ".cacnk")
	if err != nil {
		t.Fatal(err)
	}
	id, err := ParseID(name)
	if err != nil {
		t.Fatal(err)
	}
	c := newCodec(t)
	if _, err := c.Decompress(stored, Ref{id, 6370}); err != nil {
		t.Error(err)
	}
	if want := "chunks/d892/" + name + ".cacnk"; id.Path() != want {
		t.Errorf("path = %s; want %s", id.Path(), want)
	}
}

func newCodec(t testing.TB) *Codec {
	t.Helper()
	c, err := NewCodec()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func TestSplitKeepsTheRestAfterAnInsertion(t *testing.T) {
	data := noise(7, 1<<20)
	before, err := MakeIndex(bytes.NewReader(data), vectorParams)
	if err != nil {
		t.Fatal(err)
	}
	data = append(append(append([]byte{}, data[:100_000]...), "inserted"...), data[100_000:]...)
	after, err := MakeIndex(bytes.NewReader(data), vectorParams)
	if err != nil {
		t.Fatal(err)
	}
	known := map[ID]bool{}
	for _, c := range before.Chunks {
		known[c.ID] = true
	}
	fresh := 0
	for _, c := range after.Chunks {
		if !known[c.ID] {
			fresh++
		}
	}
	if fresh == 0 || fresh > 3 {
		t.Errorf("%d of %d chunks are new after 8 bytes were inserted; want 1 to 3", fresh, len(after.Chunks))
	}
}

// TestRemainder holds the multiplication in cut to the division that it stands for.
func TestRemainder(t *testing.T) {
	for _, d := range []uint32{36, 37, 64, 1000, 4096, 49_197, 65_536, 786_433, 1 << 20} {
		m := ^uint64(0)/uint64(d) + 1
		for i := range uint32(200_000) {
			for _, h := range []uint32{i, ^i, i * 2654435761, i*d - 1} {
				if got, want := m*uint64(h) >= m*uint64(d-1), h%d == d-1; got != want {
					t.Fatalf("%d %% %d: %v; want %v", h, d, got, want)
				}
			}
		}
	}
}

func TestSplitReportsErrors(t *testing.T) {
	boom := errors.New("boom")
	_, err := MakeIndex(io.MultiReader(bytes.NewReader(noise(1, 100_000)), iotest.ErrReader(boom)), vectorParams)
	if !errors.Is(err, boom) {
		t.Errorf("error = %v; want %v", err, boom)
	}
	for _, p := range []Params{{}, {47, 64, 128}, {128, 64, 256}, {64, 256, 128}, {64, 128, MaxChunk + 1}} {
		if _, err := MakeIndex(bytes.NewReader(nil), p); err == nil {
			t.Errorf("%+v: no error", p)
		}
	}
	x, err := MakeIndex(bytes.NewReader(nil), vectorParams)
	if err != nil || len(x.Chunks) != 0 {
		t.Errorf("empty image: %v, %v", x, err)
	}
	for range Split(bytes.NewReader(noise(1, 100_000)), vectorParams) {
		break // must not go on
	}
}

func vectorIndex(t testing.TB) Index {
	t.Helper()
	x, err := MakeIndex(bytes.NewReader(vectorImage()), vectorParams)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func TestZeros(t *testing.T) {
	n := 0
	for _, zero := range vectorIndex(t).Zeros() {
		if zero {
			n++
		}
	}
	if n != 2 {
		t.Errorf("%d chunks of zeros; want 2", n)
	}
}

func TestDecodeIndexRefuses(t *testing.T) {
	good, err := vectorIndex(t).Encode()
	if err != nil {
		t.Fatal(err)
	}
	set := func(at int, v uint64) []byte {
		b := bytes.Clone(good)
		binary.LittleEndian.PutUint64(b[at:], v)
		return b
	}
	for name, data := range map[string][]byte{
		"empty":              nil,
		"torn header":        good[:60],
		"torn table":         good[:len(good)-8],
		"table without end":  good[:len(good)-40],
		"bytes after":        append(bytes.Clone(good), make([]byte, 40)...),
		"another type":       set(8, 1),
		"SHA-256":            set(16, 0),
		"long chunks":        set(40, MaxChunk+1),
		"min 0":              set(24, 0),
		"no table":           set(56, 1),
		"chunk of no bytes":  set(64+40, binary.LittleEndian.Uint64(good[64:])),
		"chunk goes back":    set(64+40, 1),
		"chunk above max":    set(64, 40_000),
		"short chunk inside": set(64, 10),
		"wrong marker":       set(len(good)-8, 0),
		"wrong size at end":  set(len(good)-16, 0),
		"too long":           make([]byte, MaxIndex+1),
	} {
		if x, err := DecodeIndex(data); !errors.Is(err, ErrIndex) {
			t.Errorf("%s: %d chunks, %v; want ErrIndex", name, len(x.Chunks), err)
		}
	}
}

func TestEncodeIndexRefuses(t *testing.T) {
	for name, x := range map[string]Index{
		"long chunk":  {vectorParams, []Ref{{Size: 40_000}}},
		"empty chunk": {vectorParams, []Ref{{Size: 0}}},
		"params":      {Params{}, nil},
		"too many":    {vectorParams, make([]Ref, MaxIndex/itemSize)},
	} {
		if _, err := x.Encode(); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestStore(t *testing.T) {
	s, c := NewStore(t.TempDir()), newCodec(t)
	data := bytes.Repeat([]byte("ten bytes "), 5000)
	ref := Ref{Sum(data), len(data)}
	size, err := s.Put(c, ref.ID, data)
	if err != nil || size == 0 || size > 500 {
		t.Fatalf("Put: %d, %v", size, err)
	}
	again, err := s.Put(c, ref.ID, data)
	if err != nil || again != size {
		t.Errorf("second Put: %d, %v; want %d", again, err, size)
	}
	if _, err := s.Put(c, ref.ID, data[1:]); !errors.Is(err, ErrMismatch) {
		t.Errorf("Put of other bytes: %v", err)
	}
	got, err := s.Get(c, ref)
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("Get: %v", err)
	}
	if err := os.WriteFile(s.path(ref.ID.Path()), []byte("<html>"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(c, ref); !errors.Is(err, ErrMismatch) {
		t.Errorf("Get of an altered chunk: %v", err)
	}
	if _, err := s.Get(c, Ref{Size: 1}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Get of a missing chunk: %v", err)
	}
}

func TestDecompressBounds(t *testing.T) {
	c := newCodec(t)
	bomb, err := c.Compress(make([]byte, MaxChunk))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []Ref{{ZeroID(MaxChunk), MaxChunk - 1}, {ZeroID(10), 10}, {ID{}, MaxChunk}, {ID{}, MaxChunk + 1}} {
		if _, err := c.Decompress(bomb, want); !errors.Is(err, ErrMismatch) {
			t.Errorf("%d bytes: %v; want ErrMismatch", want.Size, err)
		}
	}
	if _, err := c.Decompress(bomb, Ref{ZeroID(MaxChunk), MaxChunk}); err != nil {
		t.Error(err)
	}
	enc, err := newEncoder()
	if err != nil {
		t.Fatal(err)
	}
	large := enc.EncodeAll(make([]byte, 64<<20), nil)
	if _, err := c.Decompress(large, Ref{ZeroID(MaxChunk), MaxChunk}); !errors.Is(err, ErrMismatch) {
		t.Errorf("frame of 64 MiB in %d bytes: %v; want ErrMismatch", len(large), err)
	}
	for _, n := range []int{0, MaxChunk + 1} {
		if _, err := c.Compress(make([]byte, n)); err == nil {
			t.Errorf("Compress of %d bytes: no error", n)
		}
	}
}

func TestDelta(t *testing.T) {
	old := noise(3, MaxDictionary)
	fresh := append(append(noise(4, 500), old[10_000:90_000]...), old[3_900_000:4_000_000]...)
	want := Ref{Sum(fresh), len(fresh)}
	delta, err := EncodeDelta(fresh, old)
	if err != nil {
		t.Fatal(err)
	}
	if len(delta) > 1000 {
		t.Errorf("delta of 500 new bytes among %d takes %d", len(fresh), len(delta))
	}
	s, base := NewStore(t.TempDir()), Base{"1.0.0", [32]byte{1, 2, 3, 4, 5}}
	if err := s.PutDelta(base, want.ID, delta); err != nil {
		t.Fatal(err)
	}
	got, err := s.GetDelta(base, want, old)
	if err != nil || !bytes.Equal(got, fresh) {
		t.Fatalf("GetDelta: %d bytes, %v", len(got), err)
	}
	if p := "chunks/" + want.ID.String()[:4] + "/" + want.ID.String() + ".01020304.delta"; p != want.ID.DeltaPath(base) {
		t.Errorf("path %s; want %s", want.ID.DeltaPath(base), p)
	}
	for name, f := range map[string]func() ([]byte, error){
		"another base":    func() ([]byte, error) { return DecodeDelta(delta, noise(5, MaxDictionary), want) },
		"shorter base":    func() ([]byte, error) { return DecodeDelta(delta, old[:1000], want) },
		"torn":            func() ([]byte, error) { return DecodeDelta(delta[:len(delta)-3], old, want) },
		"empty":           func() ([]byte, error) { return DecodeDelta(nil, old, want) },
		"another chunk":   func() ([]byte, error) { return DecodeDelta(delta, old, Ref{ID{}, want.Size}) },
		"long dictionary": func() ([]byte, error) { return DecodeDelta(delta, make([]byte, MaxDictionary+1), want) },
		"no dictionary":   func() ([]byte, error) { return DecodeDelta(delta, nil, want) },
	} {
		if _, err := f(); !errors.Is(err, ErrDelta) {
			t.Errorf("%s: %v; want ErrDelta", name, err)
		}
	}
	if _, err := EncodeDelta(fresh, make([]byte, MaxDictionary+1)); err == nil {
		t.Error("EncodeDelta took a dictionary that no machine takes")
	}
}

func TestParseID(t *testing.T) {
	id := Sum([]byte("x"))
	if got, err := ParseID(id.String()); err != nil || got != id {
		t.Errorf("ParseID(%s) = %v, %v", id, got, err)
	}
	for _, s := range []string{"", "00", id.String() + "00", "x" + id.String()[1:]} {
		if _, err := ParseID(s); err == nil {
			t.Errorf("ParseID(%q): no error", s)
		}
	}
}

func BenchmarkSplit(b *testing.B) {
	data := noise(1, 16<<20)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		if _, err := MakeIndex(bytes.NewReader(data), DefaultParams()); err != nil {
			b.Fatal(err)
		}
	}
}
