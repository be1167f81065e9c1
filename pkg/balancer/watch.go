package balancer

import (
	"context"
	"crypto/tls"
	"math/rand/v2"
	"slices"
	"sync"
	"time"
)

// watchAll keeps one watcher for each server that is in the pool.
func (b *Balancer) watchAll(ctx context.Context) {
	var group sync.WaitGroup
	defer group.Wait()
	watchers := map[*server]context.CancelFunc{}
	for {
		all := b.pool.all()
		for s, stop := range watchers {
			if !slices.Contains(all, s) {
				stop()
				delete(watchers, s)
			}
		}
		for _, s := range all {
			if watchers[s] == nil {
				child, stop := context.WithCancel(ctx)
				watchers[s] = stop
				group.Go(func() { b.watch(child, s) })
			}
		}
		select {
		case <-ctx.Done():
			for _, stop := range watchers {
				stop()
			}
			return
		case <-b.pool.changed:
		}
	}
}

// watch checks one server until ctx ends.
func (b *Balancer) watch(ctx context.Context, s *server) {
	for {
		if !b.pool.needless(s) {
			began := b.pool.now()
			err := b.check(ctx, s)
			if ctx.Err() != nil {
				return
			}
			b.pool.checked(s, began, err)
		}
		if !wait(ctx, b.timing.soon/2) {
			return
		}
		pause := b.pool.rest(s, b.timing) - b.timing.soon/2
		// A tenth more or less keeps nodes that started together apart.
		pause += time.Duration((rand.Float64() - 0.5) / 5 * float64(pause))
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-s.kick:
			timer.Stop()
		case <-timer.C:
		}
	}
}

// check probes one server by the trust of this moment.
func (b *Balancer) check(ctx context.Context, s *server) error {
	var cfg *tls.Config
	if b.o.TLS != nil {
		var err error
		if cfg, err = b.o.TLS(); err != nil {
			b.o.Log.Debug("checking without trust", "server", s.address, "err", err)
			cfg = nil
		}
	}
	return b.probe(ctx, s, cfg)
}
