//go:build cgo

package cluster

import (
	"net"
	"strings"
	"testing"
	"time"

	"github.com/cairn-os/cairn/pkg/store/admin"
)

// TestRemovedWhileAway: a member that was off when it was removed says so
// when it is back, and does not end for it.
func TestRemovedWhileAway(t *testing.T) {
	c := three(t)
	gone := c.nodes[2]
	s, err := c.status(gone)
	if err != nil {
		t.Fatal(err)
	}
	c.halt(gone)
	leader := c.leader()
	client := admin.Open(leader.config.AdminSocket)
	defer client.Close()
	deadline := time.Now().Add(formLimit)
	for {
		err := client.Remove(t.Context(), s.ID)
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(100 * time.Millisecond)
	}
	c.start(gone)
	for {
		s, err := c.status(gone)
		if err == nil && s.Phase == "removed" && strings.Contains(s.Message, "join anew") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("status %+v, %v; want removed", s, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
	c.roles(leader, rolesOf(c, leader, gone)...)
}

// rolesOf are the roles of two nodes of which one leads.
func rolesOf(c *testCluster, leader, gone *testNode) []string {
	var want []string
	for _, n := range c.nodes {
		switch n {
		case leader:
			want = append(want, n.name+" voter")
		case gone:
		default:
			want = append(want, n.name+" standby")
		}
	}
	return want
}

// TestInboxAfterClose: a connection that is offered while the inbox closes is
// closed by one or the other; its client must not wait for ever.
func TestInboxAfterClose(t *testing.T) {
	for range 200 {
		i := newInbox("test")
		near, far := net.Pipe()
		tracked := &closing{Conn: far, closed: make(chan struct{})}
		go func() { _ = i.Close() }()
		if !i.offer(tracked) {
			_ = tracked.Close()
		}
		select {
		case <-tracked.closed:
		case <-time.After(10 * time.Second):
			t.Fatal("a connection is left in a closed inbox")
		}
		_ = near.Close()
	}
}
