package powerloss

import (
	"cmp"
	"encoding/gob"
	"fmt"
	"io"
	"io/fs"
	"slices"
)

// Kind says what an Event is.
type Kind uint8

// The kinds of events. Names are those of Event.Dir, sizes those of
// Event.File.
const (
	Mark     Kind = iota // nothing on the disk: the test's Note
	Create               // a file File appears as Name
	Mkdir                // a directory File appears as Name
	Link                 // File appears as Name as well
	Remove               // Name goes: unlink or rmdir
	Rename               // Name becomes ToName in ToDir
	Exchange             // Name and ToName in ToDir change places
	Write                // Data at Offset
	Truncate             // File has Size bytes
	Allocate             // File has at least Size bytes
	Chmod                // File has Mode
	Sync                 // File's data and size are flushed; a directory's names
)

var kindNames = [...]string{"mark", "create", "mkdir", "link", "remove", "rename", "exchange", "write", "truncate", "allocate", "chmod", "sync"}

func (k Kind) String() string { return kindNames[k] }

// Event is one operation. Files and directories have numbers, for a name may
// come to stand for another file: 1 is the recorded directory itself.
type Event struct {
	Kind Kind
	File uint64
	// Dir and Name, and ToDir and ToName of a Rename or Exchange, are where a
	// name is.
	Dir, ToDir   uint64
	Name, ToName string
	Mode         fs.FileMode
	Offset, Size int64
	Data         []byte
	// Grows is set on a Write beyond the file's end at that time.
	Grows bool
	// Durable is set on a Write or Allocate through O_SYNC or O_DSYNC.
	Durable bool
	// Note is a Mark's text.
	Note []byte
	// Began and Ended are positions in the recording, from 1. Ended is 0 for
	// an operation that never returned.
	Began, Ended int
	// flushed is the position from which the event is certain to survive, 0
	// for never.
	flushed int
}

func (e *Event) String() string {
	where := fmt.Sprintf("%d-%d %s file %d", e.Began, e.Ended, e.Kind, e.File)
	switch e.Kind {
	case Mark:
		return fmt.Sprintf("%d mark %s", e.Began, e.Note)
	case Create, Mkdir, Link, Remove:
		return fmt.Sprintf("%s %q in %d", where, e.Name, e.Dir)
	case Rename, Exchange:
		return fmt.Sprintf("%s %q in %d to %q in %d", where, e.Name, e.Dir, e.ToName, e.ToDir)
	case Write:
		return fmt.Sprintf("%s %d bytes at %d, durable %t, grows %t", where, len(e.Data), e.Offset, e.Durable, e.Grows)
	case Truncate, Allocate:
		return fmt.Sprintf("%s to %d, durable %t", where, e.Size, e.Durable)
	}
	return where
}

// names reports whether the event changes a directory.
func (e *Event) names() bool { return e.Kind >= Create && e.Kind <= Exchange }

// journaled reports whether the event, or a part of it, is metadata.
func (e *Event) journaled() bool {
	return e.names() || e.Grows || e.Kind == Truncate || e.Kind == Allocate || e.Kind == Chmod
}

// home is the directory or file in whose flush the event's metadata is.
func (e *Event) home() uint64 {
	switch {
	case e.Kind == Rename, e.Kind == Exchange:
		return e.ToDir
	case e.names():
		return e.Dir
	}
	return e.File
}

// Statistics count what reached the file system.
type Statistics struct {
	Writes, Bytes int64
	// Direct and Durable count writes whose descriptor had O_DIRECT, and
	// O_SYNC or O_DSYNC, when they arrived.
	Direct, Durable int64
	// Largest is the longest write in bytes.
	Largest int
}

// Recording is what happened in a directory.
type Recording struct {
	Events []*Event // in the order of Began
	// Start is the position where recording began: what comes before is the
	// directory as it was found, which is safe.
	Start, End int
	Statistics Statistics
}

// Without returns the recording as it would be if the events that match had
// flushed nothing: a Sync is gone, a durable Write is an ordinary one. What
// comes before Start stays.
func (r *Recording) Without(match func(*Event) bool) *Recording {
	lying := &Recording{Start: r.Start, End: r.End, Statistics: r.Statistics}
	for _, e := range r.Events {
		if e.Began < r.Start || !match(e) || (e.Kind != Sync && !e.Durable) {
			kept := *e
			lying.Events = append(lying.Events, &kept)
			continue
		}
		if e.Kind != Sync {
			kept := *e
			kept.Durable = false
			lying.Events = append(lying.Events, &kept)
		}
	}
	lying.settle()
	return lying
}

// settle finds out from which position each event is certain to survive.
func (r *Recording) settle() {
	history := map[uint64][]*Event{}
	for _, e := range r.Events {
		history[e.File] = append(history[e.File], e)
	}
	data, meta := map[uint64]flushes{}, map[uint64]flushes{}
	for id, events := range history {
		for i, e := range events {
			e.flushed = 0
			if e.Kind == Sync && e.Ended != 0 {
				data[id] = append(data[id], flush{e.Began, e.Ended})
				meta[id] = append(meta[id], flush{e.Began, e.Ended})
			} else if e.Durable {
				// What is needed to read the data back is flushed with it.
				if e.flushed = returned(events[i:]); e.flushed != 0 {
					meta[id] = append(meta[id], flush{e.Began, e.flushed})
				}
			}
		}
		data[id], meta[id] = data[id].earliest(), meta[id].earliest()
	}
	for _, e := range r.Events {
		switch {
		case e.Ended == 0 || e.flushed != 0:
		case e.Kind == Write && !e.Grows:
			e.flushed = data[e.File].after(e.Ended)
		case e.journaled():
			e.flushed = meta[e.home()].after(e.Ended)
		}
	}
}

// returned says when the program was told that a durable operation, the first
// of its file's events, is done, 0 for never. The kernel may split such a write,
// and may flush the file for it when all parts are written.
func returned(events []*Event) int {
	for i, e := range events {
		switch {
		case i == 0 && e.Kind == Allocate:
			return e.Ended
		case i == 0:
		case e.Kind == Sync:
			return e.Ended
		case !e.Durable || e.Offset != events[i-1].Offset+int64(len(events[i-1].Data)):
			return events[0].Ended
		}
	}
	return events[0].Ended
}

// flush is where a flush of a file begins and ends.
type flush struct{ began, ended int }

// flushes are those of a file in the order of began.
type flushes []flush

// earliest drops the flushes that ended no sooner than one that began later.
func (f flushes) earliest() flushes {
	var kept flushes
	for _, one := range slices.Backward(f) {
		if len(kept) == 0 || one.ended < kept[len(kept)-1].ended {
			kept = append(kept, one)
		}
	}
	slices.Reverse(kept)
	return kept
}

// after returns where the first flush that began after position p ends, 0 for
// none.
func (f flushes) after(p int) int {
	i, _ := slices.BinarySearchFunc(f, p, func(one flush, p int) int { return cmp.Compare(one.began, p) })
	if i == len(f) {
		return 0
	}
	return f[i].ended
}

// Notes returns the notes set before position cut.
func (r *Recording) Notes(cut int) [][]byte {
	var notes [][]byte
	for _, e := range r.Events {
		if e.Kind == Mark && e.Began <= cut {
			notes = append(notes, e.Note)
		}
	}
	return notes
}

// Save writes the recording, for Load.
func (r *Recording) Save(w io.Writer) error {
	if err := gob.NewEncoder(w).Encode(r); err != nil {
		return fmt.Errorf("save recording: %w", err)
	}
	return nil
}

// Load reads a recording that Save wrote.
func Load(rd io.Reader) (*Recording, error) {
	var r Recording
	if err := gob.NewDecoder(rd).Decode(&r); err != nil {
		return nil, fmt.Errorf("load recording: %w", err)
	}
	r.settle()
	return &r, nil
}
