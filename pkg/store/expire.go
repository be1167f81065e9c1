package store

import (
	"container/heap"
	"context"
	"fmt"
	"time"
)

// expireRetry is the pause after an expired key could not be deleted.
const expireRetry = time.Second

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
	events, errs := b.feed.watch(ctx, keyRange{all: true, open: true}, from)
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		if len(*list) > 0 {
			timer.Reset(max(0, time.Until((*list)[0].at)))
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
			for _, e := range batch {
				if !e.Delete && e.KV.Lease > 0 {
					heap.Push(list, newDue(e.KV.Key, e.KV.ModRevision, e.KV.Lease))
				}
			}
		case <-timer.C:
			b.deleteDue(ctx, list)
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

// deleteDue deletes what is due now.
func (b *Backend) deleteDue(ctx context.Context, list *agenda) {
	for len(*list) > 0 && !time.Now().Before((*list)[0].at) {
		next := heap.Pop(list).(due)
		if err := b.deleteExpired(ctx, next); err != nil {
			if ctx.Err() == nil {
				b.log.Warn("store: delete an expired key", "key", next.key, "error", err)
			}
			next.at = time.Now().Add(expireRetry)
			heap.Push(list, next)
			return
		}
	}
}

func (b *Backend) deleteExpired(ctx context.Context, d due) error {
	_, err := b.write(ctx, write{operation: remove, key: d.key, revision: d.revision})
	return err
}
