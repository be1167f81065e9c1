//go:build cgo && linux

package member

import (
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// patience is for what should take a second or two on an idle machine.
const patience = time.Minute

// testLatency yields elections after 450 to 900 ms: short for the tests'
// sake, long enough for a busy machine.
const testLatency = 30 * time.Millisecond

// network connects members by TCP and knows where each of them is.
type network struct {
	t     *testing.T
	root  string
	dials atomic.Int64

	mu    sync.Mutex
	nodes map[uint64]*testNode
	lost  map[uint64]bool // Dialling it gets no answer.
}

// testNode is a member and the listener that others reach it by.
type testNode struct {
	*Member
	net      *network
	listener net.Listener
	served   sync.WaitGroup

	mu    sync.Mutex
	conns []net.Conn
}

func newNetwork(t *testing.T) *network {
	return &network{t: t, root: t.TempDir(), nodes: map[uint64]*testNode{}, lost: map[uint64]bool{}}
}

func testLogger(t *testing.T) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelError}))
}

func (n *network) options(name string) Options {
	dir := filepath.Join(n.root, name)
	return Options{
		Dir: dir, Join: name != "a", Dial: func(ctx context.Context, id uint64) (net.Conn, error) { return n.dial(ctx, dir, id) },
		Latency: testLatency, Logger: testLogger(n.t),
		Snapshot: SnapshotParams{Threshold: 128, Trailing: 256}, // so that tests see snapshots soon
	}
}

// start starts the member in the directory of that name, at a new address.
func (n *network) start(name string) *testNode {
	n.t.Helper()
	return n.startWith(n.options(name))
}

func (n *network) startWith(o Options) *testNode {
	n.t.Helper()
	m, err := Start(o)
	if err != nil {
		n.t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		n.t.Fatal(errors.Join(err, m.Close()))
	}
	node := &testNode{Member: m, net: n, listener: l}
	node.served.Go(node.accept)
	n.mu.Lock()
	n.nodes[m.ID()] = node
	n.mu.Unlock()
	n.t.Cleanup(node.stop)
	return node
}

func (n *testNode) accept() {
	for {
		conn, err := n.listener.Accept()
		if err != nil {
			return
		}
		n.mu.Lock()
		n.conns = append(n.conns, conn)
		n.mu.Unlock()
		n.served.Go(func() { n.serveCaller(conn) })
	}
}

// serveCaller serves whoever says first who it is, see call.
func (n *testNode) serveCaller(conn net.Conn) {
	var from uint64
	err := conn.SetReadDeadline(time.Now().Add(patience))
	if err == nil {
		err = binary.Read(conn, binary.LittleEndian, &from)
	}
	if err != nil {
		_ = conn.Close()
		return
	}
	n.ServeFrom(from, conn)
}

// call opens a connection as the member from.
func (n *testNode) call(ctx context.Context, from uint64) (net.Conn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", n.listener.Addr().String())
	if err != nil {
		return nil, err
	}
	if err := binary.Write(conn, binary.LittleEndian, from); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, nil
}

// stop stops the member, once.
func (n *testNode) stop() {
	n.net.mu.Lock()
	running := n.net.nodes[n.ID()] == n
	if running {
		delete(n.net.nodes, n.ID())
	}
	n.net.mu.Unlock()
	if !running {
		return
	}
	if err := errors.Join(n.listener.Close(), n.Close()); err != nil {
		n.net.t.Error(err)
	}
	n.served.Wait()
}

// dial is what the member in dir dials with. All members lose a lost one, and
// it all others.
func (n *network) dial(ctx context.Context, dir string, id uint64) (net.Conn, error) {
	n.dials.Add(1)
	n.mu.Lock()
	node, lost := n.nodes[id], n.lost[id]
	n.mu.Unlock()
	if lost {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if node == nil {
		return nil, errors.New("connection refused")
	}
	own, err := ReadIdentity(dir)
	if err != nil {
		return nil, err
	}
	return node.call(ctx, own.ID)
}

// lose makes a member unreachable; what it receives now stays unread.
func (n *network) lose(node *testNode) {
	n.mu.Lock()
	n.lost[node.ID()] = true
	n.mu.Unlock()
	node.mu.Lock()
	defer node.mu.Unlock()
	for _, c := range node.conns {
		_ = c.Close()
	}
}

func (n *network) find(node *testNode) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.lost, node.ID())
}

// eventually waits until f returns nil.
func eventually(t *testing.T, f func(ctx context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for {
		err := f(ctx)
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("after %v: %v", patience, err)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// leaderOf waits until all the nodes know one leader among them.
func leaderOf(t *testing.T, nodes ...*testNode) *testNode {
	t.Helper()
	var leader *testNode
	eventually(t, func(ctx context.Context) error {
		leader = nil
		for _, n := range nodes {
			info, err := n.Leader(ctx)
			if err != nil {
				return err
			}
			i := slices.IndexFunc(nodes, func(n *testNode) bool { return n.ID() == info.ID })
			if i < 0 {
				return fmt.Errorf("%016x says that the leader is %016x", n.ID(), info.ID)
			}
			if leader != nil && nodes[i] != leader {
				return errors.New("two leaders")
			}
			leader = nodes[i]
		}
		return nil
	})
	return leader
}

// three starts a cluster of three voters; the first leads.
func three(t *testing.T) (*network, []*testNode) {
	t.Helper()
	n := newNetwork(t)
	nodes := []*testNode{n.start("a"), n.start("b"), n.start("c")}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	leaderOf(t, nodes[0], nodes[0])
	for _, joiner := range nodes[1:] {
		if err := nodes[0].Add(ctx, joiner.ID()); err != nil {
			t.Fatal(err)
		}
		if err := nodes[0].Assign(ctx, joiner.ID(), Voter); err != nil {
			t.Fatal(err)
		}
	}
	leaderOf(t, nodes...)
	return n, nodes
}

// openDB opens the database at the member, which leads.
func openDB(t *testing.T, n *testNode) *sql.DB {
	t.Helper()
	connector, err := n.Connector()
	if err != nil {
		t.Fatal(err)
	}
	db := sql.OpenDB(connector)
	db.SetMaxOpenConns(1)
	t.Cleanup(func() { _ = db.Close() })
	return db
}

func exec(t *testing.T, db *sql.DB, query string, args ...any) {
	t.Helper()
	eventually(t, func(ctx context.Context) error {
		_, err := db.ExecContext(ctx, query, args...)
		return err
	})
}

// count returns how many rows the leader has in table t.
func count(t *testing.T, n *testNode) int {
	t.Helper()
	db := openDB(t, n)
	defer db.Close()
	var rows int
	eventually(t, func(ctx context.Context) error {
		return db.QueryRowContext(ctx, "SELECT count(*) FROM t").Scan(&rows)
	})
	return rows
}

var _ io.Closer = (*Member)(nil)

// values returns the one text in table t at the leader.
func values(t *testing.T, n *testNode) string {
	t.Helper()
	db := openDB(t, n)
	defer db.Close()
	var text string
	eventually(t, func(ctx context.Context) error {
		return db.QueryRowContext(ctx, "SELECT group_concat(x) FROM t").Scan(&text)
	})
	return text
}
