//go:build cgo

package cluster

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// mountSmall makes dir an ext4 file system of its own.
func mountSmall(t *testing.T, dir string, size int64) {
	t.Helper()
	image := filepath.Join(t.TempDir(), "disk")
	f, err := os.Create(image)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(size), f.Close(), os.MkdirAll(dir, 0o700)); err != nil {
		t.Fatal(err)
	}
	for _, argv := range [][]string{{"mkfs.ext4", "-q", "-m", "0", image}, {"mount", "-o", "loop", image, dir}} {
		if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
			t.Skipf("%v: %v: %s", argv, err, out)
		}
	}
	t.Cleanup(func() {
		// The node that used it has stopped only just.
		for range 50 {
			if err := syscall.Unmount(dir, 0); err == nil {
				return
			}
			time.Sleep(100 * time.Millisecond)
		}
		_ = syscall.Unmount(dir, syscall.MNT_DETACH)
	})
}

// occupy takes all the space that is left.
func occupy(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	buf := make([]byte, 1<<20)
	for len(buf) > 0 {
		_, err := f.Write(buf)
		if errors.Is(err, syscall.ENOSPC) {
			buf = buf[:len(buf)/2]
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

func TestLatencyFollowsTheDisk(t *testing.T) {
	for _, x := range []struct{ sync, want time.Duration }{
		{0, 100 * time.Millisecond}, {50 * time.Millisecond, 100 * time.Millisecond},
		{80 * time.Millisecond, 160 * time.Millisecond}, {time.Minute, time.Second},
	} {
		if got := latencyFor(x.sync); got != x.want {
			t.Errorf("latency for a disk of %s: %s; want %s", x.sync, got, x.want)
		}
	}
	sync, err := probeSync(t.TempDir())
	if err != nil || sync <= 0 {
		t.Errorf("probe: %s, %v; want a time", sync, err)
	}
}
