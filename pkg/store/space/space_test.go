package space

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestThresholds(t *testing.T) {
	limits := Thresholds{Low: 200, Full: 100, Exhausted: 50}
	for _, c := range []struct {
		was  State
		free int64
		want State
	}{
		{OK, 49, Exhausted}, {Full, 49, Exhausted}, {Exhausted, 124, Exhausted}, {Exhausted, 125, Low}, {Exhausted, 250, OK},
		{OK, 200, OK}, {OK, 199, Low}, {OK, 99, Full},
		{Low, 249, Low}, {Low, 250, OK}, {Low, 100, Low}, {Low, 99, Full},
		{Full, 124, Full}, {Full, 125, Low}, {Full, 249, Low}, {Full, 250, OK}, {Full, 50, Full},
	} {
		if got := limits.Next(c.was, c.free, c.free); got != c.want {
			t.Errorf("after %v with %d free: %v; want %v", c.was, c.free, got, c.want)
		}
	}
	if got := limits.Next(Full, 0, 64); got != Full {
		t.Errorf("with the space of the reserve: %v; want full", got)
	}
}

func TestDefaultThresholds(t *testing.T) {
	for _, size := range []int64{64 << 20, 512 << 20, 1 << 30, 8 << 30, 1 << 40} {
		d := DefaultThresholds(size)
		if d.Full <= 0 || d.Exhausted <= 0 || d.Exhausted >= d.Full || d.Low <= d.Full*5/4 || d.Low > size/8 {
			t.Errorf("thresholds of a disk of %d MiB: %+v", size>>20, d)
		}
	}
}

func TestReserve(t *testing.T) {
	path := filepath.Join(t.TempDir(), "reserve")
	r, err := NewReserve(path, 4<<20)
	if err != nil {
		t.Fatal(err)
	}
	if r.Size() != 4<<20 || r.Held() != r.Size() {
		t.Errorf("size %d, held %d; want both %d", r.Size(), r.Held(), 4<<20)
	}
	if err := r.Release(); err != nil || r.Held() != 0 {
		t.Errorf("release: %v, held %d", err, r.Held())
	}
	if err := r.Release(); err != nil {
		t.Errorf("second release: %v", err)
	}
	if err := r.Rebuild(); err != nil || r.Held() != r.Size() {
		t.Errorf("rebuild: %v, held %d", err, r.Held())
	}
	// A file with a hole is no reserve.
	if err := os.Truncate(path, 0); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 4<<20); err != nil {
		t.Fatal(err)
	}
	if r.Held() != 0 {
		t.Errorf("a file of holes counts as %d bytes", r.Held())
	}
	again, err := NewReserve(path, 4<<20)
	if err != nil || again.Held() != again.Size() {
		t.Errorf("reserve over an old file: %v, held %d", err, again.Held())
	}
}

// TestRun sees the state that the directory's disk has, told once.
func TestRun(t *testing.T) {
	dir := t.TempDir()
	u, err := Look(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		limits Thresholds
		want   State
	}{
		{Thresholds{Low: 2, Full: 1}, OK},
		{Thresholds{Low: u.Size * 4, Full: u.Size * 3, Exhausted: u.Size * 2}, Exhausted},
		{Thresholds{Low: u.Size * 2, Full: 1}, Low},
		{Thresholds{Low: u.Size * 4, Full: u.Size * 2}, Full},
	} {
		m, err := NewMonitor(dir, nil, c.limits, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		told := 0
		m.Run(ctx, func(s State, _ Usage) {
			if told++; s != c.want {
				t.Errorf("%+v: state %v; want %v", c.limits, s, c.want)
			}
			m.Check()
			time.AfterFunc(20*time.Millisecond, cancel)
		})
		cancel()
		if told != 1 {
			t.Errorf("the state was told %d times; want once", told)
		}
	}
	if _, err := NewMonitor(filepath.Join(dir, "none"), nil, Thresholds{}, nil); err == nil {
		t.Error("a monitor of a directory that is not there")
	}
}
