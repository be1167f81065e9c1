//go:build cgo && linux

package damage_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/cairn-os/cairn/pkg/store/damage"
	"github.com/cairn-os/cairn/pkg/store/member"
)

// trio is three voters in one process.
type trio struct {
	members map[uint64]*member.Member
	ids     []uint64
}

func (c *trio) start(dir string, join bool) error {
	m, err := member.Start(member.Options{
		Dir: dir, Join: join, Snapshot: params, Latency: 20 * time.Millisecond, Logger: slog.New(slog.DiscardHandler),
		Dial: func(_ context.Context, id uint64) (net.Conn, error) {
			to := c.members[id]
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
		return err
	}
	c.members[m.ID()] = m
	c.ids = append(c.ids, m.ID())
	return nil
}

// leader waits until one of them leads.
func (c *trio) leader(ctx context.Context) (*member.Member, error) {
	for ctx.Err() == nil {
		for _, id := range c.ids {
			if info, err := c.members[id].Leader(ctx); err == nil && info.ID == id {
				return c.members[id], nil
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	return nil, ctx.Err()
}

// runCluster runs three members in a, b and c below dir and writes; the
// leadership moves after each 20 writes. It ends by a signal only.
func runCluster(dir string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c := &trio{members: map[uint64]*member.Member{}}
	for _, name := range []string{"a", "b", "c"} {
		if err := c.start(filepath.Join(dir, name), name != "a"); err != nil {
			return err
		}
	}
	first, err := c.leader(ctx)
	if err != nil {
		return err
	}
	for _, id := range c.ids[1:] {
		if err := errors.Join(first.Add(ctx, id), first.Assign(ctx, id, member.Voter)); err != nil {
			return err
		}
	}
	for round, id := 0, 1; ; round++ {
		leader, err := c.leader(ctx)
		if err != nil {
			return err
		}
		if id, err = insert(leader, id, 20); err != nil {
			fmt.Println("error", id, err)
		}
		if err := leader.Transfer(ctx, c.ids[round%3]); err != nil {
			fmt.Println("error", err)
		}
	}
}

// insert writes n rows from id on at the leader, and returns the next id.
func insert(leader *member.Member, id, n int) (next int, err error) {
	connector, err := leader.Connector()
	if err != nil {
		return id, err
	}
	db := sql.OpenDB(connector)
	defer func() { err = errors.Join(err, db.Close()) }()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if _, err := db.ExecContext(ctx, "CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, v BLOB)"); err != nil {
		return id, err
	}
	value := make([]byte, 1500)
	for range n {
		fill(value, id)
		// Whatever was in flight when a leader stepped down may be there.
		if _, err := db.ExecContext(ctx, "INSERT OR REPLACE INTO t (id, v) VALUES (?, ?)", id, value); err != nil {
			return id, err
		}
		fmt.Println("acknowledged", id)
		id++
	}
	return id, nil
}

// runStart starts a member whose peers do not answer: what counts is whether
// dqlite takes the directory.
func runStart(dir string) error {
	_, err := member.Start(member.Options{
		Dir: dir, Join: true, Snapshot: params, Logger: slog.New(slog.DiscardHandler),
		Dial: func(context.Context, uint64) (net.Conn, error) { return nil, errors.New("not there") },
	})
	if err != nil {
		return err
	}
	fmt.Println(started, 0, 0)
	return nil
}

// TestAgreementOfVoters damages the directories of three voters whose
// leadership has moved. It compares what dqlite loads by what is left when it
// has: entries, the term, the vote.
func TestAgreementOfVoters(t *testing.T) {
	base := scratch(t)
	dir := filepath.Join(base, "trio")
	for _, name := range []string{"a", "b", "c"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	write(t, "cluster", dir, 170, 0, syscall.SIGKILL)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	count := caseCount(t, 60) / 3
	recovered(t, filepath.Join(dir, "b"), filepath.Join(base, "recovered"))
	for _, name := range []string{"a", "b", "c"} {
		from := filepath.Join(dir, name)
		whole, err := damage.Inspect(from)
		if err != nil || whole.Severity() != damage.Harmless {
			t.Fatalf("member %s after the kill: %v\n%s", name, err, whole)
		}
		if whole.Term < 2 || whole.LastIndex < 100 {
			t.Fatalf("member %s has not seen elections and entries:\n%s", name, whole)
		}
		if err := damage.UpdateMark(from); err != nil {
			t.Fatal(err)
		}
		list := append(harms(t, from, count, random), truncate("metadata1", 0), truncate("metadata1", 31), truncate("metadata2", 0), truncate("metadata2", 31))
		for range 10 {
			list = append(list, flip("metadata1", random.IntN(256)), flip("metadata2", random.IntN(256)))
		}
		t.Run(name, func(t *testing.T) {
			for i, h := range list {
				t.Run(strconv.Itoa(i), func(t *testing.T) {
					t.Parallel()
					to := filepath.Join(base, name+"-"+strconv.Itoa(i))
					copyDir(t, from, to)
					defer os.RemoveAll(to)
					h.do(t, filepath.Join(to, h.file))
					agreeVoter(t, h, to, whole)
				})
			}
		})
	}
}

// recovered makes the member in a directory the only one, as after the loss
// of a quorum. dqlite writes an entry of term 1 for that: no damage.
func recovered(t *testing.T, from, to string) {
	t.Helper()
	copyDir(t, from, to)
	if _, err := member.Renumber(to); err != nil {
		t.Fatal(err)
	}
	if err := damage.UpdateMark(to); err != nil {
		t.Fatal(err)
	}
	for _, when := range []string{"after a recovery", "and a start"} {
		if r, err := damage.Inspect(to); err != nil || r.Severity() != damage.Harmless {
			t.Errorf("%s: %v\n%s", when, err, r)
		}
		if o := check(t, to); !o.started || o.rows == 0 {
			t.Errorf("%s: the member does not start or has no rows: %s", when, o.output)
		}
	}
}

func agreeVoter(t *testing.T, h harm, dir string, whole damage.Report) {
	t.Helper()
	r, err := damage.Inspect(dir)
	if err != nil {
		t.Fatalf("%v: inspect: %v", h, err)
	}
	if err := damage.Repair(r); err != nil && !r.Damaged() {
		t.Errorf("%v: %v", h, err)
	}
	o := run(t, "start", dir)
	if r.Damaged() {
		return
	}
	if !o.started {
		t.Fatalf("%v: said %v, but dqlite does not start\n%s\n%s", h, r.Severity(), r, o.output)
	}
	after, err := damage.Inspect(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := undetectable(h, fixture{}); !ok && after.LastIndex < whole.LastIndex {
		t.Errorf("%v: said %v, but dqlite goes back from entry %d to %d\n%s", h, r.Severity(), whole.LastIndex, after.LastIndex, r)
	}
	if after.Term < whole.Term || after.Term == whole.Term && after.Vote == 0 && whole.Vote != 0 {
		t.Errorf("%v: said %v, but dqlite forgets term %d and vote %x for term %d and vote %x\n%s", h, r.Severity(), whole.Term, whole.Vote, after.Term, after.Vote, r)
	}
}
