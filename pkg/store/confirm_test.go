//go:build cgo

package store_test

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"sync/atomic"
	"testing"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/cairn-os/cairn/pkg/store"
	"github.com/cairn-os/cairn/pkg/store/member"
)

// TestConfirm: a Backend that cannot be certain to be the only one answers
// nothing about the present, and what it can prove.
func TestConfirm(t *testing.T) {
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelError}))
	m, err := member.Start(member.Options{Dir: filepath.Join(t.TempDir(), "data"), Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	connector, err := m.Connector()
	if err != nil {
		t.Fatal(err)
	}
	var deposed atomic.Bool
	b, err := store.Open(t.Context(), store.Options{Connector: connector, Logger: log, Confirm: func(context.Context) error {
		if deposed.Load() {
			return rpctypes.ErrGRPCLeaderChanged
		}
		return nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(b.Close(), m.Close()); err != nil {
			t.Error(err)
		}
	})
	ctx := t.Context()
	rev, err := b.Create(ctx, "/t/a", []byte("1"), 0)
	if err != nil {
		t.Fatal(err)
	}
	deposed.Store(true)
	for _, x := range []struct {
		name string
		ask  func() error
		want error
	}{
		{"get", func() error { _, _, err := b.Get(ctx, "/t/a", 0, false); return err }, rpctypes.ErrGRPCLeaderChanged},
		{"get of a missing key", func() error { _, _, err := b.Get(ctx, "/t/b", 0, false); return err }, rpctypes.ErrGRPCLeaderChanged},
		{"list", func() error { _, _, err := b.List(ctx, "/t/", "/t0", 0, 0, false); return err }, rpctypes.ErrGRPCLeaderChanged},
		{"count", func() error { _, _, err := b.Count(ctx, "/t/", "/t0", 0); return err }, rpctypes.ErrGRPCLeaderChanged},
		{"current revision", func() error { _, err := b.CurrentRevision(ctx); return err }, rpctypes.ErrGRPCLeaderChanged},
		{"get in the future", func() error { _, _, err := b.Get(ctx, "/t/a", rev+5, false); return err }, rpctypes.ErrGRPCLeaderChanged},
		{"get in the past", func() error { _, _, err := b.Get(ctx, "/t/a", rev, false); return err }, nil},
		{"create an existing key", func() error { _, err := b.Create(ctx, "/t/a", []byte("2"), 0); return err }, rpctypes.ErrGRPCLeaderChanged},
		{"update of another revision", func() error { _, _, _, err := b.Update(ctx, "/t/a", []byte("2"), rev+1, 0); return err }, rpctypes.ErrGRPCLeaderChanged},
		{"delete a missing key", func() error { _, _, _, err := b.Delete(ctx, "/t/b", 0); return err }, rpctypes.ErrGRPCLeaderChanged},
		{"update that succeeds", func() error { _, _, _, err := b.Update(ctx, "/t/a", []byte("2"), rev, 0); return err }, nil},
	} {
		if err := x.ask(); !errors.Is(err, x.want) || x.want == nil && err != nil {
			t.Errorf("%s: %v; want %v", x.name, err, x.want)
		}
	}
}
