//go:build cgo

package cluster

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestTwoNodes: the second one holds a copy and the first is the only voter,
// so either may be missing without harm to the data, and the second's absence
// without harm to anything.
func TestTwoNodes(t *testing.T) {
	c := newTestCluster(t)
	a, b := c.add(), c.add()
	c.roles(a, "n1 voter", "n2 standby")
	put(t, c.client(t, b), "/t/a")
	c.halt(b)
	put(t, c.client(t, a), "/t/b")
	c.start(b)
	c.roles(b, "n1 voter", "n2 standby")
	c.halt(a)
	deadline := time.Now().Add(formLimit)
	for {
		s, err := c.status(b)
		if err == nil && s.Phase == "no-leader" && strings.Contains(s.Message, "recover") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("status of the standby alone: %+v, %v; want no-leader with the way out", s, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
	c.start(a)
	put(t, c.client(t, b), "/t/c")
	if sole, err := soleVoter(a.config); err != nil || !sole {
		t.Errorf("the only voter notes sole = %t, %v; want true", sole, err)
	}
}

// TestWitness votes and gives leadership away when it gets it.
func TestWitness(t *testing.T) {
	c := newTestCluster(t)
	a, b := c.add(), c.add()
	w := c.add(func(o *Config) { o.Witness = true })
	c.roles(a, "n1 voter", "n2 voter", "n3 voter")
	for range 3 {
		leader := c.leader()
		c.halt(leader)
		deadline := time.Now().Add(formLimit)
		for {
			next := c.leader()
			if next != w {
				break
			}
			if time.Now().After(deadline) {
				t.Fatal("the witness keeps leading while a server could")
			}
		}
		put(t, c.client(t, w), "/t/a")
		c.start(leader)
		c.roles(leader, "n1 voter", "n2 voter", "n3 voter")
	}
	_ = b
}

// TestLostVoterIsReplaced is what happens when a machine is wiped and comes
// back under its old name: it is a new member, and the old one is gone.
func TestWipedMachine(t *testing.T) {
	c := three(t)
	put(t, c.client(t, c.nodes[0]), "/t/a")
	lost := c.nodes[2]
	before, err := c.status(lost)
	if err != nil {
		t.Fatal(err)
	}
	// A second machine of that name is refused while the first is there.
	twin := *lost
	twin.config.Dir += "-twin"
	twin.config.Socket += "t"
	twin.config.AdminSocket += "t"
	twin.config.Network = &Network{Listen: freeAddress(t), Credentials: lost.config.Network.Credentials}
	c.refused(&twin, "online")

	c.halt(lost)
	if err := os.RemoveAll(lost.config.Dir); err != nil {
		t.Fatal(err)
	}
	lost.config.Join = []string{c.nodes[1].config.Network.Listen}
	c.start(lost)
	c.roles(c.nodes[0], "n1 voter", "n2 voter", "n3 voter")
	after, err := c.status(lost)
	if err != nil || after.ID == before.ID || len(after.Members) != 3 {
		t.Errorf("status after coming back: %+v, %v; want a new ID instead of %s and three members", after, err, before.ID)
	}
	if resp, err := c.client(t, lost).Get(t.Context(), "/t/a"); err != nil || len(resp.Kvs) != 1 {
		t.Errorf("get through the new member: %v, %v; want the key", resp, err)
	}
}

// refused starts a node that must not get in and expects a word in its
// status.
func (c *testCluster) refused(n *testNode, word string) {
	c.t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	n.config.Ready = nil
	ended := make(chan error, 1)
	go func() { ended <- Run(ctx, n.config) }()
	deadline := time.Now().Add(formLimit)
	for {
		s, err := c.status(n)
		if err == nil && s.Phase == "joining" && strings.Contains(s.Message, word) {
			break
		}
		if time.Now().After(deadline) {
			c.t.Errorf("status of %s: %+v, %v; want joining and %q", n.name, s, err, word)
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	stop()
	if err := <-ended; err != nil {
		c.t.Errorf("%s: %v", n.name, err)
	}
}

// TestAddressChanges moves every node but one to another address, one after
// the other: identity is not the address.
func TestAddressChanges(t *testing.T) {
	c := three(t)
	for _, n := range c.nodes[1:] {
		c.halt(n)
		n.config.Network.Listen = freeAddress(t)
		c.start(n)
		c.roles(c.nodes[0], "n1 voter", "n2 voter", "n3 voter")
	}
	// Those that are left must have heard of each other's new address before the only one goes that could tell.
	for deadline := time.Now().Add(formLimit); !c.known(); {
		if time.Now().After(deadline) {
			t.Fatal("the new addresses are not in all books")
		}
		time.Sleep(50 * time.Millisecond)
	}
	c.halt(c.leader())
	put(t, c.client(t, c.leader()), "/t/a")
}

// known says whether every node's address book has the addresses that all nodes listen on.
func (c *testCluster) known() bool {
	for _, n := range c.nodes {
		book, err := os.ReadFile(filepath.Join(n.config.Dir, bookFile))
		for _, other := range c.nodes {
			if err != nil || !strings.Contains(string(book), other.config.Network.Listen) {
				return false
			}
		}
	}
	return true
}

// TestSoleVoterNote: a note that was never made, or is damaged, errs on the
// safe side.
func TestSoleVoterNote(t *testing.T) {
	for _, x := range []struct {
		name, note string
		config     Config
		want       bool
	}{
		{"alone, nothing noted", "", Config{}, true},
		{"founder, nothing noted", "", Config{Network: &Network{}}, true},
		{"joiner, nothing noted", "", Config{Network: &Network{}, Join: []string{"a:1"}}, false},
		{"one", "1\n", Config{Network: &Network{}, Join: []string{"a:1"}}, true},
		{"three", "3\n", Config{Network: &Network{}}, false},
		{"damaged", "\x00\x00", Config{Network: &Network{}, Join: []string{"a:1"}}, true},
	} {
		x.config.Dir = t.TempDir()
		if x.note != "" {
			if err := os.WriteFile(x.config.Dir+"/"+votersFile, []byte(x.note), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := soleVoter(x.config); err != nil || got != x.want {
			t.Errorf("%s: %t, %v; want %t", x.name, got, err, x.want)
		}
	}
}
