package powerloss

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
)

// root is the number of the recorded directory.
const root = 1

// recorder keeps the log while a directory is in use.
type recorder struct {
	mu       sync.Mutex
	position int
	events   []*Event
	files    map[uint64]*file
	stats    Statistics
}

// file is what the recorder knows of a file or directory.
type file struct {
	size  int64
	names map[string]uint64 // a directory's
}

func newRecorder() *recorder {
	return &recorder{files: map[uint64]*file{root: {names: map[string]uint64{}}}}
}

// begin logs an event that goes on.
func (r *recorder) begin(e *Event) *Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.log(e)
}

// end logs that the event has returned.
func (r *recorder) end(e *Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.position++
	e.Ended = r.position
}

// log appends an event; r.mu is held.
func (r *recorder) log(e *Event) *Event {
	r.position++
	e.Began = r.position
	switch f := r.files[e.File]; e.Kind {
	case Write:
		end := e.Offset + int64(len(e.Data))
		e.Grows = end > f.size
		f.size = max(f.size, end)
	case Truncate:
		f.size = e.Size
	case Allocate:
		f.size = max(f.size, e.Size)
	}
	r.events = append(r.events, e)
	return e
}

// whole runs op and logs the event that it returns, nil for none, as one that
// nothing else overlaps.
func (r *recorder) whole(op func() *Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if e := op(); e != nil {
		r.done(e)
	}
}

// done logs an event that is over; r.mu is held.
func (r *recorder) done(e *Event) {
	r.log(e)
	r.position++
	e.Ended = r.position
}

// find returns the number of the file at path, slash-separated and relative to
// the directory; r.mu is held.
func (r *recorder) find(path string) (uint64, bool) {
	id, ok := uint64(root), true
	for part := range strings.SplitSeq(path, "/") {
		if part == "" || part == "." {
			continue
		}
		if id, ok = r.files[id].names[part]; !ok {
			return 0, false
		}
	}
	return id, true
}

// add gives a new file a number; r.mu is held.
func (r *recorder) add(dir uint64, name string, directory bool) uint64 {
	id := uint64(len(r.files) + 1)
	r.files[id] = &file{}
	if directory {
		r.files[id].names = map[string]uint64{}
	}
	r.files[dir].names[name] = id
	return id
}

// scan logs what is in a directory already, as flushed.
func (r *recorder) scan(path string, dir uint64) error {
	entries, err := os.ReadDir(path)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		info, err := entry.Info()
		if err != nil {
			return err
		}
		full := filepath.Join(path, entry.Name())
		id := r.add(dir, entry.Name(), entry.IsDir())
		e := &Event{Kind: Create, File: id, Dir: dir, Name: entry.Name(), Mode: info.Mode().Perm()}
		switch {
		case entry.IsDir():
			e.Kind = Mkdir
			r.end(r.begin(e))
			if err := r.scan(full, id); err != nil {
				return err
			}
		case info.Mode().IsRegular():
			r.end(r.begin(e))
			data, err := os.ReadFile(full)
			if err != nil {
				return err
			}
			r.end(r.begin(&Event{Kind: Write, File: id, Data: data}))
		default:
			return fmt.Errorf("%s: %s cannot be recorded", full, fs.FormatDirEntry(entry))
		}
		r.end(r.begin(&Event{Kind: Sync, File: id}))
	}
	r.end(r.begin(&Event{Kind: Sync, File: dir}))
	return nil
}

// recording returns what was logged so far.
func (r *recorder) recording(start int) *Recording {
	r.mu.Lock()
	defer r.mu.Unlock()
	rec := &Recording{Events: slices.Clone(r.events), Start: start, End: r.position, Statistics: r.stats}
	rec.settle()
	return rec
}
