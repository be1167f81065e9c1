// Package stamp keeps the time of day across power cuts, for boards whose clock has no battery.
//
// cairnd writes the time at most hourly and when it stops; init does not let the clock begin before it. The file is
// replaced whole: a power cut leaves the old time or the new one.
package stamp

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/cairn-os/cairn/pkg/atomicfile"
)

// Path is where a machine keeps the time.
const Path = "/var/lib/cairn/clock"

// Read returns the time in the file at path. The error wraps fs.ErrNotExist when there is none yet.
func Read(path string) (time.Time, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return time.Time{}, fmt.Errorf("read time stamp: %w", err)
	}
	t, err := time.Parse(time.RFC3339, strings.TrimSpace(string(data)))
	if err != nil {
		return time.Time{}, fmt.Errorf("read time stamp %s: %w", path, err)
	}
	return t, nil
}

// Write keeps t, in whole seconds. The directory must exist.
func Write(path string, t time.Time) error {
	if err := atomicfile.Write(path, []byte(t.UTC().Format(time.RFC3339)+"\n"), 0o644); err != nil {
		return fmt.Errorf("keep time stamp: %w", err)
	}
	return nil
}

// Interval is how often Keep writes: 24 small files a day are nothing to flash, and an hour is little beside the life of
// a certificate.
const Interval = time.Hour

// Keep writes the time of day to path every interval, whenever synced says that it was corrected, and when ctx ends. Once
// the clock is set back, by NTP or by a person, so is what is kept.
func Keep(ctx context.Context, path string, interval time.Duration, synced <-chan struct{}, log *slog.Logger) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for done := false; !done; {
		select {
		case <-ctx.Done():
			done = true
		case <-synced:
		case <-tick.C:
		}
		if err := Write(path, time.Now()); err != nil {
			log.Warn("the time is not kept for a boot without network", "error", err)
		}
	}
}
