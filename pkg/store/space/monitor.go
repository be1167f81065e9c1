package space

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// State says how short space is.
type State int

const (
	// OK: there is space.
	OK State = iota
	// Low: what can be missed should be given up, such as events.
	Low
	// Full: writes should be refused before dqlite meets the end.
	Full
	// Exhausted: the reserve's space is nearly used up too. A member of a
	// cluster must be stopped until the state is better than Full: see the
	// package's documentation.
	Exhausted
)

func (s State) String() string {
	switch s {
	case OK:
		return "ok"
	case Low:
		return "low"
	case Full:
		return "full"
	case Exhausted:
		return "exhausted"
	default:
		return fmt.Sprintf("state %d", int(s))
	}
}

// Thresholds are the free bytes below which a state begins. Low and Full do
// not count the reserve, whether it is held or released, and end at a quarter
// more; Exhausted counts all that is free and ends with Full.
type Thresholds struct{ Low, Full, Exhausted int64 }

// DefaultThresholds are for a file system of the given size. Full is what
// dqlite writes until it is noticed that it must not: three segments, a
// snapshot and the log between two snapshots.
func DefaultThresholds(size int64) Thresholds {
	const full, exhausted = 48 << 20, 24 << 20
	t := Thresholds{Full: min(full, size/16), Exhausted: min(exhausted, size/32)}
	t.Low = min(4*t.Full, size/8)
	return t
}

// Next is the state that follows state s where free bytes are free beyond the
// reserve, and all in all.
func (t Thresholds) Next(s State, free, all int64) State {
	begins := func(limit int64, in bool) bool {
		if in {
			limit += limit / 4
		}
		return free < limit
	}
	switch {
	case all < t.Exhausted, s == Exhausted && begins(t.Full, true):
		return Exhausted
	case begins(t.Full, s >= Full):
		return Full
	case begins(t.Low, s != OK):
		return Low
	default:
		return OK
	}
}

const (
	// interval is how often a disk with much space is looked at, and
	// nearInterval one that could be full within the former.
	interval     = 10 * time.Second
	nearInterval = time.Second
	// near is how much is written in an interval at 100 MB/s.
	near = 1 << 30
)

// Usage is a file system's size and what is free of it, in bytes.
type Usage struct{ Size, Free int64 }

// Look asks for the usage of the file system that dir is on. Space that is
// kept for root is not counted as free.
func Look(dir string) (Usage, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return Usage{}, fmt.Errorf("look for space: %w", &os.PathError{Op: "statfs", Path: dir, Err: err})
	}
	return Usage{Size: int64(st.Blocks) * st.Bsize, Free: int64(st.Bavail) * st.Bsize}, nil
}

// Monitor watches the space on a file system. Its methods may be called at any
// time.
type Monitor struct {
	dir        string
	reserve    *Reserve
	thresholds Thresholds
	log        *slog.Logger
	now        chan struct{}

	mu    sync.Mutex
	state State
	// complained: that the reserve cannot be had was logged.
	complained bool
}

// NewMonitor watches the file system that dir is on. Thresholds zero means the
// defaults for its size. The reserve, which may be nil, is released in state
// Full and rebuilt when the state is OK again.
func NewMonitor(dir string, reserve *Reserve, t Thresholds, log *slog.Logger) (*Monitor, error) {
	u, err := Look(dir)
	if err != nil {
		return nil, err
	}
	if t == (Thresholds{}) {
		t = DefaultThresholds(u.Size)
	}
	return &Monitor{dir: dir, reserve: reserve, thresholds: t, log: log, now: make(chan struct{}, 1)}, nil
}

// Check makes Run look at once: for who has met an error that a full disk may
// have caused.
func (m *Monitor) Check() {
	select {
	case m.now <- struct{}{}:
	default:
	}
}

// Run calls changed with the state at the start and whenever it changes, until
// ctx ends. Each look costs a statfs and a stat.
func (m *Monitor) Run(ctx context.Context, changed func(State, Usage)) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	told := State(-1)
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-m.now:
		}
		next := interval
		if s, u, err := m.Look(); err != nil {
			m.log.Error("store: space on the disk is not known", "error", err)
		} else {
			if s != told {
				told = s
				changed(s, u)
			}
			if u.Free < near {
				next = nearInterval
			}
		}
		timer.Reset(next)
	}
}

// Look finds out the state now, and releases or rebuilds the reserve
// accordingly. The usage does not count the reserve as free. It is for a member's start, which needs some space: look, then
// start.
func (m *Monitor) Look() (State, Usage, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	u, err := Look(m.dir)
	if err != nil {
		return m.state, u, err
	}
	var held int64
	all := u.Free
	if m.reserve != nil {
		// As if the reserve were taken: its release does not end a shortage.
		held = m.reserve.Held()
		u.Free = max(0, u.Free-m.reserve.Size()+held)
	}
	was := m.state
	m.state = m.thresholds.Next(was, u.Free, all)
	if m.state != was {
		m.log.Warn("store: space on the disk", "was", was, "is", m.state, "free_mib", u.Free>>20, "size_mib", u.Size>>20)
	}
	if m.reserve != nil {
		m.settle(held)
	}
	return m.state, u, nil
}

// settle releases or rebuilds the reserve, which takes held bytes.
func (m *Monitor) settle(held int64) {
	var err error
	switch {
	case m.state >= Full && held > 0:
		err = m.reserve.Release()
	case m.state == OK && held < m.reserve.Size():
		err = m.reserve.Rebuild()
	}
	if err != nil && !m.complained {
		m.log.Error("store: the reserve of space", "error", err)
	}
	m.complained = err != nil
}
