package watchdog

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
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

// TestHandOn: the next program finds the watchdog open and armed, and what that one starts does not get it.
func TestHandOn(t *testing.T) {
	path := fake(t)
	w, err := Open(path, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.HandOn(); err != nil {
		t.Fatal(err)
	}
	flags, err := unix.FcntlInt(w.file.Fd(), unix.F_GETFD, 0)
	if err != nil || flags&unix.FD_CLOEXEC != 0 {
		t.Errorf("descriptor flags %#x, %v; want one that stays open", flags, err)
	}
	// The same process stands for the next program: what counts is what /proc says.
	heir, err := Inherit("/proc/self/fd", path, time.Minute)
	if err != nil || heir == nil {
		t.Fatalf("Inherit() = %v, %v; want the watchdog", heir, err)
	}
	if flags, err := unix.FcntlInt(heir.file.Fd(), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("descriptor flags %#x, %v; want one that children do not get", flags, err)
	}
	if err := heir.Feed(); err != nil {
		t.Fatal(err)
	}
	if got := content(t, path); got != "11" {
		t.Errorf("the watchdog got %q; want 11 and no disarming", got)
	}
	if other, err := Inherit("/proc/self/fd", filepath.Join(t.TempDir(), "none"), time.Minute); other != nil || err != nil {
		t.Errorf("Inherit() of what nobody opened = %v, %v; want nothing", other, err)
	}
	if _, err := w.BootStatus(); err == nil {
		t.Error("BootStatus of a plain file succeeded")
	}
	if name := w.Name(); name != "" {
		t.Errorf("Name() of a plain file = %q", name)
	}
}

// TestRequests holds the numbers of <linux/watchdog.h> against the way in which <asm-generic/ioctl.h> makes them.
func TestRequests(t *testing.T) {
	const write, read = 1, 2
	ioc := func(dir, nr, size uint32) uint32 { return dir<<30 | size<<16 | 'W'<<8 | nr }
	for got, want := range map[uint32]uint32{
		getSupport: ioc(read, 0, 40), getBootStatus: ioc(read, 2, 4), setTimeout: ioc(read|write, 6, 4), getTimeout: ioc(read, 7, 4),
	} {
		if got != want {
			t.Errorf("request %#x; want %#x", got, want)
		}
	}
}
