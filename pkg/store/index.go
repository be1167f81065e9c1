package store

import (
	"slices"
	"sync"

	"github.com/google/btree"
)

// entry is a row of kv.
type entry struct {
	id, prev, created, version, lease int64

	deleted bool
	name    string
	value   []byte // as the column holds it
}

// latest is what a write needs to know of the row that it replaces; the zero
// value says that there is none.
type latest struct {
	id, created, version int64
	deleted              bool
}

// lives reports whether the key exists.
func (l latest) lives() bool { return l.id != 0 && !l.deleted }

// history is what the index knows of a key.
type history struct {
	name string
	// rows are the key's rows in order: the revision doubled, plus one for a
	// tombstone.
	rows []int64
	// Of the latest row.
	created, version, lease int64
}

func (h *history) latest() latest {
	last := h.rows[len(h.rows)-1]
	return latest{id: last / 2, created: h.created, version: h.version, deleted: last%2 == 1}
}

// at returns the revision of the row that was the latest at a revision, 0 when
// there was none or it is a tombstone.
func (h *history) at(revision int64) int64 {
	i := len(h.rows) - 1
	if h.rows[i]/2 > revision {
		i, _ = slices.BinarySearch(h.rows, (revision+1)*2)
		i--
	}
	if i < 0 || h.rows[i]%2 == 1 {
		return 0
	}
	return h.rows[i] / 2
}

// compact forgets the rows that a compaction at revision removes, as the
// statements of the sweep do, and reports whether any row is left.
func (h *history) compact(revision int64) bool {
	keep := 0
	for i, r := range h.rows {
		end := r / 2 // A tombstone goes by its own revision,
		if r%2 == 0 {
			if i == len(h.rows)-1 {
				break
			}
			end = h.rows[i+1] / 2 // any other by that of what replaced it.
		}
		if end >= revision {
			break
		}
		keep = i + 1
	}
	if keep > 0 {
		h.rows = slices.Clone(h.rows[keep:])
	}
	return len(h.rows) > 0
}

// index holds the name and revision of every row in memory, as etcd's does. A
// database that keeps it writes a page of it with each change, which costs
// more than the change.
//
// The writer alone changes it, after a commit and before it raises the current
// revision. Readers ask for a revision up to that one, so they may come at any
// time.
type index struct {
	mu   sync.RWMutex
	keys *btree.BTreeG[*history]
	last int64 // the newest row
}

func newIndex() *index {
	return &index{keys: btree.NewG(32, func(a, b *history) bool { return a.name < b.name })}
}

// apply adds rows that come after all others.
func (x *index) apply(rows []*entry) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, e := range rows {
		h, ok := x.keys.Get(&history{name: e.name})
		if !ok {
			h = &history{name: e.name}
			x.keys.ReplaceOrInsert(h)
		}
		row := e.id * 2
		if e.deleted {
			row++
		}
		h.rows = append(h.rows, row)
		h.created, h.version, h.lease = e.created, e.version, e.lease
		x.last = e.id
	}
}

func (x *index) newest() int64 {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.last
}

// latest returns the latest row of a key.
func (x *index) latest(name string) latest {
	x.mu.RLock()
	defer x.mu.RUnlock()
	if h, ok := x.keys.Get(&history{name: name}); ok {
		return h.latest()
	}
	return latest{}
}

// get returns the revision of the row of a key that lived at a revision, or 0.
func (x *index) get(name string, revision int64) int64 {
	x.mu.RLock()
	defer x.mu.RUnlock()
	if h, ok := x.keys.Get(&history{name: name}); ok {
		return h.at(revision)
	}
	return 0
}

// list returns the revisions of the rows of a range that lived at a revision,
// in the order of names; at most limit, or all when limit is not positive.
func (x *index) list(in keyRange, limit, revision int64) []int64 {
	var ids []int64
	x.ascend(in, func(h *history) bool {
		if id := h.at(revision); id != 0 {
			ids = append(ids, id)
		}
		return limit <= 0 || int64(len(ids)) < limit
	})
	return ids
}

// count returns how many keys of a range lived at a revision.
func (x *index) count(in keyRange, revision int64) (n int64) {
	x.ascend(in, func(h *history) bool {
		if h.at(revision) != 0 {
			n++
		}
		return true
	})
	return n
}

// leased calls fn for each living key that has a lease.
func (x *index) leased(fn func(name string, id, lease int64)) {
	x.ascend(keyRange{all: true, open: true}, func(h *history) bool {
		if l := h.latest(); h.lease > 0 && !l.deleted {
			fn(h.name, l.id, h.lease)
		}
		return true
	})
}

// ascend calls fn for the keys of a range in order while it returns true.
func (x *index) ascend(in keyRange, fn func(*history) bool) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	start, end := in.bounds()
	x.keys.AscendGreaterOrEqual(&history{name: string(start)}, func(h *history) bool {
		return (in.open || h.name < string(end)) && fn(h)
	})
}

// compact forgets the rows that a compaction at revision has removed.
func (x *index) compact(revision int64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	var gone []*history
	x.keys.Ascend(func(h *history) bool {
		if !h.compact(revision) {
			gone = append(gone, h)
		}
		return true
	})
	for _, h := range gone {
		x.keys.Delete(h)
	}
}
