package cluster

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

const (
	probeWrites = 8
	probeSize   = 4096
	// slowSync is beyond what an election should have to wait for.
	slowSync = 100 * time.Millisecond
	// The shortest and longest one-way latency that dqlite is told. It makes
	// heartbeats of 1.5 and elections of 15 times that: 1.5 s to 15 s.
	leastLatency = 100 * time.Millisecond
	mostLatency  = time.Second
)

// probeSync measures the time of a synchronous write in dir, as the raft log
// makes them: the second longest of a few, because one may meet a flush that
// somebody else asked for.
func probeSync(dir string) (_ time.Duration, err error) {
	path := filepath.Join(dir, ".probe")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_DSYNC, 0o600)
	if err != nil {
		return 0, fmt.Errorf("measure the disk: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(path)) }()
	block := make([]byte, probeSize)
	took := make([]time.Duration, probeWrites)
	for i := range took {
		start := time.Now()
		// The same block again: the first write allocates it, the others are
		// like those into a segment that dqlite has prepared.
		if _, err := f.WriteAt(block, 0); err != nil {
			return 0, fmt.Errorf("measure the disk: %w", err)
		}
		took[i] = time.Since(start)
	}
	slices.Sort(took)
	return took[len(took)-2], nil
}

// latencyFor returns the latency from which elections are timed on a disk with
// the given time of a synchronous write: a voter must be able to store its
// vote, and a follower entries, many times over before it is given up.
func latencyFor(sync time.Duration) time.Duration {
	return min(max(leastLatency, 2*sync), mostLatency)
}
