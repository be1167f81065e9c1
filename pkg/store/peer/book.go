package peer

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/cairn-os/cairn/pkg/atomicfile"
)

// Entry is what a member tells about itself.
type Entry struct {
	ID        uint64
	Name      string   // of its node
	Addresses []string // host:port
	Sequence  uint64   // grows with each change, which only the member itself makes
	Witness   bool
	Zone      string // failure domain
}

func (e Entry) equal(o Entry) bool {
	return e.ID == o.ID && e.Name == o.Name && slices.Equal(e.Addresses, o.Addresses) && e.Sequence == o.Sequence &&
		e.Witness == o.Witness && e.Zone == o.Zone
}

// Book holds the newest Entry of each member. Its file is written only when
// something changed, and is no more than a hint: a lost one is filled again by
// the other members. All methods may be called at the same time.
type Book struct {
	path string // "": not kept
	own  uint64
	log  *slog.Logger
	told *limiter // others tell their entries again and again

	saving sync.Mutex // held while writing, so that reading does not wait for a disk

	mu      sync.Mutex // guards the following
	entries map[uint64]Entry
	changes uint64 // made so far
	saved   uint64 // changes that are in the file
}

// openBook reads the file at path. One that is damaged is moved aside.
func openBook(path string, own uint64, log *slog.Logger) *Book {
	b := &Book{path: path, own: own, log: log, told: newLimiter(time.Now), entries: map[uint64]Entry{}}
	if path == "" {
		return b
	}
	entries, err := readBook(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		aside := path + ".damaged"
		err = errors.Join(err, os.Rename(path, aside))
		log.Warn("store: the members' addresses are lost; they come again from the join list and the other members", "kept as", aside, "error", err)
	}
	for _, e := range entries {
		b.entries[e.ID] = e
	}
	return b
}

// SetOwn says what this member is and where. The sequence number is the book's
// business: it grows when something changes. e.ID may be 0.
func (b *Book) SetOwn(e Entry) error {
	if e.ID != 0 && e.ID != b.own {
		return fmt.Errorf("address book: %s is not this member %s", name(e.ID), name(b.own))
	}
	e.ID, e.Sequence, e.Addresses = b.own, 1, slices.Clone(e.Addresses)
	if err := e.check(); err != nil {
		return fmt.Errorf("address book: this member: %w", err)
	}
	b.mu.Lock()
	if old, ok := b.entries[b.own]; ok {
		e.Sequence = old.Sequence
		if !e.equal(old) {
			e.Sequence++
		}
	}
	b.put(e)
	b.mu.Unlock()
	b.save()
	return nil
}

// Merge takes in what is newer, and reports whether anything was. What others
// still believe of this member from a time that it lost its book is outdone by
// a higher sequence number. Entries that cannot be right are left out.
func (b *Book) Merge(entries []Entry) bool {
	b.mu.Lock()
	before := b.changes
	for _, e := range entries {
		if err := e.check(); err != nil {
			b.warn(e.ID, "store: an address that another member tells is left out", "error", err)
			continue
		}
		old, known := b.entries[e.ID]
		switch {
		case known && e.Sequence <= old.Sequence && e.ID != b.own:
		case e.ID == b.own:
			b.outdo(e)
		case !known && len(b.entries) >= maxEntries:
			b.warn(0, "store: the address book is full; a member is left out", "member", name(e.ID), "entries", len(b.entries))
		default:
			e.Addresses = slices.Clone(e.Addresses)
			b.put(e)
		}
	}
	changed := b.changes != before
	b.mu.Unlock()
	b.save()
	return changed
}

// outdo answers another's view of this member. b.mu is held.
func (b *Book) outdo(e Entry) {
	own, known := b.entries[b.own]
	switch {
	case !known:
		b.put(e) // SetOwn goes on from its number.
	case e.Sequence >= own.Sequence && !e.equal(own):
		b.warn(b.own, "store: other members had something else about this one: its address book was lost, or another machine runs with its ID",
			"id", name(b.own), "theirs", e.Addresses, "ours", own.Addresses)
		own.Sequence = e.Sequence + 1
		b.put(own)
	}
}

// warn logs what may be heard of in each exchange with the others.
func (b *Book) warn(about uint64, message string, args ...any) {
	if skipped, ok := b.told.allow(fmt.Sprint(about, message)); ok {
		b.log.Warn(message, append(args, "unlogged", skipped)...)
	}
}

// Remove forgets a member here. The others tell of it again unless they forget
// it too.
func (b *Book) Remove(id uint64) {
	b.mu.Lock()
	if _, ok := b.entries[id]; ok && id != b.own {
		delete(b.entries, id)
		b.changes++
	}
	b.mu.Unlock()
	b.save()
}

// All returns the entries, this member's as well, by ID.
func (b *Book) All() []Entry {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.all()
}

func (b *Book) all() []Entry {
	all := make([]Entry, 0, len(b.entries))
	for _, id := range slices.Sorted(maps.Keys(b.entries)) {
		e := b.entries[id]
		e.Addresses = slices.Clone(e.Addresses)
		all = append(all, e)
	}
	return all
}

func (b *Book) addresses(id uint64) []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.entries[id].Addresses)
}

// put stores an entry that differs. b.mu is held.
func (b *Book) put(e Entry) {
	if old, ok := b.entries[e.ID]; ok && old.equal(e) {
		return
	}
	b.entries[e.ID] = e
	b.changes++
}

// save brings changes to the file. One that cannot be written is tried again
// with the next change.
func (b *Book) save() {
	if b.path == "" {
		return
	}
	b.saving.Lock()
	defer b.saving.Unlock()
	b.mu.Lock()
	all, changes, saved := b.all(), b.changes, b.saved
	b.mu.Unlock()
	if changes == saved {
		return
	}
	data, err := formatBook(all)
	if err == nil {
		err = atomicfile.Write(b.path, data, 0o600)
	}
	if err != nil {
		b.log.Warn("store: the members' addresses could not be kept", "error", err)
		return
	}
	b.mu.Lock()
	b.saved = changes
	b.mu.Unlock()
}
