package stamp

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

func TestStamp(t *testing.T) {
	path := filepath.Join(t.TempDir(), "clock")
	if _, err := Read(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Read without a file: %v; want not exist", err)
	}
	now := time.Date(2026, 11, 20, 14, 3, 4, 500, time.FixedZone("", 3600))
	if err := Write(path, now); err != nil {
		t.Fatal(err)
	}
	got, err := Read(path)
	if err != nil || !got.Equal(now.Truncate(time.Second)) {
		t.Errorf("Read = %v, %v; want %v", got, err, now)
	}
	if err := os.WriteFile(path, []byte("yesterday"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := Read(path); err == nil || !got.IsZero() {
		t.Errorf("Read of nonsense = %v, %v; want an error", got, err)
	}
}

func TestKeep(t *testing.T) {
	path := filepath.Join(t.TempDir(), "clock")
	ctx, stop := context.WithCancel(t.Context())
	synced := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { Keep(ctx, path, time.Hour, synced, slog.New(slog.DiscardHandler)) })
	synced <- struct{}{}
	synced <- struct{}{} // the first has been written
	old := time.Now().Add(-24 * time.Hour)
	if got, err := Read(path); err != nil || got.Before(old) {
		t.Errorf("after a synchronisation: %v, %v; want the time", got, err)
	}
	stop()
	wg.Wait()
	if err := Write(path, old); err != nil {
		t.Fatal(err)
	}
	wg.Go(func() { Keep(ctx, path, time.Hour, nil, slog.New(slog.DiscardHandler)) })
	wg.Wait()
	if got, err := Read(path); err != nil || !got.After(old.Add(time.Hour)) {
		t.Errorf("after the end: %v, %v; want the time of the end", got, err)
	}
}
