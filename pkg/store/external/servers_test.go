package external

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// everyChangeOnce lets clients of two servers of one database write the same
// keys. Watches of both, from the start and from the middle, see every write
// that was acknowledged, once, in order.
func everyChangeOnce(t *testing.T, d *database) {
	clients := []*clientv3.Client{connect(t, serve(t, d.url(), nil).socket), connect(t, serve(t, d.url(), nil).socket)}
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	const writers, writes, keys = 8, 40, 5
	written := newRecord()
	var watchers, all sync.WaitGroup
	watch := func(c *clientv3.Client, from int64, until <-chan struct{}) {
		events := c.Watch(ctx, "/t/", clientv3.WithPrefix(), clientv3.WithRev(from))
		watchers.Go(func() { written.compare(t, events, from, until) })
	}
	first, err := clients[0].Get(ctx, "/none")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	for _, c := range clients {
		watch(c, first.Header.Revision+1, done)
	}
	for w := range writers {
		c := clients[w%2]
		all.Go(func() {
			for i := range writes {
				if err := written.write(ctx, c, fmt.Sprintf("/t/%d", (w+i)%keys), fmt.Sprintf("%d-%d", w, i)); err != nil {
					t.Error(err)
					return
				}
				if w < 2 && i%10 == 5 {
					// As the apiserver's reflectors: list, then watch from there.
					list, err := c.Get(ctx, "/t/", clientv3.WithPrefix())
					if err != nil {
						t.Error(err)
						return
					}
					watch(c, list.Header.Revision+1, done)
				}
			}
		})
	}
	all.Wait()
	close(done)
	watchers.Wait()
}

// record holds the acknowledged writes.
type record struct {
	mu     sync.Mutex
	values map[int64]string
}

func newRecord() *record { return &record{values: map[int64]string{}} }

// write updates or creates a key by comparison, until it succeeds.
func (r *record) write(ctx context.Context, c *clientv3.Client, key, value string) error {
	for {
		got, err := c.Get(ctx, key)
		if err != nil {
			return err
		}
		var at int64
		if len(got.Kvs) > 0 {
			at = got.Kvs[0].ModRevision
		}
		resp, err := c.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(key), "=", at)).Then(clientv3.OpPut(key, value)).Else(clientv3.OpGet(key)).Commit()
		if err != nil {
			return err
		}
		if resp.Succeeded {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.values[resp.Header.Revision] = key + "=" + value
			return nil
		}
	}
}

// compare reads events from a revision on until all writes are there, which is
// known once until is closed.
func (r *record) compare(t *testing.T, events clientv3.WatchChan, from int64, until <-chan struct{}) {
	seen, last := map[int64]string{}, int64(0)
	want := func() map[int64]string {
		r.mu.Lock()
		defer r.mu.Unlock()
		m := maps.Clone(r.values)
		maps.DeleteFunc(m, func(rev int64, _ string) bool { return rev < from })
		return m
	}
	patience := time.NewTimer(time.Hour)
	defer patience.Stop()
	for {
		select {
		case resp, ok := <-events:
			if !ok || resp.Err() != nil {
				t.Errorf("watch from %d ended: %v", from, resp.Err())
				return
			}
			for _, e := range resp.Events {
				if e.Kv.ModRevision <= last {
					t.Errorf("watch from %d: event at %d after %d", from, e.Kv.ModRevision, last)
				}
				last = e.Kv.ModRevision
				seen[last] = string(e.Kv.Key) + "=" + string(e.Kv.Value)
			}
		case <-until:
			until = nil
			patience.Reset(20 * time.Second)
		case <-patience.C:
			t.Errorf("watch from %d, written and seen: %s", from, cmp.Diff(want(), seen))
			return
		}
		if until == nil && len(seen) >= len(want()) {
			if d := cmp.Diff(want(), seen); d != "" {
				t.Errorf("watch from %d, written and seen: %s", from, d)
			}
			return
		}
	}
}

// serversAgree expects a server to know at once what another has written:
// by a list, by a key that is missing and by the progress of its watches, on
// which the apiserver's consistent lists rest.
func serversAgree(t *testing.T, d *database) {
	a, b := connect(t, serve(t, d.url(), nil).socket), connect(t, serve(t, d.url(), nil).socket)
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	progress := b.Watch(ctx, "/t/", clientv3.WithPrefix(), clientv3.WithCreatedNotify())
	<-progress
	for i := range 30 {
		put, err := a.Put(ctx, fmt.Sprintf("/t/%02d", i), "v")
		if err != nil {
			t.Fatal(err)
		}
		rev := put.Header.Revision
		missing, err := b.Get(ctx, "/t/none")
		if err != nil || missing.Header.Revision < rev {
			t.Fatalf("revision of a missing key = %v, %v; want at least %d", missing, err, rev)
		}
		list, err := b.Get(ctx, "/t/", clientv3.WithPrefix(), clientv3.WithLimit(500))
		if err != nil || len(list.Kvs) != i+1 || list.Header.Revision < rev {
			t.Fatalf("list = %v, %v; want %d keys", list, err, i+1)
		}
		seen := false
		for reached := false; !reached; {
			if err := b.RequestProgress(ctx); err != nil {
				t.Fatal(err)
			}
			resp, ok := <-progress
			if !ok || resp.Err() != nil {
				t.Fatalf("watch ended: %v", resp.Err())
			}
			for _, e := range resp.Events {
				seen = seen || e.Kv.ModRevision == rev
			}
			reached = resp.IsProgressNotify() && resp.Header.Revision >= rev
		}
		if !seen {
			t.Fatalf("progress to %d before its event", rev)
		}
	}
}

// events is what the suite's tests of writes and watches check, without the
// versions that kine's table does not have.
func events(t *testing.T, d *database) {
	c := connect(t, serve(t, d.url(), nil).socket)
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	start, err := c.Get(ctx, "/none")
	if err != nil {
		t.Fatal(err)
	}
	big := strings.Repeat("x", 1200<<10)
	var want []string
	revision := func(resp *clientv3.PutResponse, err error) int64 {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return resp.Header.Revision
	}
	one := revision(c.Put(ctx, "/t/a", "1"))
	two := revision(c.Put(ctx, "/t/a", ""))
	three := revision(c.Put(ctx, "/t/a", big))
	other := revision(c.Put(ctx, "/u/a", "1"))
	gone, err := c.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision("/t/a"), "=", three)).Then(clientv3.OpDelete("/t/a")).Else(clientv3.OpGet("/t/a")).Commit()
	if err != nil || !gone.Succeeded {
		t.Fatalf("delete: %v, %v", gone, err)
	}
	again := revision(c.Put(ctx, "/t/a", "2"))
	want = append(want,
		fmt.Sprintf("create /t/a 1 @%d of %d", one, one),
		fmt.Sprintf("update /t/a  @%d of %d, was 1 @%d", two, one, one),
		fmt.Sprintf("update /t/a %d bytes @%d of %d, was  @%d", len(big), three, one, two),
		fmt.Sprintf("delete /t/a  @%d of 0, was %d bytes @%d", gone.Header.Revision, len(big), three),
		fmt.Sprintf("create /t/a 2 @%d of %d", again, again))
	for from, want := range map[int64][]string{start.Header.Revision + 1: want, three: want[2:], other: want[3:]} {
		var got []string
		events := c.Watch(ctx, "/t/", clientv3.WithPrefix(), clientv3.WithPrevKV(), clientv3.WithRev(from))
		for len(got) < len(want) {
			resp, ok := <-events
			if !ok || resp.Err() != nil {
				t.Fatalf("watch from %d ended: %v", from, resp.Err())
			}
			for _, e := range resp.Events {
				got = append(got, spell(e))
			}
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("watch from %d: %s", from, d)
		}
	}
	kv, err := c.Get(ctx, "/t/a")
	if err != nil || len(kv.Kvs) != 1 || kv.Kvs[0].CreateRevision != again || kv.Kvs[0].ModRevision != again {
		t.Errorf("get = %v, %v; want the key of revision %d", kv, err, again)
	}
}

func spell(e *clientv3.Event) string {
	value := func(v []byte) string {
		if len(v) > 100 {
			return fmt.Sprintf("%d bytes", len(v))
		}
		return string(v)
	}
	kinds := []string{"update", "create", "delete"}
	kind := slices.Index([]bool{e.IsModify(), e.IsCreate()}, true)
	if kind < 0 {
		kind = 2
	}
	text := fmt.Sprintf("%s %s %s @%d of %d", kinds[kind], e.Kv.Key, value(e.Kv.Value), e.Kv.ModRevision, e.Kv.CreateRevision)
	if e.PrevKv != nil {
		text += fmt.Sprintf(", was %s @%d", value(e.PrevKv.Value), e.PrevKv.ModRevision)
	}
	return text
}
