//go:build cgo && linux

package member

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// TestNoLeaks starts and stops a pair of members, one of which is asked,
// dialled, and connected to by clients.
func TestNoLeaks(t *testing.T) {
	n := newNetwork(t)
	cycle := func() {
		a, b := n.start("a"), n.start("b")
		defer b.stop()
		defer a.stop()
		leaderOf(t, a)
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		members, err := a.Members(ctx)
		if err == nil && len(members) == 1 {
			err = errors.Join(a.Add(ctx, b.ID()), a.Assign(ctx, b.ID(), StandBy))
		}
		if err != nil {
			t.Fatal(err)
		}
		db := openDB(t, a)
		exec(t, db, "CREATE TABLE IF NOT EXISTS t (x)")
		exec(t, db, "INSERT INTO t VALUES (1)")
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	}
	cycle() // The runtime's own descriptors.
	settle := func() (goroutines, fds int) {
		runtime.GC() // go-dqlite leaves some descriptors to it.
		stacks := make([]byte, 1<<20)
		stacks = stacks[:runtime.Stack(stacks, true)]
		for stack := range strings.SplitSeq(string(stacks), "\n\n") {
			// libuv's threads, which live on, count as goroutines once they
			// have called Go.
			if !strings.Contains(stack, "locked to thread]:\nruntime.goexit") {
				goroutines++
			}
		}
		return goroutines, descriptors(t)
	}
	goroutines, fds := settle()
	for range 20 {
		cycle()
	}
	eventually(t, func(context.Context) error {
		g, f := settle()
		if g > goroutines || f > fds {
			buf := make([]byte, 1<<20)
			return fmt.Errorf("goroutines %d, then %d; descriptors %d, then %d:\n%s", goroutines, g, fds, f, buf[:runtime.Stack(buf, true)])
		}
		return nil
	})
	g, f := settle()
	t.Logf("goroutines %d, then %d; descriptors %d, then %d", goroutines, g, fds, f)
}

// TestRefusedPeer counts how often a leader tries to reach a follower that is
// down: dqlite itself would do so without a pause.
func TestRefusedPeer(t *testing.T) {
	n, nodes := three(t)
	db := openDB(t, nodes[0])
	exec(t, db, "CREATE TABLE t (x)")
	nodes[2].stop()
	dials := n.dials.Load()
	writes := 0
	start := time.Now()
	for time.Since(start) < 2*time.Second {
		exec(t, db, "INSERT INTO t VALUES (1)")
		writes++
	}
	took := time.Since(start)
	got := n.dials.Load() - dials
	t.Logf("%d dials and %d writes in %v", got, writes, took)
	if limit := int64(took/retryDelay) + 2; got > limit {
		t.Errorf("%d dials of a peer that refuses in %v; want at most %d", got, took, limit)
	}
}

// TestServeRefusesClients: what is no raft connection does not get to dqlite.
func TestServeRefusesClients(t *testing.T) {
	n := newNetwork(t)
	a := n.start("a")
	conn, err := a.call(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	open := encodeGreeting(1, Name(1))
	open[12] = 0 // DQLITE_REQUEST_LEADER
	if _, err := conn.Write(open); err != nil {
		t.Fatal(err)
	}
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if k, err := conn.Read(make([]byte, 100)); k > 0 || err == nil || os.IsTimeout(err) {
		t.Errorf("a client was answered: %d bytes, %v; want the end", k, err)
	}
}

func TestOptions(t *testing.T) {
	for what, o := range map[string]Options{
		"no directory":   {},
		"latency":        {Dir: "x", Latency: time.Microsecond},
		"trailing small": {Dir: "x", Snapshot: SnapshotParams{Threshold: 100, Trailing: 10}},
		"no threshold":   {Dir: "x", Snapshot: SnapshotParams{Trailing: 10}},
	} {
		if m, err := Start(o); err == nil {
			t.Errorf("%s: Start succeeded", what)
			_ = m.Close()
		}
	}
}

// TestRecovery makes a cluster of one out of a survivor of three.
func TestRecovery(t *testing.T) {
	n, nodes := three(t)
	db := openDB(t, nodes[0])
	exec(t, db, "CREATE TABLE t (x)")
	exec(t, db, "INSERT INTO t VALUES (1)")
	dir := filepath.Join(n.root, "b")
	if _, _, err := ReadLast(filepath.Join(n.root, "nowhere")); err == nil {
		t.Error("ReadLast of a directory that is not there succeeded")
	}
	sameTerm(t, nodes...)
	term, err := nodes[1].Term()
	if err != nil {
		t.Fatal(err)
	}
	for _, node := range nodes {
		node.stop()
	}
	last, index, err := ReadLast(dir)
	if err != nil || last == 0 || last > term || index < 3 {
		t.Fatalf("ReadLast = %d, %d, %v; want at most term %d", last, index, err, term)
	}
	if err := Reconfigure(dir, nil); err == nil {
		t.Error("Reconfigure without members succeeded")
	}
	if err := Reconfigure(dir, []Info{{ID: nodes[1].ID(), Address: nodes[1].identity.Address, Role: Voter}}); err != nil {
		t.Fatal(err)
	}
	if _, next, err := ReadLast(dir); err != nil || next <= index {
		t.Errorf("index after Reconfigure = %d, %v; want more than %d", next, err, index)
	}
	b := n.start("b")
	leaderOf(t, b)
	if got := count(t, b); got != 1 {
		t.Errorf("rows of the survivor = %d; want 1", got)
	}
	if got, err := b.Members(t.Context()); err != nil || len(got) != 1 {
		t.Errorf("members = %+v, %v; want the survivor", got, err)
	}
}

// TestDamaged does not start on damaged data, says so, leaves all of it as it
// was, and starts elsewhere in the same process.
func TestDamaged(t *testing.T) {
	n := newNetwork(t)
	a := n.start("a")
	leaderOf(t, a)
	db := openDB(t, a)
	exec(t, db, "CREATE TABLE t (x)")
	for i := range 20 {
		exec(t, db, "INSERT INTO t VALUES (?)", i)
	}
	a.stop()
	dir := filepath.Join(n.root, "a")
	segments, err := filepath.Glob(filepath.Join(dir, "0000*-*"))
	if err != nil || len(segments) == 0 {
		t.Fatalf("segments: %v, %v", segments, err)
	}
	data, err := os.ReadFile(segments[0])
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)/2] ^= 1
	if err := os.WriteFile(segments[0], data, 0o600); err != nil {
		t.Fatal(err)
	}
	before := descriptors(t)
	m, err := Start(n.options("a"))
	if err == nil {
		t.Fatal("started on damaged data", m.Close())
	}
	t.Logf("%v; %d descriptors are left", err, descriptors(t)-before)
	if !strings.Contains(err.Error(), dir) {
		t.Errorf("Start = %v; want an error that names %s", err, dir)
	}
	if _, _, err := ReadLast(dir); err == nil {
		t.Error("ReadLast of damaged data succeeded")
	}
	if err := Reconfigure(dir, []Info{{ID: BootstrapID, Address: Name(BootstrapID)}}); err == nil {
		t.Error("Reconfigure of damaged data succeeded")
	}
	if after, err := os.ReadFile(segments[0]); err != nil || string(after) != string(data) {
		t.Errorf("the damaged segment has changed: %v", err)
	}
	if err := os.Rename(dir, dir+"-damaged"); err != nil {
		t.Fatal(err)
	}
	leaderOf(t, n.start("a"))
}

func BenchmarkPoll(b *testing.B) {
	m, err := Start(Options{Dir: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	defer m.Close()
	b.Run("Leader", func(b *testing.B) {
		for b.Loop() {
			if _, err := m.Leader(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("Members", func(b *testing.B) {
		for b.Loop() {
			if _, err := m.Members(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("Term", func(b *testing.B) {
		for b.Loop() {
			if _, err := m.Term(); err != nil {
				b.Fatal(err)
			}
		}
	})
}
