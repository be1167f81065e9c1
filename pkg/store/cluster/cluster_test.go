//go:build cgo

package cluster

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/cairn-os/cairn/pkg/store/admin"
	"github.com/cairn-os/cairn/pkg/store/peer/peertest"
	"github.com/cairn-os/cairn/pkg/store/storetest"
)

// formLimit is how long a cluster may take to form or to find a new leader,
// on a machine that is busy with other things.
const formLimit = 60 * time.Second

// testNode is a node of a testCluster; it can be stopped and started again.
type testNode struct {
	name   string
	config Config
	stop   context.CancelFunc
	ended  chan error
}

// testCluster is a cluster of nodes in this process.
type testCluster struct {
	t     testing.TB
	dir   string
	ca    *peertest.CA
	log   *slog.Logger
	nodes []*testNode
}

func newTestCluster(t testing.TB) *testCluster {
	t.Helper()
	logrus.SetLevel(logrus.FatalLevel)
	// Sockets' paths are short: sun_path has 108 bytes.
	dir, err := os.MkdirTemp("", "cairn")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	ca, err := peertest.NewCA(dir)
	if err != nil {
		t.Fatal(err)
	}
	level := slog.LevelWarn
	if testing.Verbose() {
		level = slog.LevelInfo
	}
	return &testCluster{t: t, dir: dir, ca: ca, log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: level}))}
}

// freeAddress is an address on which nobody listens.
func freeAddress(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// add configures one more node, which joins by the first, and starts it.
func (c *testCluster) add(change ...func(*Config)) *testNode {
	c.t.Helper()
	name := fmt.Sprintf("n%d", len(c.nodes)+1)
	dir := filepath.Join(c.dir, name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		c.t.Fatal(err)
	}
	credentials, err := c.ca.Issue(dir, name)
	if err != nil {
		c.t.Fatal(err)
	}
	n := &testNode{name: name, config: Config{
		Dir: filepath.Join(dir, "store"), Socket: filepath.Join(dir, "s"), AdminSocket: filepath.Join(dir, "a"), Name: name,
		Network: &Network{Listen: freeAddress(c.t), Credentials: credentials}, Voters: 3, Logger: c.log.With("node", name),
	}}
	if len(c.nodes) > 0 {
		n.config.Join = []string{c.nodes[0].config.Network.Listen}
	}
	for _, f := range change {
		f(&n.config)
	}
	c.nodes = append(c.nodes, n)
	c.start(n)
	c.t.Cleanup(func() { c.halt(n) })
	return n
}

func (c *testCluster) start(n *testNode) {
	c.t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	n.stop, n.ended = stop, make(chan error, 1)
	ready := make(chan struct{})
	n.config.Ready = func() { close(ready) }
	go func() { n.ended <- Run(ctx, n.config) }()
	select {
	case <-ready:
	case err := <-n.ended:
		n.ended <- err
		c.t.Fatalf("%s ended: %v", n.name, err)
	case <-time.After(formLimit):
		c.t.Fatalf("%s does not serve", n.name)
	}
}

// halt stops a node in order, if it runs.
func (c *testCluster) halt(n *testNode) {
	c.t.Helper()
	if n.stop == nil {
		return
	}
	n.stop()
	n.stop = nil
	select {
	case err := <-n.ended:
		if err != nil {
			c.t.Errorf("%s: %v", n.name, err)
		}
	case <-time.After(formLimit):
		c.t.Errorf("%s does not stop", n.name)
	}
}

// client connects to a node's socket.
func (c *testCluster) client(t testing.TB, n *testNode) *clientv3.Client {
	t.Helper()
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{"unix://" + n.config.Socket}, DialTimeout: 20 * time.Second, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	return client
}

// status asks a node.
func (c *testCluster) status(n *testNode) (admin.Status, error) {
	client := admin.Open(n.config.AdminSocket)
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return client.Status(ctx)
}

// roles waits until node n sees these roles, as "n1 voter leader".
func (c *testCluster) roles(n *testNode, want ...string) {
	c.t.Helper()
	deadline := time.Now().Add(formLimit)
	for {
		s, err := c.status(n)
		var got []string
		for _, m := range s.Members {
			text := m.Name + " " + m.Role
			if !m.Online {
				text += " away"
			}
			got = append(got, text)
		}
		if err == nil && fmt.Sprint(got) == fmt.Sprint(want) {
			return
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("%s sees %q (%s %s), %v; want %q", n.name, got, s.Phase, s.Message, err, want)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// leader waits for a leader among the nodes that run.
func (c *testCluster) leader() *testNode {
	c.t.Helper()
	deadline := time.Now().Add(formLimit)
	for time.Now().Before(deadline) {
		for _, n := range c.nodes {
			if n.stop == nil {
				continue
			}
			if s, err := c.status(n); err == nil && s.Phase == "leader" {
				return n
			}
		}
		time.Sleep(50 * time.Millisecond)
	}
	c.t.Fatal("no leader")
	return nil
}

// three forms a cluster of three voters.
func three(t testing.TB) *testCluster {
	t.Helper()
	c := newTestCluster(t)
	for range 3 {
		c.add()
	}
	c.roles(c.nodes[0], "n1 voter", "n2 voter", "n3 voter")
	return c
}

// empty removes the keys of the test before.
func empty(t *testing.T, client *clientv3.Client) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), formLimit)
	defer cancel()
	resp, err := client.Get(ctx, "/t/", clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil {
		t.Fatal(err)
	}
	// The apiserver's record, and where kine's front keeps it.
	compact, err := client.Get(ctx, "compact_rev_key", clientv3.WithKeysOnly())
	if err != nil {
		t.Fatal(err)
	}
	for _, kv := range compact.Kvs {
		kv.Key = []byte("compact_rev_key_apiserver")
	}
	for _, kv := range append(resp.Kvs, compact.Kvs...) {
		key := string(kv.Key)
		_, err := client.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(key), "=", kv.ModRevision)).
			Then(clientv3.OpDelete(key)).Else(clientv3.OpGet(key)).Commit()
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestConformanceThroughFollower is the suite of the single store, unchanged.
func TestConformanceThroughFollower(t *testing.T) {
	c := three(t)
	leader := c.leader()
	var follower *testNode
	for _, n := range c.nodes {
		if n != leader {
			follower = n
		}
	}
	storetest.Run(t, func(t *testing.T) *clientv3.Client {
		client := c.client(t, follower)
		empty(t, client)
		return client
	})
}

// TestConformanceAcrossLeaders runs each test right after the leader stopped
// and with another than the last test had.
func TestConformanceAcrossLeaders(t *testing.T) {
	if testing.Short() {
		t.Skip("short: the leader changes once per test of the suite")
	}
	c := three(t)
	storetest.Run(t, func(t *testing.T) *clientv3.Client {
		leader := c.leader()
		c.halt(leader)
		client := c.client(t, c.leader())
		empty(t, client)
		c.start(leader)
		return client
	})
}

// put writes until it succeeds and returns how long that took.
func put(t *testing.T, client *clientv3.Client, key string) time.Duration {
	t.Helper()
	start := time.Now()
	for time.Since(start) < formLimit {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		_, err := client.Put(ctx, key, "1")
		cancel()
		if err == nil {
			return time.Since(start)
		}
		t.Logf("put: %v", err)
	}
	t.Fatal("no write succeeds")
	return 0
}

// TestLeaderStops hands leadership over, round and round.
func TestLeaderStops(t *testing.T) {
	c := three(t)
	for round := range 4 {
		leader := c.leader()
		c.halt(leader)
		next := c.leader()
		t.Logf("round %d: %s -> %s, a write after %s", round, leader.name, next.name, put(t, c.client(t, next), "/t/a"))
		c.start(leader)
	}
}
