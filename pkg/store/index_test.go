package store

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// model is the table that the index stands for.
type model []*entry

// compact removes rows as the statements of the sweep do.
func (m model) compact(revision int64) model {
	gone := map[int64]bool{}
	for _, e := range m {
		if e.id < revision {
			gone[e.prev] = true
			if e.deleted {
				gone[e.id] = true
			}
		}
	}
	return slices.DeleteFunc(slices.Clone(m), func(e *entry) bool { return gone[e.id] })
}

// list returns the revisions of living keys of a range in the order of names.
func (m model) list(in keyRange, revision int64) []int64 {
	newest := map[string]*entry{}
	for _, e := range m {
		if e.id <= revision && in.contains(e.name) {
			newest[e.name] = e
		}
	}
	var live []*entry
	for _, e := range newest {
		if !e.deleted {
			live = append(live, e)
		}
	}
	slices.SortFunc(live, func(a, b *entry) int { return strings.Compare(a.name, b.name) })
	var ids []int64
	for _, e := range live {
		ids = append(ids, e.id)
	}
	return ids
}

// TestIndex compares the index with the table after random writes and
// compactions, and with an index made anew from the table.
func TestIndex(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	x, table := newIndex(), model{}
	compacted := int64(0)
	ranges := []keyRange{
		newRange("", ""), newRange("/3", ""), newRange("/2", "/5"), newRange("/4", "\x00"), newRange("/5", "/2"), newRange("/none", ""),
	}
	for round := range 300 {
		var batch []*write
		for range 1 + random.IntN(6) {
			w := &write{operation: operation(1 + random.IntN(4)), key: fmt.Sprintf("/%d", random.IntN(9)), lease: int64(random.IntN(2))}
			w.revision = x.latest(w.key).id
			if random.IntN(4) == 0 {
				w.revision = int64(random.IntN(round + 1))
			}
			batch = append(batch, w)
		}
		rows, outs := plan(x, batch)
		var entries []*entry
		for _, r := range rows {
			entries = append(entries, r.entry)
		}
		checkPlan(t, table, batch, outs, entries)
		table = append(table, entries...)
		x.apply(entries)
		head := x.newest()
		if random.IntN(20) == 0 && head > compacted {
			compacted += 1 + random.Int64N(head-compacted)
			table = table.compact(compacted)
			x.compact(compacted)
		}
		fresh := newIndex()
		fresh.apply(table)
		for _, in := range ranges {
			at := compacted + random.Int64N(head-compacted+1)
			want := table.list(in, at)
			for name, x := range map[string]*index{"kept": x, "made anew": fresh} {
				if diff := cmp.Diff(want, x.list(in, 0, at)); diff != "" {
					t.Fatalf("round %d: the index %s lists %+v at %d of %d-%d (-want +got):\n%s", round, name, in, at, compacted, head, diff)
				}
				if got := x.count(in, at); got != int64(len(want)) {
					t.Fatalf("round %d: the index %s counts %d; want %d", round, name, got, len(want))
				}
			}
		}
	}
	if x.count(keyRange{all: true, open: true}, x.newest()) == 0 {
		t.Error("no key lives: the test did not test")
	}
}

// checkPlan applies the rules of the operations to the table one by one.
func checkPlan(t *testing.T, table model, batch []*write, outs []outcome, rows []*entry) {
	t.Helper()
	now := slices.Clone(table)
	for i, w := range batch {
		var last *entry
		for _, e := range now {
			if e.name == w.key {
				last = e
			}
		}
		lives := last != nil && !last.deleted
		want := map[operation]bool{
			create: !lives,
			update: lives && last.id == w.revision,
			put:    true,
			remove: lives && (w.revision == 0 || last.id == w.revision),
		}[w.operation]
		if outs[i].changed != want {
			t.Fatalf("operation %d of %s at %d with latest row %+v: changed = %t; want %t", w.operation, w.key, w.revision, last, outs[i].changed, want)
		}
		if !want {
			continue
		}
		e := rows[0]
		rows = rows[1:]
		expect := &entry{id: outs[i].id, version: 1, lease: w.lease, name: w.key}
		if lives {
			expect.prev, expect.version, expect.created = last.id, last.version+1, last.created
			if last.created == 0 {
				expect.created = last.id
			}
		}
		if w.operation == remove {
			expect.version, expect.created, expect.lease, expect.deleted, expect.value = 0, 0, 0, true, []byte{}
		}
		if diff := cmp.Diff(expect, e, cmp.AllowUnexported(entry{})); diff != "" {
			t.Fatalf("row (-want +got):\n%s", diff)
		}
		if n := len(now); n > 0 && e.id <= now[n-1].id {
			t.Fatalf("revision %d after %d", e.id, now[n-1].id)
		}
		now = append(now, e)
	}
	if len(rows) > 0 {
		t.Fatalf("%d rows without a write", len(rows))
	}
}

// TestRecent holds the bound, and forgets the oldest first.
func TestRecent(t *testing.T) {
	r := newRecent()
	const size = 10_000
	for id := range int64(2000) {
		r.add(&entry{id: id, value: make([]byte, size)})
		if id%3 == 0 {
			r.replaced([]int64{id - 1})
		}
	}
	if r.bytes > recentBytes || r.bytes < recentBytes*3/4 {
		t.Errorf("%d bytes are kept; want nearly %d", r.bytes, recentBytes)
	}
	if len(r.order) > 2*len(r.rows)+64 {
		t.Errorf("%d names of %d rows", len(r.order), len(r.rows))
	}
	if _, ok := r.get(1999); !ok {
		t.Error("the newest row is gone")
	}
	if _, ok := r.get(10); ok {
		t.Error("an old row is there")
	}
	r.add(&entry{id: 5000, value: make([]byte, recentBytes)})
	if _, ok := r.get(5000); ok {
		t.Error("a row as large as all is kept")
	}
}
