package store_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/k3s-io/kine/pkg/server"

	"github.com/cairn-os/cairn/pkg/store"
	"github.com/cairn-os/cairn/pkg/store/member"
)

// TestRetention writes as fast as it goes beyond the bound on the history. The
// store compacts by itself, and keys are read meanwhile: each is there.
func TestRetention(t *testing.T) {
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	m, err := member.Start(member.Options{Dir: filepath.Join(t.TempDir(), "data"), Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	connector, err := m.Connector()
	if err != nil {
		t.Fatal(err)
	}
	const bound, keys, writers = 500, 8000, 16
	b, err := store.Open(t.Context(), store.Options{Connector: connector, Logger: log, MaxHistory: bound})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	value := make([]byte, 900)
	for i := range value {
		value[i] = byte(rand.Int())
	}
	name := func(i int) string { return fmt.Sprintf("/k/%d", i) }
	ctx, stop := context.WithTimeout(t.Context(), 60*time.Second)
	defer stop()
	var work sync.WaitGroup
	for w := range writers {
		work.Go(func() {
			for i := w; i < keys; i += writers {
				if _, err := b.Put(ctx, name(i), value, 0); err != nil {
					t.Error(err)
				}
			}
		})
	}
	work.Wait()
	var writing, reading sync.WaitGroup
	for w := range writers {
		writing.Go(func() {
			for range 10 * bound / writers {
				if _, err := b.Put(ctx, name(w+writers*rand.IntN(keys/writers)), value, 0); err != nil {
					t.Error(err)
				}
			}
		})
	}
	reads, done := 0, make(chan struct{})
	reading.Go(func() {
		for ; ; reads++ {
			select {
			case <-done:
				return
			default:
			}
			key := name(rand.IntN(keys))
			if _, kv, err := b.Get(ctx, key, 0, false); err != nil || kv == nil || len(kv.Value) != len(value) {
				t.Errorf("get %s: %v, %v", key, kv, err)
			}
		}
	})
	writing.Wait()
	close(done)
	reading.Wait()
	t.Logf("%d reads, compacted to %d of %d", reads, b.Compacted(), b.Head())
	for b.Compacted() < b.Head()-2*bound {
		if ctx.Err() != nil {
			t.Fatalf("compacted to %d of %d; want %d revisions at most", b.Compacted(), b.Head(), 2*bound)
		}
		time.Sleep(10 * time.Millisecond)
	}
	if _, _, err := b.Get(ctx, name(0), b.Compacted()-1, false); !errors.Is(err, server.ErrCompacted) {
		t.Errorf("get before the compact revision: %v; want %v", err, server.ErrCompacted)
	}
	if _, n, err := b.Count(ctx, "/k/", "/k0", 0); err != nil || n != keys {
		t.Errorf("%d keys, %v; want %d", n, err, keys)
	}
}
