package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/k3s-io/kine/pkg/server"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

const (
	// defaultMaxHistory is how many revisions are kept, whoever compacts: some
	// 7 MB of usual objects. The apiserver leaves five minutes of history,
	// which is more only where 33 writes come in each second of them. Then
	// the history is shorter, as long as it takes to list and to begin to watch.
	defaultMaxHistory = 10_000
	// readers is how many queries run at once; dqlite works on one at a time.
	readers     = 4
	readersIdle = 10 * time.Minute
)

// Options configure a Backend.
type Options struct {
	// Connector opens connections to the database's leader.
	Connector driver.Connector
	Logger    *slog.Logger
	// MaxHistory bounds the number of revisions kept; 0 is the default.
	MaxHistory int64
	// Quota bounds the database's size in bytes; 0 is 256 MiB.
	Quota int64
	// Confirm returns nil once it is certain that no other Backend could have
	// written to the database before Confirm was called: this member still
	// leads. Answers about the present wait for it. nil: there are no others.
	Confirm func(ctx context.Context) error
}

// Backend is the key-value store. It implements kine's server.Backend, and
// the rule of that package's own backends for what it leaves open.
//
// Only one Backend may write to a database at a time: it knows the current
// revision from its own writes. A second one would harm nothing (comparisons
// are the database's), yet its reads would lag behind the first one's writes.
// In a cluster that is the leader's, opened anew for each of its terms:
// Options.Connector must not connect any more when the term has ended, and
// Options.Confirm tells of a newer leader before its writes could be missed.
type Backend struct {
	log        *slog.Logger
	db         *sql.DB
	codec      *codec
	index      *index
	reader     *reader
	writer     *writer
	feed       *feed
	maxHistory int64
	confirm    func(context.Context) error
	quota      *quota

	current   atomic.Int64 // newest committed revision known; set before a write is acknowledged
	compacted atomic.Int64 // set before rows go
	swept     int64        // the sweeper's own
	sweepPoke chan struct{}

	stop    context.CancelFunc
	stopped chan struct{}
	tasks   sync.WaitGroup
}

var _ server.Backend = (*Backend)(nil)

// Open prepares the database and starts the Backend's goroutines.
func Open(ctx context.Context, o Options) (*Backend, error) {
	values, err := newCodec()
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	b := &Backend{
		log: o.Logger, db: sql.OpenDB(o.Connector), codec: values, index: newIndex(), maxHistory: o.MaxHistory, confirm: o.Confirm, quota: newQuota(o.Quota),
		sweepPoke: make(chan struct{}, 1), stopped: make(chan struct{}),
	}
	if b.maxHistory <= 0 {
		b.maxHistory = defaultMaxHistory
	}
	if b.confirm == nil {
		b.confirm = func(context.Context) error { return nil }
	}
	b.db.SetMaxOpenConns(readers)
	b.db.SetMaxIdleConns(readers)
	b.db.SetConnMaxIdleTime(readersIdle)
	b.reader = newReader(b.db, b.codec, b.index)
	b.writer = newWriter(o.Connector, o.Logger, b.index, b.committed)

	b.feed = newFeed(b.reader, b.log, b.current.Load, b.compacted.Load)
	b.feed.events = b.reader.events
	run, stop := context.WithCancel(context.Background())
	b.stop = stop
	b.start(func() { b.writer.run(run); close(b.stopped) })
	if err := b.prepare(ctx); err != nil {
		return nil, fmt.Errorf("open store: %w", errors.Join(err, b.Close()))
	}
	b.feed.begin()
	b.start(func() { b.feed.run(run, b.observe) })
	b.start(func() { b.sweeper(run) })
	b.start(func() { b.expire(run) })
	b.start(func() { b.enforceQuota(run) })
	return b, nil
}

func (b *Backend) start(task func()) { b.tasks.Go(task) }

// prepare creates the schema where it is missing and loads the counters.
func (b *Backend) prepare(ctx context.Context) error {
	statements := make([]statement, len(schema))
	for i, query := range schema {
		statements[i] = newStatement(query)
	}
	if _, err := b.writer.do(ctx, b.stopped, write{statements: statements}); err != nil {
		return fmt.Errorf("create schema: %w", err)
	}
	if err := b.readMeta(ctx); err != nil {
		return err
	}
	if _, err := b.writer.do(ctx, b.stopped, write{statements: []statement{newStatement(sqlTouch)}}); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	if err := b.reader.load(ctx); err != nil {
		return err
	}
	b.current.Store(b.index.newest())
	return nil
}

// Close ends watches, lets writes that have begun finish and stops.
func (b *Backend) Close() error {
	b.feed.close()
	b.stop()
	b.tasks.Wait()
	return b.db.Close()
}

// committed is told of rows that were written, in the order of revisions.
func (b *Backend) committed(rows []committed) {
	for _, r := range rows {
		b.reader.recent.add(r.entry)
	}
	b.feed.announce(rows)
	newest := rows[len(rows)-1].id
	if advance(&b.current, newest) {
		b.feed.notify()
	}
	if b.overgrown(newest) {
		b.pokeSweeper()
	}
}

// observe learns of writes whose outcome was lost.
func (b *Backend) observe(ctx context.Context) error {
	if !b.writer.stale.Load() {
		return nil
	}
	_, err := b.writer.do(ctx, b.stopped, write{})
	return err
}

// advance raises a to at least to, and reports whether it did.
func advance(a *atomic.Int64, to int64) bool {
	for {
		old := a.Load()
		if old >= to {
			return false
		}
		if a.CompareAndSwap(old, to) {
			return true
		}
	}
}

// Start implements server.Backend; Open has done the work.
func (b *Backend) Start(context.Context) error { return nil }

// read calls fn with the revision to answer for: the given one, or for 0 the
// current one, which it returns. What it knows of the current revision is
// confirmed first where the answer depends on it: revisions of the past are
// the same for whoever reads them.
func (b *Backend) read(ctx context.Context, revision int64, fn func(at int64) error) (int64, error) {
	for {
		current := b.current.Load()
		if revision <= 0 || revision > current {
			if err := b.confirm(ctx); err != nil {
				return current, toEtcd(err)
			}
		}
		at := revision
		switch {
		case revision <= 0:
			at = current
		case revision > current:
			return current, server.ErrFutureRev
		}
		if at >= b.compacted.Load() {
			// A row may be gone because compaction came between.
			if err := fn(at); err != nil && !(errors.Is(err, errGone) && at < b.compacted.Load()) {
				return current, toEtcd(err)
			}
		}
		// Asked after the read: compaction may have come between.
		if at >= b.compacted.Load() {
			return current, nil
		}
		if revision > 0 {
			return current, server.ErrCompacted
		}
	}
}

// Get returns the current revision and the key as of revision, 0 for now. A
// key that does not exist is nil.
func (b *Backend) Get(ctx context.Context, key string, revision int64, keysOnly bool) (int64, *server.KeyValue, error) {
	var found *server.KeyValue
	rev, err := b.read(ctx, revision, func(at int64) (err error) {
		found, err = b.reader.get(ctx, key, at, keysOnly)
		return err
	})
	return rev, found, err
}

// List returns the current revision and the live keys of a range as of
// revision, 0 for now, in order and at most limit of them, 0 for all.
func (b *Backend) List(ctx context.Context, key, end string, limit, revision int64, keysOnly bool) (int64, []*server.KeyValue, error) {
	var kvs []*server.KeyValue
	rev, err := b.read(ctx, revision, func(at int64) (err error) {
		kvs, err = b.reader.list(ctx, newRange(key, end), limit, at, keysOnly)
		return err
	})
	return rev, kvs, err
}

// Count returns the current revision and the number of live keys of a range.
func (b *Backend) Count(ctx context.Context, key, end string, revision int64) (int64, int64, error) {
	var n int64
	rev, err := b.read(ctx, revision, func(at int64) error {
		n = b.index.count(newRange(key, end), at)
		return nil
	})
	return rev, n, err
}

// Create writes a key that must not exist and returns its revision. With
// ErrKeyExists the revision is one at which the key does.
func (b *Backend) Create(ctx context.Context, key string, value []byte, lease int64) (int64, error) {
	if err := b.quota.admit(key, false); err != nil {
		return b.current.Load(), err
	}
	for {
		out, err := b.write(ctx, write{operation: create, key: key, plain: value, lease: lease})
		if err != nil {
			return b.current.Load(), err
		}
		if out.changed {
			return out.id, nil
		}
		// The key must exist at the revision that the refusal tells. The
		// current one may be that of its deletion, just after the comparison.
		rev, kv, err := b.Get(ctx, key, 0, true)
		if err != nil {
			return rev, err
		}
		if kv != nil {
			return rev, server.ErrKeyExists
		}
	}
}

// Update replaces a key whose latest revision is revision. When it is not,
// the result is false with the key as it is, nil when it does not exist.
func (b *Backend) Update(ctx context.Context, key string, value []byte, revision, lease int64) (int64, *server.KeyValue, bool, error) {
	if err := b.quota.admit(key, true); err != nil {
		return b.current.Load(), nil, false, err
	}
	out, err := b.write(ctx, write{operation: update, key: key, plain: value, revision: revision, lease: lease})
	if err != nil {
		return b.current.Load(), nil, false, err
	}
	if !out.changed {
		rev, kv, err := b.Get(ctx, key, 0, false)
		return rev, kv, false, err
	}
	return out.id, &server.KeyValue{Key: key, Value: value, ModRevision: out.id, Lease: lease}, true, nil
}

// Put writes a key whether or not it exists.
func (b *Backend) Put(ctx context.Context, key string, value []byte, lease int64) (int64, error) {
	if err := b.quota.admit(key, false); err != nil {
		return b.current.Load(), err
	}
	out, err := b.write(ctx, write{operation: put, key: key, plain: value, lease: lease})
	if err != nil {
		return b.current.Load(), err
	}
	return out.id, nil
}

// Delete removes a key whose latest revision is revision, any for 0, and
// returns what it was. A key that is missing counts as deleted for revision 0
// and as a comparison that failed otherwise.
func (b *Backend) Delete(ctx context.Context, key string, revision int64) (int64, *server.KeyValue, bool, error) {
	out, err := b.write(ctx, write{operation: remove, key: key, revision: revision})
	if err != nil {
		return b.current.Load(), nil, false, err
	}
	if !out.changed {
		rev, kv, err := b.Get(ctx, key, 0, false)
		return rev, kv, revision == 0 && kv == nil, err
	}
	before, err := b.reader.revision(ctx, out.prev, false)
	if err != nil {
		// It is gone for certain; only what it was cannot be told.
		return out.id, &server.KeyValue{Key: key, ModRevision: out.prev}, true, nil
	}
	return out.id, before, true, nil
}

func (b *Backend) write(ctx context.Context, w write) (outcome, error) {
	if w.key == "" {
		return outcome{}, rpctypes.ErrGRPCEmptyKey
	}
	w.value = b.codec.encode(w.plain)
	out, err := b.writer.do(ctx, b.stopped, w)
	if err == nil && !out.changed {
		// Nothing was written, so no majority has agreed that this is the
		// present.
		err = b.confirm(ctx)
	}
	return out, toEtcd(err)
}

// Watch sends changes to a range from revision on, 0 for those to come. A
// revision before the compact revision is refused in the result.
func (b *Backend) Watch(ctx context.Context, key, end string, revision int64) server.WatchResult {
	if compacted := b.compacted.Load(); revision > 0 && revision < compacted {
		return server.WatchResult{CurrentRevision: b.current.Load(), CompactRevision: compacted}
	}
	events, errs := b.feed.watch(ctx, newRange(key, end), revision)
	return server.WatchResult{CurrentRevision: b.current.Load(), Events: events, Errorc: errs}
}

// WaitForSyncTo returns when every watch has been given all up to revision.
func (b *Backend) WaitForSyncTo(revision int64) { b.feed.waitFor(context.Background(), revision) }

// CurrentRevision returns the revision of the last acknowledged write or a
// newer one.
func (b *Backend) CurrentRevision(ctx context.Context) (int64, error) {
	current := b.current.Load()
	return current, toEtcd(b.confirm(ctx))
}

// DbSize returns the size of the database in bytes.
func (b *Backend) DbSize(ctx context.Context) (int64, error) {
	n, err := b.reader.number(ctx, sqlSize)
	return n, toEtcd(err)
}
