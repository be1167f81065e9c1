package store

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/k3s-io/kine/pkg/server"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

const (
	// pollInterval is how often the writer is asked for changes that it did
	// not announce: those of writes whose outcome was lost.
	pollInterval = 5 * time.Second
	// feedChunk and feedChunkBytes bound how many events are read before
	// they are handed on. With watchBuffer they bound the memory of a watcher
	// that reads slowly: 8 MiB.
	feedChunk      = 256
	feedChunkBytes = 128 << 10
	// watchBuffer is how many chunks wait for a slow watcher before it is
	// left to read from the database.
	watchBuffer = 64
	// behindBuffer is how many chunks wait while a watch is behind: those are
	// read for it alone, where the events sent to synced watches are shared.
	// behindLook is how often that is looked at.
	behindBuffer = 4
	behindLook   = 10 * time.Millisecond
	// stallLimit is how long a watcher may take nothing while others wait
	// for it in WaitForSyncTo.
	stallLimit = 20 * time.Second
	// announcedBytes bounds the rows that the writer has told of and that are
	// not yet published.
	announcedBytes = 4 << 20
)

var (
	errStalled = errors.New("store: watcher takes no events")
	errClosed  = rpctypes.ErrGRPCStopped
)

// feed reads each committed change once, in order of revision, and hands it
// to the watches.
//
// A watch is in one of two states, and goes back and forth:
//
//	behind --(position = published)--> synced --(its channel is full)--> behind
//
// The feed sends to synced watches, each watch's own goroutine sends while it
// is behind, reading from the database. The state changes under mu only, so
// that a change is sent by exactly one of them.
type feed struct {
	reader changeReader
	log    *slog.Logger
	head   func() int64 // the newest committed revision that is known
	// compacted is the compact revision.
	compacted func() int64
	// events makes events of announced rows; nil when nobody announces any.
	events func(context.Context, []committed) ([]*server.Event, error)
	poke   chan struct{}

	mu        sync.Mutex
	announced []committed   // in order, those that the writer told of and that are to be published
	bytes     int           // of announced
	moved     chan struct{} // closed and replaced when published or a watch's state changes
	published int64
	watches   map[*watch]struct{}
	closed    bool
}

func newFeed(r changeReader, log *slog.Logger, head, compacted func() int64) *feed {
	return &feed{
		reader: r, log: log, head: head, compacted: compacted,
		poke: make(chan struct{}, 1), moved: make(chan struct{}), watches: map[*watch]struct{}{},
	}
}

// begin lets the feed start from the current head.
func (f *feed) begin() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.advance(f.head())
}

// announce tells the feed of rows that were committed, in their order, before
// head says so. It keeps some; what it lacks is read from the database.
func (f *feed) announce(rows []committed) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range rows {
		f.bytes += len(r.plain) + r.size()
	}
	if f.announced = append(f.announced, rows...); f.bytes > announcedBytes {
		f.announced, f.bytes = nil, 0
	}
}

// take removes and returns the announced rows up to a revision that follow
// what is published. When others come before them, it returns how far those go.
func (f *feed) take(to int64) (rows []committed, gap int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	begin := 0
	for begin < len(f.announced) && f.announced[begin].id <= f.published {
		begin++
	}
	end := begin
	for end < len(f.announced) && f.announced[end].id <= to && f.announced[end].id == f.announced[begin].id+int64(end-begin) {
		end++
	}
	if end == begin || f.announced[begin].id > f.published+1 {
		gap = to
		if end > begin {
			gap = f.announced[begin].id - 1
		}
		end = begin
	}
	rows, f.announced = f.announced[begin:end:end], f.announced[end:]
	if len(f.announced) == 0 {
		f.announced = nil // The array would keep what was handed on.
	}
	f.bytes = 0
	for _, r := range f.announced {
		f.bytes += len(r.plain) + r.size()
	}
	return rows, gap
}

// notify tells the feed that head has moved.
func (f *feed) notify() {
	select {
	case f.poke <- struct{}{}:
	default:
	}
}

// run publishes until ctx ends. observe learns of changes that were not
// announced.
func (f *feed) run(ctx context.Context, observe func(context.Context) error) {
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-f.poke:
		case <-ticker.C:
			if err := observe(ctx); err != nil && ctx.Err() == nil {
				f.log.Warn("store: read the revision", "error", err)
			}
		}
		for f.position() < f.head() {
			if err := f.publish(ctx, f.head()); err != nil {
				if ctx.Err() == nil {
					f.log.Warn("store: read changes", "after", f.position(), "error", err)
				}
				break // The ticker tries again.
			}
		}
	}
}

func (f *feed) position() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.published
}

// publish hands on the changes up to and including revision to.
func (f *feed) publish(ctx context.Context, to int64) error {
	if f.skip(to) {
		return nil
	}
	var c chunk
	add := func(e *server.Event) error {
		if c.add(e) {
			f.send(c.events, e.KV.ModRevision)
			c = chunk{}
		}
		return nil
	}
	rows, gap := f.take(to)
	if len(rows) == 0 {
		to = gap
		if err := f.reader.changes(ctx, keyRange{all: true, open: true}, f.position(), to, -1, add); err != nil {
			return err
		}
	} else {
		to = rows[len(rows)-1].id
		events, err := f.events(ctx, rows)
		if err != nil {
			return err
		}
		for _, e := range events {
			_ = add(e)
		}
	}
	f.send(c.events, to)
	return nil
}

// skip moves on without reading when nobody watches.
func (f *feed) skip(to int64) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for w := range f.watches {
		if w.synced {
			return false
		}
	}
	f.advance(to)
	return true
}

// advance sets published and wakes who waits for it; f.mu is held.
func (f *feed) advance(to int64) {
	f.published = max(f.published, to)
	close(f.moved)
	f.moved = make(chan struct{})
}

// send gives events, all that happened up to revision to, to synced watches.
func (f *feed) send(events []*server.Event, to int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for w := range f.watches {
		if !w.synced {
			continue
		}
		mine := w.filter(events)
		if len(mine) == 0 {
			continue
		}
		select {
		case w.events <- mine:
		default:
			w.synced, w.position = false, f.published
			w.wake()
		}
	}
	f.advance(to)
}

// chunk collects events up to the bounds.
type chunk struct {
	events []*server.Event
	bytes  int
}

// add reports whether the chunk is full with e.
func (c *chunk) add(e *server.Event) bool {
	c.events = append(c.events, e)
	c.bytes += len(e.KV.Value)
	if e.PrevKV != nil {
		c.bytes += len(e.PrevKV.Value)
	}
	return len(c.events) >= feedChunk || c.bytes >= feedChunkBytes
}

// waitFor returns once every client's watch has been given all changes up to
// revision or has ended, or ctx has ended.
func (f *feed) waitFor(ctx context.Context, revision int64) {
	for {
		f.mu.Lock()
		ready := f.closed || f.published >= revision
		for w := range f.watches {
			// When the feed has closed, each watch may lack some until it has ended.
			if !w.unawaited && (f.closed || !w.synced && w.position < revision) {
				ready = false
			}
		}
		moved := f.moved
		f.mu.Unlock()
		if ready {
			return
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return
		}
	}
}

// waitPublished returns once synced watches have been given all changes up to
// revision, or ctx or the feed has ended.
func (f *feed) waitPublished(ctx context.Context, revision int64) {
	for {
		f.mu.Lock()
		ready, moved := f.closed || f.published >= revision, f.moved
		f.mu.Unlock()
		if ready {
			return
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return
		}
	}
}

// close ends all watches.
func (f *feed) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	for w := range f.watches {
		w.cancel(errClosed)
	}
	f.advance(f.published)
}
