package peer

import (
	"sync"
	"time"
)

const (
	// noteInterval is the least time between two log lines about one thing.
	noteInterval = time.Minute
	// noteKeys bounds the memory for those who try from many addresses.
	noteKeys = 1024
)

// limiter keeps what happens often from flooding the log.
type limiter struct {
	now func() time.Time

	mu    sync.Mutex // guards the following
	notes map[string]*note
}

type note struct {
	last    time.Time
	skipped int
}

func newLimiter(now func() time.Time) *limiter { return &limiter{now: now, notes: map[string]*note{}} }

// allow reports whether to log about key, and how often it was not since the
// last time.
func (l *limiter) allow(key string) (skipped int, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	n := l.notes[key]
	if n != nil && now.Sub(n.last) < noteInterval {
		n.skipped++
		return 0, false
	}
	if n == nil {
		if len(l.notes) >= noteKeys && !l.sweep(now) {
			return 0, false
		}
		n = &note{}
		l.notes[key] = n
	}
	skipped = n.skipped
	*n = note{last: now}
	return skipped, true
}

// sweep forgets what was not noted of late; it reports whether there is room.
func (l *limiter) sweep(now time.Time) bool {
	for key, n := range l.notes {
		if now.Sub(n.last) >= noteInterval {
			delete(l.notes, key)
		}
	}
	return len(l.notes) < noteKeys
}
