package sweep

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const tinySectors = 6

// tiny is a recording of a few requests to a disk of a few sectors. Each write
// has a content of its own.
func tiny(r *rand.Rand, n int) Recording {
	var log []byte
	rec := Recording{Base: bytes.NewReader(bytes.Repeat([]byte{'0'}, tinySectors*SectorSize)), Size: tinySectors * SectorSize}
	for i := range n {
		e := Entry{Sector: r.Int64N(tinySectors)}
		e.Count = min(1+r.Int64N(2), tinySectors-e.Sector)
		switch r.IntN(8) {
		case 0, 1:
			e = Entry{Flags: Flush}
		case 2:
			e.Flags = FUA
		case 3:
			e.Flags = Discard
		case 4:
			e.Flags = Flush | FUA
		case 5:
			e = Entry{Flags: Mark, Text: "x"}
		}
		if e.writes() && e.Flags&Discard == 0 {
			e.Data = int64(len(log))
			log = append(log, bytes.Repeat([]byte{byte('a' + i)}, int(e.Count)*SectorSize)...)
		}
		rec.Entries = append(rec.Entries, e)
	}
	rec.Log = bytes.NewReader(log)
	return rec
}

// content is one letter a sector; a dot is a discarded one.
func (v *view) content() string {
	buf := make([]byte, tinySectors*SectorSize)
	if _, err := v.ReadAt(buf, 0); err != nil {
		return err.Error()
	}
	var b strings.Builder
	for at := 0; at < len(buf); at += SectorSize {
		b.WriteByte(max(buf[at], '.'))
	}
	return b.String()
}

// brute computes all states from the rules of a disk, entry by entry: options
// are what each sector may hold, the durable content first.
func brute(rec Recording) map[string]bool {
	states := map[string]bool{}
	options := make([]string, tinySectors)
	for s := range options {
		options[s] = "0"
	}
	emit := func(options []string) {
		all := []string{""}
		for _, versions := range options {
			var next []string
			for _, head := range all {
				for _, v := range versions {
					next = append(next, head+string(v))
				}
			}
			all = next
		}
		for _, s := range all {
			states[s] = true
		}
	}
	for i, e := range rec.Entries {
		if e.Flags&Mark != 0 {
			continue
		}
		emit(options)
		if e.Flags&Flush != 0 {
			for s, versions := range options {
				options[s] = versions[len(versions)-1:]
			}
			emit(options)
		}
		letter := string(rune('a' + i))
		if e.Flags&Discard != 0 {
			letter = "."
		}
		for s := e.Sector; s < e.Sector+e.Count; s++ {
			options[s] += letter
		}
		emit(options) // under way, or complete and not durable
		if e.Flags&FUA != 0 {
			for s := e.Sector; s < e.Sector+e.Count; s++ {
				options[s] = letter
			}
		}
	}
	emit(options)
	return states
}

func testEpoch(rec *Recording) *epoch {
	return &epoch{d: newMedium(rec, &regions{count: 1}, newHasher())}
}

// TestAllStates holds what is enumerated against the rules.
func TestAllStates(t *testing.T) {
	most := 0
	for seed := range uint64(400) {
		r := rand.New(rand.NewPCG(seed, 1))
		rec := tiny(r, 1+r.IntN(9))
		e := testEpoch(&rec)
		got := map[string]bool{}
		err := walk(&rec, e, func(int) error {
			for _, b := range plan(e.counts(), Options{Exhaustive: 20}, 0) {
				for i := range b.count {
					got[(&view{d: e.d, e: e, c: b.get(i)}).content()] = true
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		want := brute(rec)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("seed %d: %+v: states (-want +got):\n%s", seed, rec.Entries, diff)
		}
		most = max(most, len(want))
	}
	t.Logf("up to %d different states of one recording", most)
}

// TestChoices checks of every kind of choice that it leaves a state which is
// possible, that the key follows the content, and that Make makes it.
func TestChoices(t *testing.T) {
	kinds := map[kind]int{}
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 2))
		rec := tiny(r, 4+r.IntN(8))
		possible := brute(rec)
		w := &worker{rec: &rec, epoch: testEpoch(&rec)}
		e := w.epoch
		err := walk(&rec, e, func(before int) error {
			for _, o := range []Options{{Exhaustive: 20}, {Exhaustive: 4, Torn: 2, Samples: 20}, {Exhaustive: 1, Torn: 2, Samples: 20}} {
				for _, b := range plan(e.counts(), o, seed) {
					for i := range b.count {
						c := b.get(i)
						kinds[c.kind]++
						v := &view{d: e.d, e: e, c: c}
						got := v.content()
						if !possible[got] {
							t.Fatalf("seed %d: %s before entry %d leaves %s, which is impossible: %+v", seed, c, before, got, rec.Entries)
						}
						k, err := e.key(c)
						if err != nil {
							return err
						}
						if want := v.key(); k[0] != want {
							t.Fatalf("seed %d: key of %s before entry %d does not fit %s: %+v", seed, c, before, got, rec.Entries)
						}
						if back, err := parseChoice(c.String()); err != nil || back != c {
							t.Fatalf("%s read as %s, %v", c, back, err)
						}
						out := memory(bytes.Repeat([]byte{'0'}, tinySectors*SectorSize))
						if err := w.make(c, before, out); err != nil {
							return err
						}
						made := &view{d: newMedium(&Recording{Base: out}, &regions{}, hasher{}), e: &epoch{}}
						if made.content() != got {
							t.Fatalf("seed %d: %s before entry %d: made %s; want %s: %+v", seed, c, before, made.content(), got, rec.Entries)
						}
					}
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, k := range []kind{prefix, without, only, writes, sectors, torn, tornOnly, sample} {
		if kinds[k] == 0 {
			t.Errorf("no choice of kind %s", k)
		}
	}
	t.Log(kinds)
}

// memory is a disk that Make writes to.
type memory []byte

func (m memory) WriteAt(p []byte, at int64) (int, error) { return copy(m[at:], p), nil }
func (m memory) ReadAt(p []byte, at int64) (int, error)  { return copy(p, m[at:]), nil }

// key computes from the content what epoch.key follows.
func (v *view) key() (d digest) {
	was, is := make([]byte, SectorSize), make([]byte, SectorSize)
	for s := range int64(tinySectors) {
		_, _ = v.d.rec.Base.ReadAt(was, s*SectorSize)
		_, _ = v.ReadAt(is, s*SectorSize)
		if !bytes.Equal(was, is) {
			d = d.xor(v.d.hash.sector(s, was)).xor(v.d.hash.sector(s, is))
		}
	}
	return d
}

// TestPlanCounts holds the number of states of an epoch against its formula.
func TestPlanCounts(t *testing.T) {
	o := Options{Exhaustive: 10, Torn: 64, Samples: 100}
	for _, tt := range []struct {
		counts []int64
		want   string
	}{
		{nil, "prefix 1"},
		{[]int64{1}, "sectors 2"},
		{[]int64{4, 6}, "sectors 1024"},
		{[]int64{11}, "writes 2, torn 10, sample 100"},
		{[]int64{8, 8}, "writes 4, torn 14, torn-only 7, sample 100"},
		{[]int64{2048, 1}, "writes 4, sample 100"},
		{slices.Repeat([]int64{1}, 11), "prefix 12, without 10, only 10, sample 100"},
	} {
		counts, order := map[kind]uint64{}, []kind{}
		seen := map[choice]bool{}
		for _, b := range plan(tt.counts, o, 7) {
			for i := range b.count {
				c := b.get(i)
				if counts[c.kind]++; !slices.Contains(order, c.kind) {
					order = append(order, c.kind)
				}
				if seen[c] {
					t.Errorf("%v: %s twice", tt.counts, c)
				}
				seen[c] = true
			}
		}
		var got []string
		for _, k := range order {
			got = append(got, fmt.Sprintf("%s %d", k, counts[k]))
		}
		if s := strings.Join(got, ", "); s != tt.want {
			t.Errorf("plan(%v) = %s; want %s", tt.counts, s, tt.want)
		}
	}
}

func TestParseState(t *testing.T) {
	for _, text := range []string{"0/prefix:0", "12/torn:3:4", "7/sectors:0x1f", "7/sample:0xffffffffffffffff", "3/without:2"} {
		s, err := ParseState(text)
		if err != nil || s.String() != text {
			t.Errorf("ParseState(%q) = %v, %v", text, s, err)
		}
	}
	for _, text := range []string{"", "1", "-1/prefix:0", "1/", "1/prefix", "1/prefix:-1", "1/prefix:1 ", "1/nothing:1", "1/torn:1", "1/sectors:1"} {
		if s, err := ParseState(text); err == nil {
			t.Errorf("ParseState(%q) = %v", text, s)
		}
	}
}
