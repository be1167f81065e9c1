package chaos

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/cairn-os/cairn/pkg/store/chaos/history"
)

// recovery is how long a healed store may take until every node answers and
// every watch has caught up.
const recovery = 60 * time.Second

// workload is the clients and watches of a run.
type workload struct {
	seed    uint64
	sockets []string // of the nodes
	clients int
	// plant, which may be nil, spoils a client of a node to see whether the
	// checker notices.
	plant   func(node int, c *clientv3.Client)
	history *history.History

	open []*clientv3.Client
}

func (w *workload) connect(node int) (*clientv3.Client, error) {
	c, err := dial(w.sockets[node])
	if err != nil {
		return nil, err
	}
	w.open = append(w.open, c)
	if w.plant != nil {
		w.plant(node, c)
	}
	return c, nil
}

// run lets the clients work while during runs. Then it waits until the store
// has recovered: every node answers, and each watch has the last change. It
// returns how long that took.
func (w *workload) run(ctx context.Context, during func() error) (recovered time.Duration, err error) {
	defer func() {
		for _, c := range w.open {
			_ = c.Close() // Of a connection that may be broken.
		}
	}()
	var clients []*client
	for i := range w.clients {
		node := i % len(w.sockets)
		c, err := w.connect(node)
		if err != nil {
			return 0, err
		}
		clients = append(clients, &client{
			number: i, node: node, etcd: c, history: w.history, random: random(w.seed, uint64(1+i)), known: map[string]int64{},
		})
	}
	var watching sync.WaitGroup
	watchCtx, endWatches := context.WithCancel(ctx)
	defer watching.Wait()
	defer endWatches()
	for node := range w.sockets {
		c, err := w.connect(node)
		if err != nil {
			return 0, err
		}
		watch := &watcher{node, c, w.history}
		watching.Go(func() { watch.run(watchCtx) })
		watching.Go(func() { watch.visit(watchCtx, random(w.seed, uint64(100+node))) })
	}
	watching.Go(func() { w.compact(watchCtx) })

	working, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	for _, c := range clients {
		wg.Go(func() { c.run(working) })
	}
	err = during()
	stop()
	wg.Wait()
	if err != nil {
		return 0, err
	}
	began := time.Now()
	err = w.settle(ctx, clients)
	return time.Since(began), err
}

// compact forgets old revisions now and then, through one node after the
// other. An error is nobody's concern: what was not compacted stays.
func (w *workload) compact(ctx context.Context) {
	for i := 0; pause(ctx, compactEvery) == nil; i++ {
		revision := w.history.Seen(len(w.sockets)) - keepRevisions
		if revision < 1 {
			continue
		}
		asking, cancel := context.WithTimeout(ctx, requestTimeout)
		_, _ = w.open[i%w.clients].Compact(asking, revision)
		cancel()
	}
}

// settle makes a last write, reads everything through each node, and waits
// for the watches.
func (w *workload) settle(ctx context.Context, clients []*client) error {
	ctx, cancel := context.WithTimeout(ctx, recovery)
	defer cancel()
	final := clients[0]
	revision, err := final.insist(ctx, func(i int) history.Operation {
		return history.Operation{Kind: history.Put, Key: keys[0], Value: fmt.Sprintf("final.%d", i)}
	})
	if err != nil {
		return err
	}
	for _, c := range clients[:min(len(clients), len(w.sockets))] {
		if _, err := c.insist(ctx, func(int) history.Operation { return history.Operation{Kind: history.List} }); err != nil {
			return err
		}
	}
	for node := range w.sockets {
		for {
			reached, news := w.history.Reached(node, revision)
			if reached {
				break
			}
			select {
			case <-news:
			case <-ctx.Done():
				return fmt.Errorf("the watch through node %d has not told of revision %d within %s after the last fault", node, revision, recovery)
			}
		}
	}
	return nil
}

// insist repeats a request until it is answered, and returns the revision.
func (c *client) insist(ctx context.Context, request func(try int) history.Operation) (int64, error) {
	for try := 0; ; try++ {
		o := request(try)
		o.Client, o.Node = c.number, c.node
		o, ok := c.do(ctx, o)
		if ok {
			return o.Revision, nil
		}
		if pause(ctx, errorPause) != nil {
			return 0, fmt.Errorf("no answer through node %d within %s after the last fault: %w", c.node, recovery, errors.New(o.Err))
		}
	}
}
