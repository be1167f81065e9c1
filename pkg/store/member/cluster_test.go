//go:build cgo && linux

package member

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestLoneMember(t *testing.T) {
	n := newNetwork(t)
	a := n.start("a")
	if a.ID() != BootstrapID {
		t.Errorf("ID = %x; want %x", a.ID(), BootstrapID)
	}
	if got := leaderOf(t, a); got != a {
		t.Errorf("leader = %x", got.ID())
	}
	self := []Info{{ID: BootstrapID, Address: Name(BootstrapID), Role: Voter}}
	got, err := a.Members(t.Context())
	if diff := cmp.Diff(self, got); err != nil || diff != "" {
		t.Errorf("Members: %v, -want +got:\n%s", err, diff)
	}
	if term, err := a.Term(); term == 0 || err != nil {
		t.Errorf("Term = %d, %v; want one", term, err)
	}
	exec(t, openDB(t, a), "CREATE TABLE t (x)")
	// Options that are for new directories do not change an old one.
	a.stop()
	o := n.options("a")
	o.Join = true
	a = n.startWith(o)
	if a.ID() != BootstrapID {
		t.Errorf("ID of a directory reopened with Join = %x", a.ID())
	}
	if got := count(t, a); got != 0 {
		t.Errorf("rows = %d", got)
	}
}

func TestJoinRolesRemove(t *testing.T) {
	n := newNetwork(t)
	a, b, c := n.start("a"), n.start("b"), n.start("c")
	leaderOf(t, a)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if info, err := b.Leader(ctx); err != nil || info.ID != 0 {
		t.Errorf("leader as a stranger knows it = %+v, %v; want none", info, err)
	}
	if m, err := b.Members(ctx); err != nil || len(m) != 0 {
		t.Errorf("members as a stranger knows them = %+v, %v; want none", m, err)
	}
	if term, err := b.Term(); term != 0 || err != nil {
		t.Errorf("term of a stranger = %d, %v; want 0", term, err)
	}
	exec(t, openDB(t, a), "CREATE TABLE t (x)")
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	do(a.Add(ctx, b.ID()))
	do(a.Assign(ctx, b.ID(), Spare)) // What it is already.
	do(a.Add(ctx, c.ID()))
	do(a.Assign(ctx, c.ID(), StandBy))
	do(a.Assign(ctx, c.ID(), StandBy))
	do(a.Assign(ctx, b.ID(), Voter))
	do(a.Assign(ctx, b.ID(), Voter))
	want := []Info{
		{ID: a.ID(), Address: Name(a.ID()), Role: Voter},
		{ID: b.ID(), Address: Name(b.ID()), Role: Voter},
		{ID: c.ID(), Address: Name(c.ID()), Role: StandBy},
	}
	byID := cmpopts.SortSlices(func(x, y Info) bool { return x.ID < y.ID })
	for _, node := range []*testNode{a, b, c} {
		eventually(t, func(ctx context.Context) error {
			got, err := node.Members(ctx)
			if diff := cmp.Diff(want, got, byID); err != nil || diff != "" {
				return fmt.Errorf("members: %v, -want +got:\n%s", err, diff)
			}
			return nil
		})
	}
	leaderOf(t, a, b)

	refused := []struct {
		what string
		err  error
		not  bool // not the leader
		text string
	}{
		{"add at a follower", b.Add(ctx, 7), true, Name(7)},
		{"assign at a follower", b.Assign(ctx, c.ID(), Voter), true, Name(c.ID())},
		{"remove at a follower", b.Remove(ctx, c.ID()), true, Name(c.ID())},
		{"transfer at a follower", b.Transfer(ctx, b.ID()), true, Name(b.ID())},
		{"add again", a.Add(ctx, b.ID()), false, Name(b.ID())},
		{"assign a stranger", a.Assign(ctx, 7, StandBy), false, Name(7)},
		{"assign a role that is none", a.Assign(ctx, c.ID(), 3), false, "no such role"},
		{"demote the leader", a.Assign(ctx, a.ID(), StandBy), false, "transfer leadership first"},
		{"remove a stranger", a.Remove(ctx, 7), false, Name(7)},
		{"remove the leader", a.Remove(ctx, a.ID()), false, "transfer leadership first"},
		{"transfer to a standby", a.Transfer(ctx, c.ID()), false, Name(c.ID())},
	}
	for _, r := range refused {
		if r.err == nil || errors.Is(r.err, ErrNotLeader) != r.not || !strings.Contains(r.err.Error(), r.text) {
			t.Errorf("%s: %v; want an error with %q, that is ErrNotLeader: %v", r.what, r.err, r.text, r.not)
		}
	}

	do(a.Remove(ctx, c.ID()))
	do(a.Assign(ctx, b.ID(), StandBy))
	do(a.Remove(ctx, b.ID()))
	got, err := a.Members(ctx)
	if diff := cmp.Diff(want[:1], got); err != nil || diff != "" {
		t.Errorf("members after removal: %v, -want +got:\n%s", err, diff)
	}
	exec(t, openDB(t, a), "INSERT INTO t VALUES (1)")
}

// TestAssignGivesUp promotes a member that does not answer.
func TestAssignGivesUp(t *testing.T) {
	n := newNetwork(t)
	a := n.start("a")
	leaderOf(t, a)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := a.Add(ctx, 77); err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	defer cancel()
	if err := a.Assign(short, 77, Voter); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Assign(voter) of a member that does not answer = %v; want the deadline", err)
	}
	if err := a.Assign(ctx, 77, StandBy); err == nil || errors.Is(err, ErrNotLeader) {
		t.Errorf("Assign during a promotion = %v; want busy", err)
	}
	exec(t, openDB(t, a), "CREATE TABLE t (x)") // Goes on meanwhile.
}

// TestFailover closes the leader, and lets it return far behind.
func TestFailover(t *testing.T) {
	n, nodes := three(t)
	a, others := nodes[0], nodes[1:]
	exec(t, openDB(t, a), "CREATE TABLE t (x)")
	before, err := others[0].Term()
	if err != nil {
		t.Fatal(err)
	}
	a.stop()
	start := time.Now()
	leader := leaderOf(t, others...)
	t.Logf("new leader after %v", time.Since(start).Round(time.Millisecond))
	after, err := leader.Term()
	if err != nil || after <= before {
		t.Errorf("term after an election = %d, %v; was %d", after, err, before)
	}
	db := openDB(t, leader)
	// More than is kept of the log: who returns needs a snapshot.
	const rows = 700
	for i := range rows {
		exec(t, db, "INSERT INTO t VALUES (?)", i)
	}
	_, last, err := ReadLast(filepath.Join(n.root, "a"))
	if oldest := oldestEntry(t, leader); err != nil || oldest <= last+1 {
		t.Errorf("the log begins at %d, and who returns has all up to %d (%v): no snapshot is needed", oldest, last, err)
	}
	a = n.start("a")
	all := append(others, a)
	leaderOf(t, all...)
	sameTerm(t, all...)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	// Only a member that has everything is elected.
	eventually(t, func(ctx context.Context) error { return leaderOf(t, all...).Transfer(ctx, a.ID()) })
	if got := leaderOf(t, all...); got != a {
		t.Fatalf("leader after transfer = %016x; want %016x", got.ID(), a.ID())
	}
	if got := count(t, a); got != rows {
		t.Errorf("rows at the member that returned = %d; want %d", got, rows)
	}
	sameTerm(t, all...)
	if now, err := a.Term(); err != nil || now <= after {
		t.Errorf("term after a transfer = %d, %v; was %d", now, err, after)
	}
	if err := leader.Transfer(ctx, leader.ID()); !errors.Is(err, ErrNotLeader) {
		t.Errorf("transfer by the former leader = %v; want ErrNotLeader", err)
	}
}

// oldestEntry returns the index of the first entry that the member keeps.
func oldestEntry(t *testing.T, n *testNode) uint64 {
	t.Helper()
	segments, err := filepath.Glob(filepath.Join(n.options.Dir, "????????????????-????????????????"))
	if err != nil || len(segments) == 0 {
		t.Fatalf("closed segments: %q, %v", segments, err)
	}
	slices.Sort(segments)
	first, _, _ := strings.Cut(filepath.Base(segments[0]), "-")
	index, err := strconv.ParseUint(first, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return index
}

func sameTerm(t *testing.T, nodes ...*testNode) {
	t.Helper()
	eventually(t, func(context.Context) error {
		var terms []uint64
		for _, n := range nodes {
			term, err := n.Term()
			if err != nil {
				return err
			}
			terms = append(terms, term)
		}
		for _, term := range terms {
			if term != terms[0] || term == 0 {
				return fmt.Errorf("terms = %v; want one", terms)
			}
		}
		return nil
	})
}

// TestAddressChanges restarts followers one after the other; each has another
// port then.
func TestAddressChanges(t *testing.T) {
	n, nodes := three(t)
	db := openDB(t, nodes[0])
	exec(t, db, "CREATE TABLE t (x)")
	for i, name := range []string{"b", "c"} {
		old := nodes[i+1].listener.Addr()
		nodes[i+1].stop()
		exec(t, db, "INSERT INTO t VALUES (1)")
		nodes[i+1] = n.start(name)
		if nodes[i+1].listener.Addr() == old {
			t.Error("the same address again")
		}
		leaderOf(t, nodes...)
	}
	nodes[0].stop()
	if got := count(t, leaderOf(t, nodes[1:]...)); got != 2 {
		t.Errorf("rows = %d; want 2", got)
	}
}

// TestConnectionEndsWithLeadership: a connection of a time of leadership that
// ended does not answer in a later one. Reads rest on that.
func TestConnectionEndsWithLeadership(t *testing.T) {
	_, nodes := three(t)
	a, b := nodes[0], nodes[1]
	exec(t, openDB(t, a), "CREATE TABLE t (x)")
	connector, err := a.Connector()
	if err != nil {
		t.Fatal(err)
	}
	for round := range 3 {
		var idle, reading driver.Conn
		eventually(t, func(ctx context.Context) (err error) {
			idle, err = connector.Connect(ctx)
			return err
		})
		defer idle.Close()
		if reading, err = connector.Connect(t.Context()); err != nil {
			t.Fatal(err)
		}
		defer reading.Close()
		for _, c := range []driver.Conn{idle, reading} {
			if err := selectOne(t.Context(), c); err != nil {
				t.Fatalf("round %d: %v", round, err)
			}
		}
		eventually(t, func(ctx context.Context) error { return a.Transfer(ctx, b.ID()) })
		if err := selectOne(t.Context(), reading); err == nil {
			t.Error("a connection answers after leadership was lost")
		}
		if got := leaderOf(t, nodes...); got != b {
			t.Fatalf("leader = %016x; want %016x", got.ID(), b.ID())
		}
		if _, err := connector.Connect(t.Context()); err == nil {
			t.Error("connected to the database at a follower")
		}
		eventually(t, func(ctx context.Context) error { return b.Transfer(ctx, a.ID()) })
		if got := leaderOf(t, nodes...); got != a {
			t.Fatalf("leader = %016x; want %016x", got.ID(), a.ID())
		}
		if err := selectOne(t.Context(), idle); err == nil {
			t.Errorf("round %d: a connection of the former leadership answers in the new one", round)
		}
		if err := selectOne(t.Context(), reading); err == nil {
			t.Errorf("round %d: a connection that had failed answers again", round)
		}
	}
	if got := count(t, a); got != 0 {
		t.Errorf("rows = %d", got)
	}
}

// TestLeadershipEndsMidway loses leadership while a transaction is open and a
// query yields rows, by losing the majority, and regains it.
func TestLeadershipEndsMidway(t *testing.T) {
	n, nodes := three(t)
	a := nodes[0]
	exec(t, openDB(t, a), "CREATE TABLE t (x)")
	connector, err := a.Connector()
	if err != nil {
		t.Fatal(err)
	}
	var conns [3]driver.Conn
	for i := range conns {
		if conns[i], err = connector.Connect(t.Context()); err != nil {
			t.Fatal(err)
		}
		defer conns[i].Close()
	}
	idle, writing, reading := conns[0], conns[1], conns[2]
	if err := execute(t.Context(), writing, "BEGIN"); err != nil {
		t.Fatal(err)
	}
	if err := execute(t.Context(), writing, "INSERT INTO t VALUES (1)"); err != nil {
		t.Fatal(err)
	}
	// More than the sockets between hold.
	const query = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM c WHERE x<20000) SELECT x, zeroblob(1000) FROM c"
	rows, err := reading.(driver.QueryerContext).QueryContext(t.Context(), query, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()

	n.lose(nodes[1])
	n.lose(nodes[2])
	eventually(t, func(ctx context.Context) error {
		if info, err := a.Leader(ctx); err != nil || info.ID == a.ID() {
			return fmt.Errorf("leader without a majority: %+v, %v", info, err)
		}
		return nil
	})
	n.find(nodes[1])
	n.find(nodes[2])
	for leader := leaderOf(t, nodes...); leader != a; leader = leaderOf(t, nodes...) {
		if err := leader.Transfer(t.Context(), a.ID()); err != nil {
			t.Log(err)
		}
	}

	read := 0
	for ; err == nil; read++ {
		err = rows.Next(make([]driver.Value, 2))
	}
	if errors.Is(err, io.EOF) {
		t.Errorf("a query survived a change of leaders: %d rows", read)
	}
	for what, conn := range map[string]driver.Conn{"idle": idle, "writing": writing, "reading": reading} {
		if err := selectOne(t.Context(), conn); err == nil {
			t.Errorf("the connection that was %s answers", what)
		}
	}
	if err := execute(t.Context(), writing, "COMMIT"); err == nil {
		t.Error("a transaction of the former leadership was committed")
	}
	if got := count(t, a); got != 0 {
		t.Errorf("rows = %d; want none of the transaction's", got)
	}
}

func execute(ctx context.Context, conn driver.Conn, query string) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	_, err := conn.(driver.ExecerContext).ExecContext(ctx, query, nil)
	return err
}

func selectOne(ctx context.Context, conn driver.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	rows, err := conn.(driver.QueryerContext).QueryContext(ctx, "SELECT 1", nil)
	if err != nil {
		return err
	}
	defer rows.Close()
	if err := rows.Next(make([]driver.Value, 1)); !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

// TestLostPeer loses one of three without a trace: the others notice only
// that nothing comes.
func TestLostPeer(t *testing.T) {
	n, nodes := three(t)
	db := openDB(t, nodes[0])
	exec(t, db, "CREATE TABLE t (x)")
	writes := func(d time.Duration) int {
		done := 0
		for start := time.Now(); time.Since(start) < d; done++ {
			exec(t, db, "INSERT INTO t VALUES (1)")
		}
		return done
	}
	with := writes(time.Second)
	n.lose(nodes[2])
	dials := n.dials.Load()
	without := writes(2*time.Second) / 2
	t.Logf("writes/s: %d with all, %d with one lost; %d dials in 2 s", with, without, n.dials.Load()-dials)
	if without < with/4 {
		t.Errorf("writes/s fell from %d to %d with one of three lost", with, without)
	}
	// The lost one comes back; then the leader is lost. That needs an election
	// among members that have had each other's connections fail.
	n.find(nodes[2])
	n.lose(nodes[0])
	nodes[0].stop()
	start := time.Now()
	leaderOf(t, nodes[1:]...)
	t.Logf("new leader after %v", time.Since(start).Round(time.Millisecond))
}

// TestElectionWithLostPeer: of five voters one is lost and the leader closes.
// Each of the other three is needed.
func TestElectionWithLostPeer(t *testing.T) {
	n, nodes := three(t)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for _, name := range []string{"d", "e"} {
		joiner := n.start(name)
		nodes = append(nodes, joiner)
		if err := errors.Join(nodes[0].Add(ctx, joiner.ID()), nodes[0].Assign(ctx, joiner.ID(), Voter)); err != nil {
			t.Fatal(err)
		}
	}
	leaderOf(t, nodes...)
	n.lose(nodes[4])
	nodes[0].stop()
	start := time.Now()
	leader := leaderOf(t, nodes[1:4]...)
	t.Logf("new leader of five with one lost after %v", time.Since(start).Round(time.Millisecond))
	exec(t, openDB(t, leader), "CREATE TABLE t (x)")
}
