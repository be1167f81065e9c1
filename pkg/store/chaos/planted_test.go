package chaos

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/cairn-os/cairn/pkg/store/chaos/history"
)

// TestPlanted spoils a sound store a little, and expects the checker to
// notice. Unspoiled, it must find nothing.
func TestPlanted(t *testing.T) {
	for _, tt := range []struct {
		name  string
		plant func(node int, c *clientv3.Client)
		want  string // part of a problem
	}{
		{"nothing", nil, ""},
		{"stale read", func(node int, c *clientv3.Client) {
			c.KV = &staleReads{KV: c.KV}
		}, "not linearizable"},
		{"lost write", func(node int, c *clientv3.Client) {
			c.KV = &lostWrites{KV: c.KV}
		}, "lost: "},
		{"watch that skips an event", func(node int, c *clientv3.Client) {
			c.Watcher = &spoiledWatch{c.Watcher, node == 1, func(events []*clientv3.Event) []*clientv3.Event { return events[:len(events)-1] }}
		}, "watch of node 1 left out"},
		{"watch that repeats an event", func(node int, c *clientv3.Client) {
			c.Watcher = &spoiledWatch{c.Watcher, node == 1, func(events []*clientv3.Event) []*clientv3.Event {
				return append(events, events[len(events)-1])
			}}
		}, "twice"},
		{"watch out of order", func(node int, c *clientv3.Client) {
			var held *clientv3.Event
			c.Watcher = &spoiledWatch{c.Watcher, node == 1, func(events []*clientv3.Event) []*clientv3.Event {
				if held == nil {
					held = events[len(events)-1]
					return events[:len(events)-1]
				}
				events, held = append(events, held), nil
				return events
			}}
		}, "after"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			judge(t, loneEtcd(t), tt.plant, tt.want)
		})
	}
}

// judge lets clients work on a store through two connections and expects a
// problem in their history, none if want is empty.
func judge(t *testing.T, socket string, plant func(node int, c *clientv3.Client), want string) {
	t.Helper()
	w := &workload{seed: 1, sockets: []string{socket, socket}, clients: 6, history: history.New(), plant: plant}
	const requests = 700 // so that each fault comes several times
	_, err := w.run(t.Context(), func() error {
		for range 600 {
			if err := pause(t.Context(), 100*time.Millisecond); err != nil || len(w.history.Operations()) >= requests {
				return err
			}
		}
		return fmt.Errorf("%d requests in a minute; want %d", len(w.history.Operations()), requests)
	})
	if err != nil {
		t.Fatal(err)
	}
	v := w.history.Check()
	found := strings.Join(v.Problems, "\n")
	if want == "" && !v.Ok() || !strings.Contains(found, want) {
		t.Errorf("after %d requests the problems are\n%s\nwant %q", v.Requests, found, want)
	}
	t.Logf("%d requests, %d changes; the checker says:\n%s", v.Requests, v.Changes, found)
}

// staleReads gives every tenth read the answer of the one before it.
type staleReads struct {
	clientv3.KV
	reads atomic.Int64
	last  map[string]*clientv3.GetResponse
}

func (s *staleReads) Get(ctx context.Context, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	if s.last == nil {
		s.last = map[string]*clientv3.GetResponse{}
	}
	if old := s.last[key]; old != nil && len(opts) == 0 && s.reads.Add(1)%10 == 0 {
		return old, nil
	}
	resp, err := s.KV.Get(ctx, key, opts...)
	if err == nil && len(opts) == 0 {
		s.last[key] = resp
	}
	return resp, err
}

// lostWrites acknowledges every fifth put without doing it, but for the last
// of a run, for which the run waits.
type lostWrites struct {
	clientv3.KV
	puts, revision int64
}

func (l *lostWrites) Put(ctx context.Context, key, value string, opts ...clientv3.OpOption) (*clientv3.PutResponse, error) {
	if l.puts++; l.puts%5 == 0 && !strings.HasPrefix(value, "final.") {
		return &clientv3.PutResponse{Header: &pb.ResponseHeader{Revision: l.revision + 1}}, nil
	}
	resp, err := l.KV.Put(ctx, key, value, opts...)
	if err == nil {
		l.revision = resp.Header.Revision
	}
	return resp, err
}

// spoiledWatch changes every thirtieth response with events, of one node.
type spoiledWatch struct {
	clientv3.Watcher
	on     bool
	change func([]*clientv3.Event) []*clientv3.Event
}

func (s *spoiledWatch) Watch(ctx context.Context, key string, opts ...clientv3.OpOption) clientv3.WatchChan {
	out := make(chan clientv3.WatchResponse)
	go func() {
		defer close(out)
		n := 0
		for resp := range s.Watcher.Watch(ctx, key, opts...) {
			if len(resp.Events) > 0 {
				if n++; s.on && (n == 30 || n == 31) {
					resp.Events = s.change(resp.Events)
				}
			}
			out <- resp
		}
	}()
	return out
}
