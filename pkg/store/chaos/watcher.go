package chaos

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/cairn-os/cairn/pkg/store/chaos/history"
)

// watcher follows all keys through one node, from the first revision on.
type watcher struct {
	node    int
	etcd    *clientv3.Client
	history *history.History
}

// run watches until ctx ends. A watch that ends is begun anew after the last
// revision that it delivered, as the apiserver's reflectors do; interruptions
// that etcd's client mends by itself are not seen here.
func (w *watcher) run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	next := int64(1)
	for ctx.Err() == nil {
		// Without a leader the watch is to end, not to wait in silence.
		life, end := context.WithCancel(clientv3.WithRequireLeader(ctx))
		wg.Go(func() { w.askProgress(life) })
		next = w.follow(life, next, func(items ...history.Item) { w.history.Watched(w.node, items...) })
		end()
		_ = pause(ctx, errorPause)
	}
}

// visit lists and watches from there on for a while, again and again, as
// reflectors of the apiserver do that come and go. The visits share a stream
// with the standing watch.
func (w *watcher) visit(ctx context.Context, r *rand.Rand) {
	for pause(ctx, time.Duration(r.Int64N(int64(2*visitTime)))) == nil {
		length := time.Duration(r.Int64N(int64(2 * visitTime)))
		asking, cancel := context.WithTimeout(ctx, requestTimeout)
		resp, err := w.etcd.Get(asking, prefix, clientv3.WithPrefix(), clientv3.WithCountOnly())
		cancel()
		if err != nil {
			continue
		}
		from := resp.Header.Revision + 1
		life, end := context.WithTimeout(clientv3.WithRequireLeader(ctx), length)
		w.follow(life, from, w.history.Pass(w.node, from))
		end()
	}
}

// follow delivers from revision next until the watch ends. It returns where
// the next one begins.
func (w *watcher) follow(ctx context.Context, next int64, record func(items ...history.Item)) int64 {
	watch := w.etcd.Watch(ctx, prefix, clientv3.WithPrefix(), clientv3.WithRev(next), clientv3.WithPrevKV(), clientv3.WithProgressNotify())
	for {
		var resp clientv3.WatchResponse
		var ok bool
		select {
		case resp, ok = <-watch:
		case <-ctx.Done(): // While the server is away, etcd's client leaves the channel open.
		}
		if !ok || resp.Err() != nil {
			return next
		}
		at := w.history.Now()
		if resp.IsProgressNotify() {
			record(history.Item{At: at, Progress: resp.Header.Revision})
		}
		var items []history.Item
		for _, e := range resp.Events {
			x := history.Event{KV: pair(e.Kv), Deleted: e.Type == mvccpb.DELETE, Prev: pair(e.PrevKv)}
			if x.Deleted {
				x.Created, x.Version = 0, 0 // A deletion has none, in etcd; kine repeats the key's.
			}
			items = append(items, history.Item{At: at, Event: x})
			next = x.Modified + 1
		}
		record(items...)
	}
}

func (w *watcher) askProgress(ctx context.Context) {
	for pause(ctx, progressEvery) == nil {
		// An error is the watch's own to report.
		asking, cancel := context.WithTimeout(ctx, progressEvery)
		_ = w.etcd.RequestProgress(asking)
		cancel()
	}
}

// pause waits for d; it returns an error when ctx ends before.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return ctx.Err()
	case <-ctx.Done():
		return ctx.Err()
	}
}
