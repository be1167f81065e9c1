package store

import (
	"container/heap"
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/k3s-io/kine/pkg/server"
)

const (
	// expireRetry is the pause after an expired key could not be deleted.
	expireRetry = time.Second
	// expireAtOnce is how many keys are deleted at once: they share a
	// transaction, and leave room in it for others.
	expireAtOnce = maxBatch / 2
)

// due is when a version of a key expires.
type due struct {
	at       time.Time
	key      string
	revision int64
}

// agenda is a heap, the earliest first.
type agenda []due

func (a agenda) Len() int           { return len(a) }
func (a agenda) Less(i, j int) bool { return a[i].at.Before(a[j].at) }
func (a agenda) Swap(i, j int)      { a[i], a[j] = a[j], a[i] }
func (a *agenda) Push(x any)        { *a = append(*a, x.(due)) }
func (a *agenda) Pop() any {
	old := *a
	last := old[len(old)-1]
	old[len(old)-1] = due{}
	*a = old[:len(old)-1]
	return last
}

// expire deletes keys whose lease has run out, until ctx ends. In kine's front
// a lease's id is its duration in seconds; it runs from the write of the key,
// and from the start of the store for keys found there: like etcd, and unlike
// a time of day, that does not depend on a clock which may jump at boot. A
// write of the key replaces its lease, because the deletion compares revisions.
func (b *Backend) expire(ctx context.Context) {
	var list agenda
	for {
		err := b.expireWatching(ctx, &list)
		if ctx.Err() != nil {
			return
		}
		b.log.Warn("store: leases are read again", "error", err)
		timer := time.NewTimer(expireRetry)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
	}
}

// expireWatching adds the leases that are in the database and those to come to
// list, and deletes what is due. It returns when its watch ends.
func (b *Backend) expireWatching(ctx context.Context, list *agenda) error {
	from := b.current.Load() + 1
	b.readLeases(list)
	events, errs := b.feed.follow(ctx, &watch{in: keyRange{all: true, open: true}, from: from, unawaited: true})
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	var resume time.Time // not to be tried before, after a failure
	for {
		if len(*list) > 0 {
			timer.Reset(max(0, time.Until((*list)[0].at), time.Until(resume)))
		}
		select {
		case batch, ok := <-events:
			if !ok {
				select {
				case err := <-errs:
					return fmt.Errorf("watch: %w", err)
				default:
					return errClosed
				}
			}
			list.note(batch)
		case <-timer.C:
			if !b.deleteDue(ctx, list) {
				resume = time.Now().Add(expireRetry)
			}
			// Before the next are deleted: the deletions are events as well.
			for range len(events) {
				list.note(<-events)
			}
		}
	}
}

// note adds the leases of events.
func (a *agenda) note(events []*server.Event) {
	for _, e := range events {
		if !e.Delete && e.KV.Lease > 0 {
			heap.Push(a, newDue(e.KV.Key, e.KV.ModRevision, e.KV.Lease))
		}
	}
}

// readLeases adds the leases of living keys that list lacks.
func (b *Backend) readLeases(list *agenda) {
	known := make(map[int64]bool, len(*list))
	for _, d := range *list {
		known[d.revision] = true
	}
	b.index.leased(func(name string, id, lease int64) {
		if !known[id] {
			heap.Push(list, newDue(name, id, lease))
		}
	})
}

func newDue(key string, revision, lease int64) due {
	return due{at: time.Now().Add(time.Duration(lease) * time.Second), key: key, revision: revision}
}

// deleteDue deletes some of what is due now. What could not be deleted stays on
// the list; then the result is false.
func (b *Backend) deleteDue(ctx context.Context, list *agenda) bool {
	var batch []due
	for now := time.Now(); len(batch) < expireAtOnce && len(*list) > 0 && !now.Before((*list)[0].at); {
		batch = append(batch, heap.Pop(list).(due))
	}
	errs := make([]error, len(batch))
	var deletions sync.WaitGroup
	for i, d := range batch {
		deletions.Go(func() { errs[i] = b.deleteExpired(ctx, d) })
	}
	deletions.Wait()
	failed := 0
	for i, err := range errs {
		if err == nil {
			continue
		}
		if failed++; failed == 1 && ctx.Err() == nil {
			b.log.Warn("store: delete an expired key", "key", batch[i].key, "error", err)
		}
		batch[i].at = time.Now().Add(expireRetry) // after others that are due
		heap.Push(list, batch[i])
	}
	return failed == 0
}

func (b *Backend) deleteExpired(ctx context.Context, d due) error {
	_, err := b.write(ctx, write{operation: remove, key: d.key, revision: d.revision})
	return err
}
