package store

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// list reads a page of n keys, as the apiserver does when it starts.
func (u *subject) list(ctx context.Context, n int) (time.Duration, error) {
	c, err := u.client(0)
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, requestLimit)
	defer cancel()
	start := time.Now()
	resp, err := c.Get(ctx, registry, clientv3.WithRange(clientv3.GetPrefixRangeEnd(registry)), clientv3.WithLimit(int64(n)))
	if err != nil {
		return 0, fmt.Errorf("%s: list: %w", u.name(), err)
	}
	if len(resp.Kvs) != n {
		return 0, fmt.Errorf("%s: a list of %d keys has %d", u.name(), n, len(resp.Kvs))
	}
	return time.Since(start), nil
}

// fan is watchers of one prefix.
type fan struct {
	prefix    string
	watchers  int
	delivered atomic.Int64
	changed   chan struct{} // has something when delivered was raised; one place
	ended     sync.WaitGroup
}

// openFan opens so many watchers on ten connections and returns when each has
// begun.
func (u *subject) openFan(ctx context.Context, prefix string, watchers int) (*fan, error) {
	f := &fan{prefix: prefix, watchers: watchers, changed: make(chan struct{}, 1)}
	revision, err := u.revision(ctx)
	if err != nil {
		return nil, err
	}
	for i := range watchers {
		c, err := u.client(i % 10)
		if err != nil {
			return nil, err
		}
		events := c.Watch(clientv3.WithRequireLeader(ctx), prefix, append(watchOptions(revision), clientv3.WithCreatedNotify())...)
		select {
		case first, ok := <-events:
			if !ok || first.Err() != nil {
				return nil, fmt.Errorf("%s: watch: %w", u.name(), first.Err())
			}
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		f.ended.Go(func() { f.drain(events) })
	}
	return f, nil
}

func (f *fan) drain(events clientv3.WatchChan) {
	for batch := range events {
		f.delivered.Add(int64(len(batch.Events)))
		select {
		case f.changed <- struct{}{}:
		default:
		}
	}
}

// wait waits until all have been delivered n events.
func (f *fan) wait(ctx context.Context, n int64) error {
	ctx, cancel := context.WithTimeout(ctx, requestLimit)
	defer cancel()
	for f.delivered.Load() < n*int64(f.watchers) {
		select {
		case <-f.changed:
		case <-ctx.Done():
			return fmt.Errorf("%d of %d events delivered: %w", f.delivered.Load(), n*int64(f.watchers), ctx.Err())
		}
	}
	return nil
}

// fanOut measures watches of the busiest resource: events per second that
// reach all watchers together while eight clients update it, and, at fifty
// updates a second, the times from a write to its last delivery.
func (u *subject) fanOut(ctx context.Context, watchers int, long time.Duration) (rate float64, delays []time.Duration, err error) {
	ctx, cancel := context.WithCancel(ctx)
	resource := u.mix.busiest()
	f, err := u.openFan(ctx, registry+u.mix.resources[resource].Name+"/", watchers)
	if err != nil {
		cancel()
		return 0, nil, err
	}
	defer f.ended.Wait()
	defer cancel()
	writers, err := u.writers(ctx, 8)
	if err != nil {
		return 0, nil, err
	}
	var wg sync.WaitGroup
	start := time.Now()
	for _, w := range writers {
		wg.Go(func() { w.update(ctx, resource, start.Add(long)) })
	}
	wg.Wait()
	var n int64
	for _, w := range writers {
		if w.failed > 0 {
			return 0, nil, fmt.Errorf("%s: %d updates failed: %w", u.name(), w.failed, w.err)
		}
		n += int64(len(w.latencies))
	}
	if err := f.wait(ctx, n); err != nil {
		return 0, nil, fmt.Errorf("%s: %w", u.name(), err)
	}
	rate = float64(f.delivered.Load()) / time.Since(start).Seconds()
	pace := time.NewTicker(20 * time.Millisecond)
	defer pace.Stop()
	for end := time.Now().Add(long); time.Now().Before(end); {
		start := time.Now()
		if err := writers[0].updateOne(ctx, resource); err != nil {
			return 0, nil, fmt.Errorf("%s: %w", u.name(), err)
		}
		n++
		if err := f.wait(ctx, n); err != nil {
			return 0, nil, fmt.Errorf("%s: %w", u.name(), err)
		}
		delays = append(delays, time.Since(start))
		select {
		case <-pace.C:
		case <-ctx.Done():
			return 0, nil, ctx.Err()
		}
	}
	return rate, delays, nil
}

// update updates objects of one resource until the deadline.
func (w *writer) update(ctx context.Context, resource int, deadline time.Time) {
	for time.Now().Before(deadline) && ctx.Err() == nil {
		start := time.Now()
		if err := w.updateOne(ctx, resource); err != nil {
			w.failed, w.err = w.failed+1, err
			return
		}
		w.latencies = append(w.latencies, time.Since(start))
	}
}

func (w *writer) updateOne(ctx context.Context, resource int) error {
	ctx, cancel := context.WithTimeout(ctx, requestLimit)
	defer cancel()
	own := w.own[resource]
	if len(own) == 0 {
		return fmt.Errorf("no object of %s to update: the data is too small", w.mix.resources[resource].Name)
	}
	return w.put(ctx, own[w.rand.IntN(len(own))], w.mix.updated.draw(w.rand, resource))
}
