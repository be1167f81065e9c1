package watchdog

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// fake is a plain file: it records what is written and knows no ioctl, like the simplest drivers.
func fake(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "watchdog")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func content(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestFeedAndDisarm(t *testing.T) {
	path := fake(t)
	w, err := Open(path, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if w.Timeout() != time.Minute {
		t.Errorf("Timeout() = %v; want 1m", w.Timeout())
	}
	for range 3 {
		if err := w.Feed(); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Disarm(); err != nil {
		t.Fatal(err)
	}
	if got := content(t, path); got != "111V" {
		t.Errorf("the watchdog got %q; want 111V", got)
	}
	if err := w.Feed(); err == nil {
		t.Error("Feed after Disarm succeeded")
	}
}

func TestRunStopsWhenNotAlive(t *testing.T) {
	path := fake(t)
	w, err := Open(path, 8*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	stuck := errors.New("stuck")
	n := 0
	err = w.Run(t.Context(), func(context.Context) error {
		if n++; n > 3 {
			return stuck
		}
		return nil
	})
	if !errors.Is(err, stuck) {
		t.Errorf("Run() = %v; want %v", err, stuck)
	}
	if got := content(t, path); got != "111" {
		t.Errorf("the watchdog got %q; want 111 and no disarming", got)
	}
}

func TestMissing(t *testing.T) {
	if _, err := Open(filepath.Join(t.TempDir(), "none"), time.Minute); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Open() = %v; want not exist", err)
	}
}
