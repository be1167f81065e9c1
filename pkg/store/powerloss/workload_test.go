//go:build cgo && linux

package powerloss_test

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/cairn-os/cairn/pkg/store/powerloss"
)

const (
	prefix    = "/t/"
	prefixEnd = "/t0"
	clients   = 6
	// keysPerClient is how many keys each client writes; no other does.
	keysPerClient = 30
	// compactEvery and keepRevisions are the pace of compaction.
	compactEvery, keepRevisions = 300, 100
)

// note is a mark in the recording: an operation is attempted, or was
// acknowledged.
type note struct {
	Acknowledged bool
	Key          string `json:",omitempty"`
	// Hash is the value's, empty for a deletion.
	Hash string `json:",omitempty"`
	// Revision is that of an acknowledged write, and the one up to which a
	// compaction, which has no Key, goes.
	Revision int64 `json:",omitempty"`
}

// workload writes to a recorded store.
type workload struct {
	t            *testing.T
	recorder     *powerloss.Recorder
	socket       string
	seed         uint64
	acknowledged atomic.Int64 // operations
	revision     atomic.Int64 // newest
	writers      []*writer
}

// writer is a client with keys of its own.
type writer struct {
	w    *workload
	name int
	rng  *rand.Rand
	revs map[string]int64 // of the keys that exist
	seq  int
}

func newWorkload(t *testing.T, r *powerloss.Recorder, socket string, seed uint64) *workload {
	w := &workload{t: t, recorder: r, socket: socket, seed: seed}
	for i := range clients {
		w.writers = append(w.writers, &writer{w: w, name: i, rng: rand.New(rand.NewPCG(seed, uint64(i)))})
	}
	return w
}

func (w *workload) mark(n note) {
	data, err := json.Marshal(n)
	if err != nil {
		w.t.Error(err)
	}
	w.recorder.Mark(data)
}

// run lets all clients write to the store cmd until it has acknowledged n
// operations, and sends it sig while they write on.
func (w *workload) run(cmd *exec.Cmd, n int64, sig syscall.Signal) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), 5*time.Minute)
	defer cancel()
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{"unix://" + w.socket}, DialTimeout: patience, Logger: zap.NewNop()})
	if err != nil {
		w.t.Fatal(err)
	}
	defer client.Close()
	goal := w.acknowledged.Load() + n
	reached := make(chan struct{})
	var once sync.Once
	var group sync.WaitGroup
	writing, stop := context.WithCancel(ctx)
	defer stop()
	for _, c := range w.writers {
		group.Go(func() {
			for err := c.read(writing, client); err == nil; err = c.write(writing, client) {
				if w.acknowledged.Load() >= goal {
					once.Do(func() { close(reached) })
				}
			}
		})
	}
	group.Go(func() { w.compact(writing, client) })
	select {
	case <-reached:
	case <-ctx.Done():
		w.t.Errorf("the store acknowledged %d operations of %d in time", n-goal+w.acknowledged.Load(), n)
	}
	if err := cmd.Process.Signal(sig); err != nil {
		w.t.Error(err)
	}
	if err := cmd.Wait(); err != nil && sig == syscall.SIGTERM {
		w.t.Errorf("the store's end: %v", err)
	}
	stop()
	group.Wait()
}

// read learns what became of writes whose answer was lost.
func (c *writer) read(ctx context.Context, client *clientv3.Client) error {
	resp, err := client.Get(ctx, fmt.Sprintf("%s%d/", prefix, c.name), clientv3.WithPrefix())
	if err != nil {
		return err
	}
	c.revs = map[string]int64{}
	for _, kv := range resp.Kvs {
		c.revs[string(kv.Key)] = kv.ModRevision
	}
	return nil
}

// write creates, replaces or deletes a key as the apiserver does.
func (c *writer) write(ctx context.Context, client *clientv3.Client) error {
	key := fmt.Sprintf("%s%d/%d", prefix, c.name, c.rng.IntN(keysPerClient))
	n := note{Key: key}
	op := clientv3.OpDelete(key)
	if c.revs[key] == 0 || c.rng.IntN(8) != 0 {
		value := c.value()
		n.Hash = hashOf([]byte(value))
		op = clientv3.OpPut(key, value)
	}
	c.w.mark(n)
	txn := client.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(key), "=", c.revs[key])).Then(op)
	if c.revs[key] != 0 {
		txn = txn.Else(clientv3.OpGet(key))
	}
	resp, err := txn.Commit()
	if err != nil {
		return err
	}
	if !resp.Succeeded {
		c.w.t.Errorf("%s is not at revision %d any more; nobody else writes it", key, c.revs[key])
		return fmt.Errorf("%s was changed", key)
	}
	n.Acknowledged, n.Revision = true, resp.Header.Revision
	c.w.mark(n)
	c.w.acknowledged.Add(1)
	for {
		old := c.w.revision.Load()
		if old >= n.Revision || c.w.revision.CompareAndSwap(old, n.Revision) {
			break
		}
	}
	if c.revs[key] = n.Revision; n.Hash == "" {
		delete(c.revs, key)
	}
	return nil
}

// value is of a size that Kubernetes' objects have, half of it compressible.
func (c *writer) value() string {
	c.seq++
	size := 300 + c.rng.IntN(1200)
	switch p := c.rng.IntN(100); {
	case p < 3:
		size = 8_000 + c.rng.IntN(12_000)
	case p < 20:
		size = 1_500 + c.rng.IntN(6_500)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%d-%d", c.name, c.seq)
	for b.Len() < size {
		fmt.Fprintf(&b, `,"%x":"%x"`, c.rng.Uint32(), c.rng.Uint64())
	}
	return b.String()[:size]
}

// compact does what the apiserver does every five minutes.
func (w *workload) compact(ctx context.Context, client *clientv3.Client) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	last := w.revision.Load()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if w.revision.Load() < last+compactEvery {
			continue
		}
		last = w.revision.Load()
		n := note{Revision: last - keepRevisions}
		w.mark(n)
		if _, err := client.Compact(ctx, n.Revision); err != nil {
			return
		}
		n.Acknowledged = true
		w.mark(n)
	}
}
