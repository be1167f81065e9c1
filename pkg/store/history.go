package store

import (
	"context"
	"log/slog"

	"github.com/k3s-io/kine/pkg/server"
)

// Source is what the front serves: kine's Backend, with what it takes to put a
// key and to report progress of watches truthfully.
type Source interface {
	server.Backend
	// Put writes a key whether or not it exists and returns the revision.
	Put(ctx context.Context, key string, value []byte, lease int64) (int64, error)
	// Head is the newest revision that watches can be promised.
	Head() int64
	// Compacted is the revision below which nothing can be read.
	Compacted() int64
	// WaitFor returns once every watch has been given all changes up to revision,
	// or ctx has ended.
	WaitFor(ctx context.Context, revision int64)
}

var _ Source = (*Backend)(nil)

// Head returns the newest committed revision known.
func (b *Backend) Head() int64 { return b.current.Load() }

// Compacted returns the compact revision.
func (b *Backend) Compacted() int64 { return b.compacted.Load() }

// WaitFor is WaitForSyncTo with an end.
func (b *Backend) WaitFor(ctx context.Context, revision int64) { b.feed.waitFor(ctx, revision) }

// History is a log of changes in a database that is not a Backend's.
type History interface {
	// Head is the newest revision of which, and before which, every change can
	// be read.
	Head() int64
	// Compacted is the revision below which changes may be gone.
	Compacted() int64
	// Changes gives the changes after one revision, up to and including another,
	// of a range of keys (see newRange) to each, in order; at most limit of them
	// unless that is negative. An error of each ends it.
	Changes(ctx context.Context, key, end string, after, upTo int64, limit int, each func(*server.Event) error) error
}

// Feed serves watches of a History as a Backend serves its own: each change
// once, in order, without a gap.
type Feed struct {
	feed    *feed
	history History
}

// NewFeed returns a Feed that begins at the head of h.
func NewFeed(h History, log *slog.Logger) *Feed {
	f := &Feed{newFeed(historyReader{h}, log, h.Head, h.Compacted), h}
	f.feed.begin()
	return f
}

// Run hands on changes until ctx ends, and then ends all watches.
func (f *Feed) Run(ctx context.Context) {
	f.feed.run(ctx, func(context.Context) error { return nil })
	f.feed.close()
}

// Notify tells that the head has moved.
func (f *Feed) Notify() { f.feed.notify() }

// Watch is server.Backend's.
func (f *Feed) Watch(ctx context.Context, key, end string, revision int64) server.WatchResult {
	if compacted := f.history.Compacted(); revision > 0 && revision < compacted {
		return server.WatchResult{CurrentRevision: f.history.Head(), CompactRevision: compacted}
	}
	events, errs := f.feed.watch(ctx, newRange(key, end), revision)
	return server.WatchResult{CurrentRevision: f.history.Head(), Events: events, Errorc: errs}
}

// WaitPublished returns once the feed has read all changes up to revision, so
// that those before may go, or ctx has ended.
func (f *Feed) WaitPublished(ctx context.Context, revision int64) {
	f.feed.waitPublished(ctx, revision)
}

// WaitFor is Source's.
func (f *Feed) WaitFor(ctx context.Context, revision int64) { f.feed.waitFor(ctx, revision) }

// changeReader is what a feed reads from.
type changeReader interface {
	changes(ctx context.Context, in keyRange, after, upTo int64, limit int, fn func(*server.Event) error) error
}

// historyReader reads from a History.
type historyReader struct{ History }

func (r historyReader) changes(ctx context.Context, in keyRange, after, upTo int64, limit int, fn func(*server.Event) error) error {
	key, end := string(in.start), string(in.end)
	switch {
	case in.all:
		key, end = "", ""
	case in.single():
		end = ""
	case in.open:
		end = "\x00"
	}
	return r.Changes(ctx, key, end, after, upTo, limit, fn)
}
