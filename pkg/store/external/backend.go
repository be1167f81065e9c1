package external

import (
	"context"
	"errors"

	"github.com/k3s-io/kine/pkg/server"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cairn-os/cairn/pkg/store"
)

// attempts bounds how often a read is repeated whose parts do not agree.
const attempts = 5

// backend is a kine backend with its errors mapped and its reads made true. It
// embeds what it leaves as it is.
type backend struct {
	server.Backend // kine's
	endpoint       *endpoint
	outages        *outages
	history        *history
	feed           *store.Feed
}

var _ store.Source = (*backend)(nil)

// errTorn is answered when reads kept disagreeing: kine does not look whether a
// result ended because the connection did (RowsToEvents, v0.16.4).
var errTorn = status.Error(codes.Unavailable, "store: the datastore's answer was incomplete")

// Start creates what kine keeps beside the keys.
func (b *backend) Start(ctx context.Context) (err error) {
	if !isolate(func() { err = b.Backend.Start(ctx) }) {
		err = errors.New("kine gave up; the message before this one says why")
	}
	return b.toEtcd(err)
}

// CurrentRevision returns a revision no older than any write acknowledged before
// the call, by whichever server, of which and before which every row is visible.
// kine's own is what this process has seen last.
func (b *backend) CurrentRevision(ctx context.Context) (int64, error) {
	rev, _, err := b.Backend.Count(ctx, "/", "/", 0) // an empty range: what counts is the database's revision beside it
	if err != nil {
		return 0, b.toEtcd(err)
	}
	return rev, b.settled(ctx, rev)
}

// settled waits until every row up to rev is visible.
func (b *backend) settled(ctx context.Context, rev int64) error {
	return b.toEtcd(b.history.settle(ctx, rev))
}

// Head is store.Source's.
func (b *backend) Head() int64 { return b.history.Head() }

// Compacted is store.Source's.
func (b *backend) Compacted() int64 { return b.history.Compacted() }

// WaitFor is store.Source's.
func (b *backend) WaitFor(ctx context.Context, revision int64) { b.feed.WaitFor(ctx, revision) }

// WaitForSyncTo is WaitFor without an end.
func (b *backend) WaitForSyncTo(revision int64) { b.feed.WaitFor(context.Background(), revision) }

// Watch serves a watch from the table: kine's own loses changes (DESIGN.md).
func (b *backend) Watch(ctx context.Context, key, end string, revision int64) server.WatchResult {
	return b.feed.Watch(ctx, key, end, revision)
}

// Get reads a key. That a key does not exist is believed only when the database
// counts none, in the statement that tells the revision: the apiserver's
// consistent lists rest on the revision of a key that does not exist.
func (b *backend) Get(ctx context.Context, key string, revision int64, keysOnly bool) (int64, *server.KeyValue, error) {
	for range attempts {
		rev, kv, err := b.Backend.Get(ctx, key, revision, keysOnly)
		if err != nil && !errors.Is(err, server.ErrFutureRev) {
			return 0, nil, b.toEtcd(err)
		}
		if kv != nil {
			return rev, kv, b.toEtcd(nil)
		}
		// No key continues another with a sign below "!". With the padding of
		// MySQL's collations any sign below a space would end before the key.
		rev, n, err := b.Backend.Count(ctx, key, key+"!", revision)
		if err != nil {
			return rev, nil, b.toEtcd(err)
		}
		if n == 0 {
			b.history.observe(rev, false) // The client will want to hear that watches have come this far.
			return rev, nil, b.toEtcd(nil)
		}
	}
	return 0, nil, errTorn
}

// lastKey is beyond all keys, of which Kubernetes makes none but of ASCII signs.
const lastKey = "\x7f"

// List reads a range as of one revision, of which every row is visible, and
// returns all of it or an error. The revision that it tells is the one it read,
// or the current one when the caller named one.
func (b *backend) List(ctx context.Context, key, end string, limit, revision int64, keysOnly bool) (int64, []*server.KeyValue, error) {
	if end == "\x00" {
		end = lastKey
	}
	for range attempts {
		at := revision
		if at == 0 {
			var err error
			if at, err = b.CurrentRevision(ctx); err != nil {
				return 0, nil, err
			}
		}
		rev, kvs, err := b.Backend.List(ctx, key, end, limit, at, keysOnly)
		if errors.Is(err, server.ErrCompacted) && revision == 0 {
			continue // The newest revision, only just.
		}
		if err != nil && !errors.Is(err, server.ErrFutureRev) { // which kine says from memory, when it finds nothing
			return rev, nil, b.toEtcd(err)
		}
		told := func(current int64) int64 {
			if revision == 0 {
				return at
			}
			return current
		}
		if limit > 0 && int64(len(kvs)) == limit {
			return told(rev), kvs, b.toEtcd(nil)
		}
		rev, n, err := b.Backend.Count(ctx, key, end, at)
		if errors.Is(err, server.ErrCompacted) && revision == 0 {
			continue
		}
		if err != nil {
			return rev, nil, b.toEtcd(err)
		}
		if n == int64(len(kvs)) {
			return told(rev), kvs, b.toEtcd(nil)
		}
	}
	return 0, nil, errTorn
}

// Count is kine's, with its errors mapped.
func (b *backend) Count(ctx context.Context, key, end string, revision int64) (int64, int64, error) {
	if end == "\x00" {
		end = lastKey
	}
	rev, n, err := b.Backend.Count(ctx, key, end, revision)
	return rev, n, b.toEtcd(err)
}

// Create is kine's, with its errors mapped.
func (b *backend) Create(ctx context.Context, key string, value []byte, lease int64) (int64, error) {
	if key == "" {
		return 0, rpctypes.ErrGRPCEmptyKey
	}
	rev, err := b.Backend.Create(ctx, key, value, lease)
	if err == nil {
		b.history.observe(rev, true)
	}
	return rev, b.toEtcd(err)
}

// Update is kine's, with its errors mapped.
func (b *backend) Update(ctx context.Context, key string, value []byte, revision, lease int64) (int64, *server.KeyValue, bool, error) {
	rev, kv, ok, err := b.Backend.Update(ctx, key, value, revision, lease)
	if ok {
		b.history.observe(rev, true)
	}
	return rev, kv, ok, b.toEtcd(err)
}

// Delete removes a key if it has that revision, or whichever it has if revision
// is 0. kine calls the deletion of a key that never existed a success, and that
// of one that was deleted a failure.
func (b *backend) Delete(ctx context.Context, key string, revision int64) (int64, *server.KeyValue, bool, error) {
	for range attempts {
		rev, kv, ok, err := b.Backend.Delete(ctx, key, revision)
		if err != nil || kv != nil {
			b.history.observe(rev, ok)
			return rev, kv, ok, b.toEtcd(err)
		}
		rev, kv, err = b.Get(ctx, key, 0, false)
		if err != nil || kv == nil {
			return rev, nil, revision == 0, err
		}
	}
	return 0, nil, false, errTorn
}

// Put writes a key whether or not it exists.
func (b *backend) Put(ctx context.Context, key string, value []byte, lease int64) (int64, error) {
	for ctx.Err() == nil {
		_, kv, err := b.Get(ctx, key, 0, false)
		if err != nil {
			return 0, err
		}
		if kv == nil {
			rev, err := b.Create(ctx, key, value, lease)
			if !errors.Is(err, server.ErrKeyExists) {
				return rev, err
			}
			continue
		}
		rev, _, ok, err := b.Update(ctx, key, value, kv.ModRevision, lease)
		if err != nil || ok {
			return rev, err
		}
	}
	return 0, status.FromContextError(ctx.Err()).Err()
}

// DbSize is kine's, with its errors mapped.
func (b *backend) DbSize(ctx context.Context) (int64, error) {
	n, err := b.Backend.DbSize(ctx)
	return n, b.toEtcd(err)
}

// Compact is kine's, once no watch needs what it removes. Where it would end
// the process it ends with an error.
func (b *backend) Compact(ctx context.Context, revision int64) (rev int64, err error) {
	b.feed.WaitPublished(ctx, min(revision, b.Head()))
	if !isolate(func() { rev, err = b.Backend.Compact(ctx, revision) }) {
		return 0, status.Error(codes.Unavailable, "store: the datastore was lost during a compaction")
	}
	if err != nil {
		return 0, b.toEtcd(err)
	}
	return rev, b.toEtcd(b.history.readCompacted(ctx))
}
