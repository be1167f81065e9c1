package store

import (
	"slices"
	"sync"
)

const (
	// recentBytes bounds the rows kept in memory, as packed as on disk.
	recentBytes = 4 << 20
	// entryBytes is what an entry takes beside its name and value.
	entryBytes = 200
)

// recent keeps rows that were written or read lately. A row never changes, so
// what is here is right for ever; it is safe for concurrent use.
type recent struct {
	mu    sync.Mutex
	rows  map[int64]*entry
	order []int64 // oldest first; may name rows that are gone
	bytes int
}

func newRecent() *recent { return &recent{rows: map[int64]*entry{}} }

func (e *entry) size() int { return len(e.name) + len(e.value) + entryBytes }

func (r *recent) add(rows ...*entry) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range rows {
		if _, ok := r.rows[e.id]; ok || e.size() > recentBytes/16 {
			continue
		}
		r.rows[e.id] = e
		r.order = append(r.order, e.id)
		r.bytes += e.size()
	}
	for r.bytes > recentBytes {
		r.remove(r.order[0])
		r.order = r.order[1:]
	}
	if len(r.order) > 2*len(r.rows)+64 {
		r.order = slices.DeleteFunc(r.order, func(id int64) bool { return r.rows[id] == nil })
	}
}

// remove drops a row, because it has been replaced or is old.
func (r *recent) remove(id int64) {
	if e, ok := r.rows[id]; ok {
		r.bytes -= e.size()
		delete(r.rows, id)
	}
}

func (r *recent) get(id int64) (*entry, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e, ok := r.rows[id]
	return e, ok
}

// replaced drops rows that others have replaced: few ask for the past.
func (r *recent) replaced(ids []int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, id := range ids {
		r.remove(id)
	}
}
