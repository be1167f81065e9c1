package store

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// leaseSeconds is how long the apiserver lets an event live.
const leaseSeconds = 3600

// requestLimit is how long a client waits for an answer.
const requestLimit = 20 * time.Second

// writer is one client: it writes as an apiserver does, one request after the
// other, to objects that no other client touches.
type writer struct {
	id     int
	client *clientv3.Client
	mix    *mix
	rand   *rand.Rand
	own    [][]*entry // by resource
	made   []*entry   // of own: what it may delete, oldest first
	lease  clientv3.LeaseID
	next   int64 // number of the next new key

	latencies []time.Duration
	failed    int
	err       error // the last one
}

// run sends requests until the deadline, of which the share reads only reads;
// one on its way then is waited for.
func (w *writer) run(ctx context.Context, deadline time.Time, reads float64) {
	for time.Now().Before(deadline) && ctx.Err() == nil {
		request := w.write
		if w.rand.Float64() < reads {
			request = w.read
		}
		start := time.Now()
		if err := request(ctx); err != nil {
			w.failed, w.err = w.failed+1, err
			continue
		}
		w.latencies = append(w.latencies, time.Since(start))
	}
}

func (w *writer) write(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, requestLimit)
	defer cancel()
	what := w.rand.Float64()
	switch {
	case what < w.mix.updates:
		t := w.mix.updated.draw(w.rand, -1)
		if own := w.own[t.resource]; len(own) > 0 {
			return w.put(ctx, own[w.rand.IntN(len(own))], t)
		}
		return w.create(ctx, t)
	case what < (1+w.mix.updates)/2 || len(w.made) == 0:
		return w.create(ctx, w.mix.created.draw(w.rand, -1))
	default:
		return w.delete(ctx)
	}
}

func (w *writer) create(ctx context.Context, t *template) error {
	w.next++
	e := &entry{key: t.key(w.id+1, w.next), resource: t.resource, made: true}
	if err := w.put(ctx, e, t); err != nil {
		return err
	}
	w.own[e.resource], w.made = append(w.own[e.resource], e), append(w.made, e)
	return nil
}

// put is OptimisticPut of etcd's client for Kubernetes.
func (w *writer) put(ctx context.Context, e *entry, t *template) error {
	var options []clientv3.OpOption
	if res := w.mix.resources[e.resource]; res.Leased*2 > res.Creates {
		options = append(options, clientv3.WithLease(w.lease))
	}
	return w.commit(ctx, e, clientv3.OpPut(e.key, string(t.value(w.rand)), options...))
}

func (w *writer) delete(ctx context.Context) error {
	e := w.made[0]
	if err := w.commit(ctx, e, clientv3.OpDelete(e.key)); err != nil {
		return err
	}
	w.made = w.made[1:]
	own := w.own[e.resource]
	i := slices.Index(own, e)
	own[i] = own[len(own)-1]
	w.own[e.resource] = own[:len(own)-1]
	return nil
}

// commit writes if the entry is as this client left it. When the outcome of
// its last write stayed open, it is not: it is looked up and fails once.
func (w *writer) commit(ctx context.Context, e *entry, op clientv3.Op) error {
	resp, err := w.client.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(e.key), "=", e.revision)).
		Then(op).Else(clientv3.OpGet(e.key)).Commit()
	if err != nil {
		return err
	}
	if resp.Succeeded {
		e.revision = resp.Header.Revision
		return nil
	}
	e.revision = 0
	if kvs := resp.Responses[0].GetResponseRange().Kvs; len(kvs) > 0 {
		e.revision = kvs[0].ModRevision
	}
	return fmt.Errorf("%s is at revision %d, which this client did not write", e.key, e.revision)
}

// read gets an object or lists the first 500 of a resource.
func (w *writer) read(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, requestLimit)
	defer cancel()
	if w.rand.Float64() < w.mix.listing {
		prefix := registry + w.mix.resources[w.mix.lists.draw(w.rand, -1).resource].Name + "/"
		_, err := w.client.Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithLimit(500))
		return err
	}
	resource := w.mix.gets.draw(w.rand, -1).resource
	key := registry + w.mix.resources[resource].Name + "/none"
	if own := w.own[resource]; len(own) > 0 {
		key = own[w.rand.IntN(len(own))].key
	}
	_, err := w.client.Get(ctx, key)
	return err
}

// slice is the outcome of some seconds of requests.
type slice struct {
	latencies []time.Duration // of those that succeeded
	elapsed   time.Duration
	failed    int
	written   int64         // bytes to disk, by all members
	cpu       time.Duration // processor time of all members
	peak      memory        // of the member with the most
}

// load writes the first data with many clients.
func (u *subject) load(ctx context.Context, entries []*entry, values [][]byte) error {
	const clients = 64
	jobs := make(chan int)
	failures := make(chan error, clients)
	var wg sync.WaitGroup
	for i := range clients {
		client, err := u.client(i)
		if err != nil {
			return err
		}
		w := &writer{client: client}
		wg.Go(func() {
			for j := range jobs {
				ctx, cancel := context.WithTimeout(ctx, requestLimit)
				err := w.commit(ctx, entries[j], clientv3.OpPut(entries[j].key, string(values[j])))
				cancel()
				if err != nil {
					failures <- err
					return
				}
			}
		})
	}
	err := func() error {
		defer wg.Wait()
		defer close(jobs)
		for j := range entries {
			select {
			case jobs <- j:
			case err := <-failures:
				return fmt.Errorf("%s: load: %w", u.name(), err)
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	}()
	u.entries = entries
	select {
	case late := <-failures:
		err = errors.Join(err, late)
	default:
	}
	return err
}

// request lets so many clients send requests for so long, of which the share
// reads only reads. What the slice before the last left of history is compacted
// meanwhile, as the apiserver has it done.
func (u *subject) request(ctx context.Context, clients int, long time.Duration, reads float64) (*slice, error) {
	writers, err := u.writers(ctx, clients)
	if err != nil {
		return nil, err
	}
	before, err := u.written()
	if err != nil {
		return nil, err
	}
	idle, err := u.cpu()
	if err != nil {
		return nil, err
	}
	watching, stop := context.WithCancel(ctx)
	defer stop()
	peak := u.watchMemory(watching)
	start := time.Now()
	var wg sync.WaitGroup
	for _, w := range writers {
		wg.Go(func() { w.run(ctx, start.Add(long), reads) })
	}
	compacted := u.compact(ctx)
	wg.Wait()
	s := &slice{elapsed: time.Since(start)}
	stop()
	s.peak, err = peak()
	if err := errors.Join(err, compacted, u.settle(ctx), ctx.Err()); err != nil {
		return nil, err
	}
	if s.written, err = u.written(); err != nil {
		return nil, err
	}
	if s.cpu, err = u.cpu(); err != nil {
		return nil, err
	}
	s.written, s.cpu = s.written-before, s.cpu-idle
	u.keep(s, writers)
	if len(s.latencies) == 0 {
		return nil, fmt.Errorf("%s: not one request of %d clients succeeded: %w", u.name(), clients, u.lastError)
	}
	return s, nil
}

// keep takes over what the writers know and did.
func (u *subject) keep(s *slice, writers []*writer) {
	u.entries = u.entries[:0]
	for _, w := range writers {
		s.latencies, s.failed = append(s.latencies, w.latencies...), s.failed+w.failed
		u.keys = max(u.keys, w.next)
		for _, own := range w.own {
			u.entries = append(u.entries, own...)
		}
		if w.err != nil {
			u.lastError = w.err
		}
	}
}

// writers deals the entries out to so many clients.
func (u *subject) writers(ctx context.Context, clients int) ([]*writer, error) {
	var all []*writer
	for i := range clients {
		c, err := u.client(i)
		if err != nil {
			return nil, err
		}
		lease, err := c.Grant(ctx, leaseSeconds)
		if err != nil {
			return nil, fmt.Errorf("%s: lease: %w", u.name(), err)
		}
		all = append(all, &writer{
			id: i, client: c, mix: u.mix, rand: rand.New(rand.NewPCG(uint64(i), uint64(u.keys))), next: u.keys,
			own: make([][]*entry, len(u.mix.resources)), lease: lease.ID,
		})
	}
	for i, e := range u.entries {
		w := all[i%clients]
		w.own[e.resource] = append(w.own[e.resource], e)
		if e.made {
			w.made = append(w.made, e)
		}
	}
	return all, nil
}
