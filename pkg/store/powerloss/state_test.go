package powerloss

import (
	"bytes"
	"errors"
	"io/fs"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// tape builds a recording by hand.
type tape struct{ *recorder }

func newTape() tape { return tape{newRecorder()} }

func (r tape) event(e *Event) { r.end(r.begin(e)) }

// file adds a file to the directory, flushed if it shall be.
func (r tape) file(name, data string, flushed bool) uint64 {
	id := r.add(root, name, false)
	r.event(&Event{Kind: Create, File: id, Dir: root, Name: name})
	r.write(id, 0, data)
	if flushed {
		r.sync(id)
		r.sync(root)
	}
	return id
}

func (r tape) write(id uint64, off int64, data string) {
	r.event(&Event{Kind: Write, File: id, Offset: off, Data: []byte(data)})
}

func (r tape) sync(id uint64) { r.event(&Event{Kind: Sync, File: id}) }

func (r tape) rename(from, to string) {
	r.event(&Event{Kind: Rename, File: r.files[root].names[from], Dir: root, Name: from, ToDir: root, ToName: to})
}

// results returns what the file can be at the end, by variant; "-" for none.
func (r tape) results(t *testing.T, name string) map[Variant][]string {
	t.Helper()
	rec := r.recording(0)
	found := map[Variant][]string{}
	for seed := range uint64(200) {
		for _, s := range rec.States(rec.End, seed) {
			data, err := s.File(name)
			text := string(data)
			if errors.Is(err, fs.ErrNotExist) {
				text = "-"
			} else if err != nil {
				t.Fatal(err)
			}
			// Blocks are too long to be read: one letter each.
			if len(text) > 100 {
				var short strings.Builder
				for block := range slices.Chunk([]byte(text), 512) {
					short.WriteByte(block[0])
					if !bytes.Equal(block, bytes.Repeat(block[:1], len(block))) {
						t.Errorf("state %s holds a part of a block", s)
					}
				}
				text = strings.ReplaceAll(short.String(), "\x00", "0")
			}
			if !slices.Contains(found[s.Variant], text) {
				found[s.Variant] = append(found[s.Variant], text)
			}
		}
	}
	for v := range found {
		slices.Sort(found[v])
	}
	return found
}

func block(letters string) string {
	var b strings.Builder
	for _, l := range letters {
		b.WriteString(strings.Repeat(string(l), 512))
	}
	return b.String()
}

// TestModel shows what each variant leaves of a few operations.
func TestModel(t *testing.T) {
	type results map[Variant][]string
	same := func(text ...string) results {
		r := results{}
		for _, v := range Variants {
			r[v] = text
		}
		return r
	}
	for _, tt := range []struct {
		name string
		do   func(r tape)
		want results
	}{
		{"flushed", func(r tape) { r.file("f", "new", true) }, same("new")},
		{"not flushed", func(r tape) { r.file("f", "new", false) }, results{
			Whole: {"new"}, Hollow: {"new"}, Least: {"-"}, DetachedLeast: {"-"},
			Torn: {"", "-", "new"}, DetachedTorn: {"", "-", "new"}, Unordered: {"", "\x00\x00\x00", "-", "new"},
		}},
		{"file flushed, directory not", func(r tape) { r.sync(r.file("f", "new", false)) }, results{
			Whole: {"new"}, Hollow: {"new"}, Least: {"new"}, DetachedLeast: {"-"}, Torn: {"new"}, DetachedTorn: {"-", "new"},
		}},
		{"overwritten", func(r tape) { r.write(r.file("f", block("ab"), true), 0, block("cd")) }, results{
			Whole: {"cd"}, Hollow: {"ab"}, Least: {"ab"}, DetachedLeast: {"ab"},
			Torn: {"ab", "ad", "cb", "cd"}, DetachedTorn: {"ab", "ad", "cb", "cd"},
		}},
		{"overwritten twice", func(r tape) {
			f := r.file("f", block("a"), true)
			r.write(f, 0, block("b"))
			r.write(f, 0, block("c"))
		}, results{
			Whole: {"c"}, Hollow: {"a"}, Least: {"a"}, DetachedLeast: {"a"}, Torn: {"a", "b", "c"}, DetachedTorn: {"a", "b", "c"},
		}},
		{"overwritten durably", func(r tape) {
			f := r.file("f", block("ab"), true)
			r.event(&Event{Kind: Write, File: f, Data: []byte(block("cd")), Durable: true})
		}, same("cd")},
		{"overwritten durably, flushed by the kernel", func(r tape) {
			f := r.file("f", block("ab"), true)
			r.event(&Event{Kind: Write, File: f, Data: []byte(block("c")), Durable: true})
			r.event(&Event{Kind: Write, File: f, Offset: 512, Data: []byte(block("d")), Durable: true})
			r.sync(f)
		}, same("cd")},
		{"overwritten durably, being flushed by the kernel", func(r tape) {
			f := r.file("f", block("ab"), true)
			r.event(&Event{Kind: Write, File: f, Data: []byte(block("c")), Durable: true})
			r.event(&Event{Kind: Write, File: f, Offset: 512, Data: []byte(block("d")), Durable: true})
			r.begin(&Event{Kind: Sync, File: f})
		}, results{
			Whole: {"cd"}, Hollow: {"ab"}, Least: {"ab"}, DetachedLeast: {"ab"},
			Torn: {"ab", "ad", "cb", "cd"}, DetachedTorn: {"ab", "ad", "cb", "cd"},
		}},
		{"a durable write in flight", func(r tape) {
			f := r.file("f", block("ab"), true)
			r.begin(&Event{Kind: Write, File: f, Data: []byte(block("cd")), Durable: true})
		}, results{
			Whole: {"cd"}, Hollow: {"ab"}, Least: {"ab"}, DetachedLeast: {"ab"},
			Torn: {"ab", "ad", "cb", "cd"}, DetachedTorn: {"ab", "ad", "cb", "cd"},
		}},
		{"written during a flush", func(r tape) {
			f := r.file("f", block("a"), true)
			flush := r.begin(&Event{Kind: Sync, File: f})
			r.write(f, 0, block("b"))
			r.end(flush)
		}, results{
			Whole: {"b"}, Hollow: {"a"}, Least: {"a"}, DetachedLeast: {"a"}, Torn: {"a", "b"}, DetachedTorn: {"a", "b"},
		}},
		{"a flush in flight", func(r tape) {
			f := r.file("f", block("a"), true)
			r.write(f, 0, block("b"))
			r.begin(&Event{Kind: Sync, File: f})
		}, results{
			Whole: {"b"}, Hollow: {"a"}, Least: {"a"}, DetachedLeast: {"a"}, Torn: {"a", "b"}, DetachedTorn: {"a", "b"},
		}},
		{"renamed", func(r tape) {
			r.file("f", "old", true)
			r.file("g", "new", true)
			r.rename("g", "f")
		}, results{
			Whole: {"new"}, Hollow: {"new"}, Least: {"old"}, DetachedLeast: {"old"}, Torn: {"new", "old"}, DetachedTorn: {"new", "old"},
		}},
		{"exchanged", func(r tape) {
			f, g := r.file("f", "old", true), r.file("g", "new", true) // g becomes f.
			r.event(&Event{Kind: Exchange, File: f, Dir: root, Name: "f", ToDir: root, ToName: "g"})
			r.sync(root)
			r.write(g, 0, "NEW")
			r.sync(g)
		}, same("NEW")},
		{"renamed, then another file flushed", func(r tape) {
			r.file("f", "old", true)
			r.file("g", "new", true)
			r.rename("g", "f")
			r.sync(r.file("h", "x", false))
		}, results{
			Whole: {"new"}, Hollow: {"new"}, Least: {"new"}, DetachedLeast: {"old"}, Torn: {"new"}, DetachedTorn: {"new", "old"},
		}},
		{"cut off and written anew", func(r tape) {
			f := r.file("f", block("ab"), true)
			r.event(&Event{Kind: Truncate, File: f})
			r.write(f, 0, block("c"))
		}, results{
			Whole: {"c"}, Hollow: {"c"}, Least: {"ab"}, DetachedLeast: {"ab"}, Torn: {"", "ab", "c"}, DetachedTorn: {"", "ab", "c"}, Unordered: {"", "0", "ab", "c"},
		}},
		{"allocated and written durably", func(r tape) {
			f := r.file("f", "", true)
			r.event(&Event{Kind: Allocate, File: f, Size: 1024})
			r.event(&Event{Kind: Write, File: f, Offset: 512, Data: []byte(block("a")), Durable: true})
		}, same("0a")},
		{"allocated", func(r tape) {
			r.event(&Event{Kind: Allocate, File: r.file("f", block("a"), true), Size: 1024})
		}, results{
			Whole: {"a0"}, Hollow: {"a0"}, Least: {"a"}, DetachedLeast: {"a"}, Torn: {"a", "a0"}, DetachedTorn: {"a", "a0"},
		}},
		{"allocated durably", func(r tape) {
			r.event(&Event{Kind: Allocate, File: r.file("f", block("a"), true), Size: 1024, Durable: true})
		}, same("a0")},
		{"appended to", func(r tape) { r.write(r.file("f", block("a"), true), 512, block("bc")) }, results{
			Whole: {"abc"}, Hollow: {"abc"}, Least: {"a"}, DetachedLeast: {"a"}, Torn: {"a", "ab", "abc"}, DetachedTorn: {"a", "ab", "abc"},
			Unordered: {"a", "a00", "a0c", "ab", "ab0", "abc"},
		}},
		{"removed", func(r tape) {
			r.file("f", "old", true)
			r.event(&Event{Kind: Remove, File: r.files[root].names["f"], Dir: root, Name: "f"})
		}, results{
			Whole: {"-"}, Hollow: {"-"}, Least: {"old"}, DetachedLeast: {"old"}, Torn: {"-", "old"}, DetachedTorn: {"-", "old"},
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newTape()
			tt.do(r)
			if tt.want[Unordered] == nil {
				tt.want[Unordered] = tt.want[DetachedTorn]
			}
			if diff := cmp.Diff(map[Variant][]string(tt.want), r.results(t, "f")); diff != "" {
				t.Errorf("what f may be (-want +got):\n%s", diff)
			}
		})
	}
}

func TestWithout(t *testing.T) {
	r := newTape()
	f := r.file("f", block("a"), true)
	start := r.position
	r.event(&Event{Kind: Write, File: f, Data: []byte(block("b")), Durable: true})
	r.write(f, 0, block("c"))
	r.sync(f)
	rec := r.recording(start)
	for name, tt := range map[string]struct {
		without func(*Event) bool
		want    string
	}{
		"nothing": {func(*Event) bool { return false }, "c"},
		"fsync":   {func(e *Event) bool { return e.Kind == Sync }, "b"},
		"all":     {func(*Event) bool { return true }, "a"},
	} {
		lying := rec.Without(tt.without)
		got, err := lying.States(lying.End, 0, Least)[0].File("f")
		if err != nil || string(got) != block(tt.want) {
			t.Errorf("without %s: %.8q, %v; want %s", name, got, err, tt.want)
		}
	}
}

func TestCutsAndParse(t *testing.T) {
	r := newTape()
	f := r.file("f", "a", true)
	for range 100 {
		r.write(f, 0, "b")
	}
	r.rename("f", "g")
	rec := r.recording(6)
	cuts := rec.Cuts(20, 1)
	if len(cuts) != 20 || !slices.IsSorted(cuts) || cuts[0] < rec.Start || cuts[19] > rec.End {
		t.Errorf("20 cuts of %d to %d: %v", rec.Start, rec.End, cuts)
	}
	if !slices.ContainsFunc(cuts, func(cut int) bool { return cut >= rec.End-2 }) {
		t.Errorf("no cut of %v is beside the rename at %d", cuts, rec.End-1)
	}
	if all := rec.Cuts(1000, 1); len(all) != rec.End-rec.Start+1 {
		t.Errorf("%d cuts; want every position of %d to %d", len(all), rec.Start, rec.End)
	}
	for _, s := range rec.States(30, 9) {
		if got, err := rec.Parse(s.String()); err != nil || got.String() != s.String() {
			t.Errorf("Parse(%s) = %s, %v", s, got, err)
		}
	}
	for _, bad := range []string{"", "cut=1 variant=torn", "cut=30 variant=odd seed=1", "cut=5 variant=torn seed=1", "cut=999 variant=torn seed=1"} {
		if _, err := rec.Parse(bad); err == nil {
			t.Errorf("Parse(%q) succeeds", bad)
		}
	}
	var file bytes.Buffer
	if err := rec.Save(&file); err != nil {
		t.Fatal(err)
	}
	loaded, err := Load(&file)
	if err != nil || cmp.Diff(loaded.States(60, 1)[0].String(), rec.States(60, 1)[0].String()) != "" {
		t.Errorf("a loaded recording differs: %v", err)
	}
}
