//go:build cgo

package chaos

import (
	"context"
	"log/slog"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/k3s-io/kine/pkg/server"
	"github.com/sirupsen/logrus"

	"github.com/cairn-os/cairn/pkg/store"
	"github.com/cairn-os/cairn/pkg/store/member"
)

// TestSpoiledBackend plants what matters most into the store's own backend:
// a read of the past as the present, a write acknowledged and not done.
func TestSpoiledBackend(t *testing.T) {
	for _, tt := range []struct {
		name  string
		spoil func(b *store.Backend) store.Source
		want  string
	}{
		{"nothing", func(b *store.Backend) store.Source { return b }, ""},
		{"stale read", func(b *store.Backend) store.Source { return &staleBackend{Backend: b} }, "not linearizable"},
		{"lost write", func(b *store.Backend) store.Source { return &losingBackend{Backend: b} }, "lost: "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			judge(t, serve(t, tt.spoil), nil, tt.want)
		})
	}
}

// serve is a lone member in this process, with its backend spoiled.
func serve(t *testing.T, spoil func(*store.Backend) store.Source) (socket string) {
	t.Helper()
	logrus.SetLevel(logrus.FatalLevel) // kine's logger.
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	dir := t.TempDir()
	m, err := member.Start(member.Options{Dir: filepath.Join(dir, "data"), Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	connector, err := m.Connector()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	b, err := store.Open(ctx, store.Options{Connector: connector, Logger: log})
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	socket = filepath.Join(dir, "sock")
	listener, err := store.Listen(ctx, socket)
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- store.NewServer(spoil(b)).Serve(ctx, listener) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return socket
}

// staleBackend answers every twentieth read of a key as of three revisions ago,
// under the header of the present.
type staleBackend struct {
	*store.Backend
	reads atomic.Int64
}

func (s *staleBackend) Get(ctx context.Context, key string, revision int64, keysOnly bool) (int64, *server.KeyValue, error) {
	at, kv, err := s.Backend.Get(ctx, key, revision, keysOnly)
	if err != nil || revision != 0 || at < 10 || s.reads.Add(1)%20 != 0 {
		return at, kv, err
	}
	_, kv, err = s.Backend.Get(ctx, key, at-3, keysOnly)
	return at, kv, err
}

// losingBackend acknowledges every twentieth update without doing it.
type losingBackend struct {
	*store.Backend
	updates atomic.Int64
}

func (l *losingBackend) Update(ctx context.Context, key string, value []byte, revision, lease int64) (int64, *server.KeyValue, bool, error) {
	if l.updates.Add(1)%20 == 0 {
		at := l.Head() + 1
		return at, &server.KeyValue{Key: key, Value: value, ModRevision: at}, true, nil
	}
	return l.Backend.Update(ctx, key, value, revision, lease)
}
