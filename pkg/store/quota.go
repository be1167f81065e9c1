package store

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"time"

	"github.com/k3s-io/kine/pkg/server"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

const (
	// defaultQuota bounds the database, which is held in memory: boards have
	// 512 MiB.
	defaultQuota = 256 << 20
	// shedAt and freeAt are percentages of the quota: from the first on events
	// are given up, until the second is reached.
	shedAt, freeAt = 90, 80
	// leaseTo is the percentage up to which leases may still be created: they
	// are few and small, but without them an apiserver that starts again is not
	// listed, and no controller leads that could make space. Not beyond, as
	// whoever may create leases decides how many.
	leaseTo       = 105
	quotaInterval = 10 * time.Second
	// shedStep is how many events are deleted before the size is looked at
	// again.
	shedStep = 500
	// keepRevisions is how much history is left when space is needed.
	keepRevisions = 1000
)

// Where the apiserver keeps what is given up first, and what must go on being
// written lest nodes count as lost.
const (
	eventPrefix = "/registry/events/"
	leasePrefix = "/registry/leases/"
	// The apiserver's own lease and its record of compactions.
	masterPrefix = "/registry/masterleases/"
)

// sqlUsed is the size in use, in bytes.
const sqlUsed = `SELECT (page_count - freelist_count) * page_size
	FROM pragma_page_count(), pragma_freelist_count(), pragma_page_size()`

// Pressure says how short space is.
type Pressure int32

const (
	// Relaxed: all writes are accepted.
	Relaxed Pressure = iota
	// Shed: events are refused, and deleted until there is space again.
	Shed
	// Full: only deletions and leases are accepted.
	Full
)

func (p Pressure) String() string {
	return [...]string{"relaxed", "shed", "full"}[p]
}

// quota keeps the database within its bound.
type quota struct {
	limit int64
	disk  atomic.Int32 // a Pressure, told from outside
	size  atomic.Int32 // a Pressure, of the database's own size
	used  atomic.Int64 // that size when it was last measured
	poke  chan struct{}
}

func newQuota(limit int64) *quota {
	if limit <= 0 {
		limit = defaultQuota
	}
	return &quota{limit: limit, poke: make(chan struct{}, 1)}
}

func (q *quota) pressure() Pressure { return Pressure(max(q.disk.Load(), q.size.Load())) }

// measure updates the pressure from the database's size in use.
func (q *quota) measure(used int64) {
	was, now := Pressure(q.size.Load()), Relaxed
	switch {
	case used >= q.limit:
		now = Full
	case used >= q.limit/100*shedAt, was != Relaxed && used >= q.limit/100*freeAt:
		now = Shed
	}
	q.used.Store(used)
	q.size.Store(int32(now))
}

// admit refuses a write for which there is no space. replaces says that the
// key exists if the write succeeds.
func (q *quota) admit(key string, replaces bool) error {
	switch q.pressure() {
	case Relaxed:
		return nil
	case Shed:
		if !strings.HasPrefix(key, eventPrefix) {
			return nil
		}
	case Full:
		lease := strings.HasPrefix(key, leasePrefix) || strings.HasPrefix(key, masterPrefix)
		if strings.HasPrefix(key, compactKey) || lease && (replaces || q.used.Load() < q.limit/100*leaseTo) {
			return nil
		}
	}
	return rpctypes.ErrGRPCNoSpace
}

// SetPressure tells how short space is on the disk. It may be called at any
// time.
func (b *Backend) SetPressure(p Pressure) {
	if was := Pressure(b.quota.disk.Swap(int32(p))); was != p {
		b.log.Warn("store: space on the disk", "was", was, "is", p)
		select {
		case b.quota.poke <- struct{}{}:
		default:
		}
	}
}

// Pressure tells how short space is, on the disk or in the database.
func (b *Backend) Pressure() Pressure { return b.quota.pressure() }

// enforceQuota looks at the size now and then, and makes space by giving up
// events and history, until ctx ends.
func (b *Backend) enforceQuota(ctx context.Context) {
	ticker := time.NewTicker(quotaInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		case <-b.quota.poke:
		}
		was := b.Pressure()
		if err := b.measure(ctx); err != nil {
			if ctx.Err() == nil {
				b.log.Warn("store: read the size", "error", err)
			}
			continue
		}
		now := b.Pressure()
		if now > was {
			b.log.Warn("store: the database is nearly at its quota: events are given up; delete what is not needed", "quota", b.quota.limit, "pressure", now)
		}
		if now != Relaxed {
			if err := b.shed(ctx); err != nil && ctx.Err() == nil {
				b.log.Warn("store: make space", "error", err)
			}
		}
	}
}

// measure reads the size in use: pages that are free are not counted, since
// they are written before the database grows.
func (b *Backend) measure(ctx context.Context) error {
	used, err := b.reader.number(ctx, sqlUsed)
	if err != nil {
		return err
	}
	b.quota.measure(used)
	return nil
}

// shed deletes events and history until the pressure is gone or there is
// nothing left to give up.
func (b *Backend) shed(ctx context.Context) error {
	for b.Pressure() != Relaxed && ctx.Err() == nil {
		_, events, err := b.List(ctx, eventPrefix, eventPrefix+"\xff", shedStep, 0, true)
		if err != nil {
			return err
		}
		for _, e := range events {
			if _, _, _, err := b.Delete(ctx, e.Key, e.ModRevision); err != nil {
				return err
			}
		}
		if err := b.forget(ctx); err != nil {
			return err
		}
		if err := b.measure(ctx); err != nil {
			return err
		}
		if len(events) < shedStep {
			return nil
		}
	}
	return ctx.Err()
}

// forget drops old history at once.
func (b *Backend) forget(ctx context.Context) error {
	target := b.current.Load() - keepRevisions
	if target <= b.compacted.Load() {
		return nil
	}
	_, err := b.Compact(ctx, target)
	if errors.Is(err, server.ErrCompacted) {
		return nil // The apiserver was faster.
	}
	return err
}
