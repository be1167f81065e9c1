//go:build cgo

package cluster

import (
	"context"
	"slices"
	"sync/atomic"
	"testing"
	"time"
)

// wait asks again until f says that it is so.
func (c *testCluster) wait(what string, limit time.Duration, f func() bool) {
	c.t.Helper()
	for deadline := time.Now().Add(limit); !f(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			c.t.Fatalf("%s: not within %s", what, limit)
		}
	}
}

// begin starts a node without waiting until it serves.
func (c *testCluster) begin(n *testNode) {
	ctx, stop := context.WithCancel(context.Background())
	n.stop, n.ended, n.config.Ready = stop, make(chan error, 1), nil
	go func() { n.ended <- Run(ctx, n.config) }()
}

// TestAllMoved: a power cut after which every machine has another address. Nobody is where the books and the join lists
// say; one of them is told where another is, and that is enough.
func TestAllMoved(t *testing.T) {
	c := three(t)
	for _, n := range c.nodes {
		c.halt(n)
	}
	for _, n := range c.nodes {
		n.config.Network.Listen = freeAddress(t)
	}
	// The founder, which joined nobody, finds the second; the third is told of the founder.
	for i, of := range []int{1, -1, 0} {
		if of >= 0 {
			address := c.nodes[of].config.Network.Listen
			c.nodes[i].config.Peers = func() []string { return []string{address} }
		}
	}
	for _, n := range c.nodes {
		c.begin(n)
	}
	leader := c.leader()
	c.roles(leader, "n1 voter", "n2 voter", "n3 voter")
	put(t, c.client(t, leader), "/t/a")
}

// TestMoved: a member whose address changes while it runs says so at once.
func TestMoved(t *testing.T) {
	c := newTestCluster(t)
	var moved atomic.Bool
	const other = "127.0.0.77:2380"
	c.add(func(o *Config) {
		listen := o.Network.Listen
		o.Network.Own = func() ([]string, error) {
			if moved.Load() {
				return []string{listen, other}, nil
			}
			return []string{listen}, nil
		}
	})
	second := c.add()
	c.roles(c.nodes[0], "n1 voter", "n2 standby")
	moved.Store(true)
	c.wait("the second member knows the new address", gossipInterval/2, func() bool {
		s, err := c.status(second)
		return err == nil && len(s.Members) == 2 && slices.Contains(s.Members[0].Addresses, other)
	})
}

// TestPace: the only member looks seldom who leads, also where others could come; as soon as there is one, often.
func TestPace(t *testing.T) {
	c := newTestCluster(t)
	first := c.add()
	c.halt(first)
	n := newNode(first.config)
	ready := make(chan struct{})
	n.config.Ready = func() { close(ready) }
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- n.run(ctx) }()
	defer func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	select {
	case <-ready:
	case <-time.After(formLimit):
		t.Fatal("it does not serve")
	}
	if got := n.pace(ctx); got != aloneInterval {
		t.Errorf("a lone member looks each %s; want %s", got, aloneInterval)
	}
	c.add()
	if got := n.pace(ctx); got != watchInterval {
		t.Errorf("one of two members looks each %s; want %s", got, watchInterval)
	}
}

// TestNewcomerWakes: a second member in the address book wakes the loop that looks who leads.
func TestNewcomerWakes(t *testing.T) {
	c := newTestCluster(t)
	c.halt(c.add())
	n := newNode(c.nodes[0].config)
	if err := n.start(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := n.close(); err != nil {
			t.Error(err)
		}
	}()
	poked := func() bool {
		select {
		case <-n.poked:
			return true
		default:
			return false
		}
	}
	if err := n.announce(); err != nil || poked() {
		t.Errorf("alone: %v, woken; want it left asleep", err)
	}
	n.network.Book().Merge(entriesOf(7, "n2"))
	if err := n.announce(); err != nil || !poked() {
		t.Errorf("with a second member: %v; want the loop woken", err)
	}
}
