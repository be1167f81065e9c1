//go:build cgo

package store_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/cairn-os/cairn/pkg/store"
	"github.com/cairn-os/cairn/pkg/store/member"
)

// TestServeEndsWithItsListener: when the listener breaks, no connection is
// served on: its client would be stuck with a store that is closed.
func TestServeEndsWithItsListener(t *testing.T) {
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelError}))
	dir := t.TempDir()
	m, err := member.Start(member.Options{Dir: filepath.Join(dir, "data"), Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	connector, err := m.Connector()
	if err != nil {
		t.Fatal(err)
	}
	b, err := store.Open(t.Context(), store.Options{Connector: connector, Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "s")
	l, err := store.Listen(t.Context(), socket)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- store.NewServer(b).Serve(t.Context(), l) }()
	client := connect(t, socket)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if _, err := client.Get(ctx, "/t/a"); err != nil {
		t.Fatal(err)
	}
	watch := client.Watch(ctx, "/t/a")
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-served; !errors.Is(err, net.ErrClosed) {
		t.Errorf("serve: %v; want a closed listener", err)
	}
	short, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	if _, err := client.Get(short, "/t/a"); err == nil {
		t.Error("a request is answered after the server has ended")
	}
	_ = watch
	if err := errors.Join(b.Close(), m.Close()); err != nil {
		t.Error(err)
	}
}
