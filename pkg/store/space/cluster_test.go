//go:build cgo && linux

package space_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/cairn-os/cairn/pkg/store/damage"
	"github.com/cairn-os/cairn/pkg/store/member"
	"github.com/cairn-os/cairn/pkg/store/space"
)

const (
	// childCluster makes the test binary run three voters below that
	// directory, the third one in childDir.
	childCluster = "CAIRN_TEST_SPACE_CLUSTER"
	// childLeader "third" makes the third the leader at first.
	childLeader = "CAIRN_TEST_SPACE_LEADER"
)

// TestCluster is the process of three members. It inserts rows at whichever
// leads.
func TestCluster(t *testing.T) {
	base := os.Getenv(childCluster)
	if base == "" {
		t.Skip("the other tests' child process")
	}
	if err := runCluster(base, os.Getenv(childDir)); err != nil {
		fmt.Println("failed:", err)
		t.Fatal(err)
	}
}

// voters are three members in one process.
type voters struct {
	mu      sync.Mutex
	members map[uint64]*member.Member
	ids     []uint64
}

func (v *voters) get(id uint64) *member.Member {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.members[id]
}

func (v *voters) start(dir string, join bool) (*member.Member, error) {
	m, err := member.Start(member.Options{
		Dir: dir, Join: join, Snapshot: params, Latency: 20 * time.Millisecond, Logger: slog.New(slog.DiscardHandler),
		Dial: func(_ context.Context, id uint64) (net.Conn, error) {
			to := v.get(id)
			if to == nil {
				return nil, errors.New("not there")
			}
			own, err := member.ReadIdentity(dir)
			if err != nil {
				return nil, err
			}
			a, b := net.Pipe()
			go to.ServeFrom(own.ID, b)
			return a, nil
		},
	})
	if err != nil {
		return nil, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.members[m.ID()] = m
	return m, nil
}

// leader waits until one of them leads.
func (v *voters) leader() (int, *member.Member) {
	for ; ; time.Sleep(5 * time.Millisecond) {
		for i, id := range v.ids {
			m := v.get(id)
			if m == nil {
				continue
			}
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			info, err := m.Leader(ctx)
			cancel()
			if err == nil && info.ID == id {
				return i, m
			}
		}
	}
}

// keep stops the member in dir while the disk is exhausted, as the rules say.
func (v *voters) keep(dir string, id uint64) error {
	monitor, err := space.NewMonitor(dir, nil, space.Thresholds{}, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	for ; ; time.Sleep(10 * time.Millisecond) {
		s, _, err := monitor.Look()
		if err != nil {
			return err
		}
		m := v.get(id)
		switch {
		case s == space.Exhausted && m != nil:
			v.handOver(m)
			v.mu.Lock()
			delete(v.members, id)
			v.mu.Unlock()
			fmt.Println("stop", m.Close())
		case s < space.Full && m == nil:
			r, err := damage.Inspect(dir)
			if err := errors.Join(err, r.Err()); err != nil {
				return err
			}
			if _, err := v.start(dir, true); err != nil {
				return err
			}
			fmt.Println("start")
		}
	}
}

// handOver makes the first member the leader if m is it, and waits until m has
// stored what it began: dqlite may abort the process when it is closed before.
func (v *voters) handOver(m *member.Member) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if info, err := m.Leader(ctx); err == nil && info.ID == m.ID() {
		fmt.Println("hand over", m.Transfer(ctx, v.ids[0]))
		time.Sleep(time.Second)
	}
}

func runCluster(base, third string) error {
	v := &voters{members: map[uint64]*member.Member{}}
	for i, dir := range []string{filepath.Join(base, "a"), filepath.Join(base, "b"), third} {
		m, err := v.start(dir, i > 0)
		if err != nil {
			return err
		}
		v.ids = append(v.ids, m.ID())
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	_, first := v.leader()
	for _, id := range v.ids[1:] {
		if err := errors.Join(first.Add(ctx, id), first.Assign(ctx, id, member.Voter)); err != nil {
			return err
		}
	}
	if os.Getenv(childLeader) == "third" {
		if err := first.Transfer(ctx, v.ids[2]); err != nil {
			return err
		}
	}
	go func() { fmt.Println("failed:", v.keep(third, v.ids[2])) }()
	for id := 1; ; {
		i, m := v.leader()
		fmt.Println("leader", i)
		next, err := insert(m, id)
		fmt.Println("error", id, "leader", i, err)
		id = next
	}
}

// insert writes rows at the leader until one fails, and returns the next id.
func insert(m *member.Member, id int) (int, error) {
	connector, err := m.Connector()
	if err != nil {
		return id, err
	}
	db := sql.OpenDB(connector)
	defer db.Close()
	value := make([]byte, 4000)
	for create := true; ; {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		if create {
			_, err = db.ExecContext(ctx, "CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, v BLOB)")
		} else {
			_, err = db.ExecContext(ctx, "INSERT INTO t (id, v) VALUES (?, ?)", id, value)
		}
		cancel()
		if err != nil {
			return id + 1, err
		}
		if !create {
			fmt.Println("acknowledged", id)
			id++
		}
		create = false
	}
}

// TestFullDiskOfOne fills the disk of one of three voters, follower or leader,
// which is stopped while it is full: the others serve on, and the member
// catches up when there is space again.
func TestFullDiskOfOne(t *testing.T) {
	for _, role := range []string{"follower", "leader"} {
		t.Run(role, func(t *testing.T) {
			at, base := disk(t, "ext4", 512), t.TempDir()
			third := filepath.Join(at, "member")
			t.Setenv(childCluster, base)
			if role == "leader" {
				t.Setenv(childLeader, "third")
			}
			w := startWriterAs(t, "TestCluster", third)
			w.waitFor(t, "writes", func(a, _ int) bool { return a >= 150 })
			u, err := space.Look(at)
			if err != nil {
				t.Fatal(err)
			}
			// Not at a stroke: who fills the disk within the time of a look is
			// met by dqlite, which may abort the process then.
			hold, free := fill(t, at, space.DefaultThresholds(u.Size).Exhausted-4<<20)
			w.waitFor(t, "the stop of the member", func(int, int) bool { return w.said("stop <nil>") })
			hold()
			_, freeRest := fill(t, at, 0)
			before, _ := w.counts()
			began := time.Now()
			w.waitFor(t, "writes while the disk of one is full", func(a, _ int) bool { return a >= before+1200 })
			a, f := w.counts()
			t.Logf("%d writes in %v while the disk was full; %d failed", a-before, time.Since(began), f)
			freeRest()
			free()
			w.waitFor(t, "the start of the member", func(int, int) bool { return w.said("start") })
			a, _ = w.counts()
			w.waitFor(t, "writes with space again", func(n, _ int) bool { return n >= a+300 })
			want, _ := w.counts()
			caughtUp(t, w, third, want)
			w.kill()
			for _, dir := range []string{filepath.Join(base, "a"), filepath.Join(base, "b"), third} {
				if r, err := damage.Inspect(dir); err != nil || r.Damaged() {
					t.Errorf("%v\n%s", err, r)
				}
			}
		})
	}
}

// caughtUp waits until the closed segments and snapshots in dir have n entries.
func caughtUp(t *testing.T, w *writer, dir string, n int) {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		if err := damage.UpdateMark(dir); err == nil {
			if m, err := damage.ReadMark(dir); err == nil && m.Index >= uint64(n) {
				return
			}
		}
		if time.Now().After(end) {
			m, err := damage.ReadMark(dir)
			t.Errorf("the member has not caught up with %d entries within a minute: %+v, %v", n, m, err)
			return
		}
	}
}
