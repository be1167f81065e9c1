package store

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/k3s-io/kine/pkg/server"
)

// filled is a History of as many changes as it says, of half a chunk each.
type filled int64

func (h filled) Head() int64    { return int64(h) }
func (filled) Compacted() int64 { return 0 }
func (filled) Changes(_ context.Context, _, _ string, after, upTo int64, limit int, each func(*server.Event) error) error {
	value := make([]byte, feedChunkBytes/2)
	for id := after + 1; id <= upTo && limit != 0; id, limit = id+1, limit-1 {
		if err := each(&server.Event{KV: &server.KeyValue{Key: "/t/a", ModRevision: id, Value: value}}); err != nil {
			return err
		}
	}
	return nil
}

// TestBehindReadsLittleAhead starts a watch in the past that nobody reads
// from: few chunks wait for it in memory, and it still gets all.
func TestBehindReadsLittleAhead(t *testing.T) {
	const changes = 100
	f := NewFeed(filled(changes), slog.New(slog.DiscardHandler))
	events, errs := f.feed.watch(t.Context(), newRange("/t/", "/t0"), 1)
	deadline := time.Now().Add(20 * time.Second)
	for len(events) < behindBuffer && time.Now().Before(deadline) {
		time.Sleep(time.Millisecond)
	}
	time.Sleep(10 * behindLook)
	if n := len(events); n != behindBuffer {
		t.Errorf("%d chunks wait for a watch that is behind; want %d", n, behindBuffer)
	}
	for want := int64(1); want <= changes; {
		batch, ok := <-events
		if !ok {
			t.Fatalf("the watch ended before revision %d: %v", want, <-errs)
		}
		for _, e := range batch {
			if e.KV.ModRevision != want {
				t.Fatalf("event of revision %d; want %d", e.KV.ModRevision, want)
			}
			want++
		}
	}
}

// TestWaitForTheEnd: when the feed has closed, who waits for events is not told
// that a watch has them before its channel says that it has ended.
func TestWaitForTheEnd(t *testing.T) {
	f := newFeed(historyReader{filled(0)}, slog.New(slog.DiscardHandler), func() int64 { return 0 }, func() int64 { return 0 })
	w := &watch{cancel: func(error) {}} // one whose end takes long
	f.watches[w] = struct{}{}
	f.close()
	waited := make(chan struct{})
	go func() { f.waitFor(t.Context(), 1); close(waited) }()
	select {
	case <-waited:
		t.Error("waitFor returns while a watch has not ended")
	case <-time.After(100 * time.Millisecond):
	}
	f.mu.Lock()
	delete(f.watches, w)
	f.advance(0)
	f.mu.Unlock()
	select {
	case <-waited:
	case <-time.After(20 * time.Second):
		t.Error("waitFor does not return when all watches have ended")
	}
}
