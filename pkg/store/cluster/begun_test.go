//go:build cgo

package cluster

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cairn-os/cairn/pkg/store/admin"
	"github.com/cairn-os/cairn/pkg/store/peer"
	"github.com/cairn-os/cairn/pkg/store/space"
)

func entriesOf(id uint64, name string) []peer.Entry {
	return []peer.Entry{{ID: id, Name: name, Addresses: []string{"127.0.0.1:1"}, Sequence: 1}}
}

// founder adds a first node that leaves the mark of one.
func (c *testCluster) founder() *testNode {
	return c.add(func(o *Config) { o.Begun = filepath.Join(filepath.Dir(o.Dir), "begun") })
}

// TestBegunOnce: a founder whose data are gone, and that knows nobody, does not begin an empty store in the place of its own.
func TestBegunOnce(t *testing.T) {
	c := newTestCluster(t)
	n := c.founder()
	if _, err := os.Stat(n.config.Begun); err != nil {
		t.Errorf("while it serves: %v; want the mark", err)
	}
	putKeys(t, c.client(t, n), "/t/", 20)
	client := admin.Open(n.config.AdminSocket)
	defer client.Close()
	taken, err := client.Take(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	c.halt(n)
	file := filepath.Join(c.dir, taken.Name)
	if err := os.Rename(filepath.Join(snapshotsDir(n.config.Dir), taken.Name), file); err != nil {
		t.Fatal(err)
	}
	identity := filepath.Join(memberDir(n.config.Dir), "identity.json")
	kept, err := os.ReadFile(identity)
	if err != nil {
		t.Fatal(err)
	}
	for _, lost := range []struct{ what, path string }{{"the member's data", memberDir(n.config.Dir)}, {"the store's directory", n.config.Dir}} {
		if err := os.RemoveAll(lost.path); err != nil {
			t.Fatal(err)
		}
		if lost.path == memberDir(n.config.Dir) { // All but the name of who had them.
			if err := errors.Join(os.Mkdir(lost.path, 0o700), os.WriteFile(identity, kept, 0o600)); err != nil {
				t.Fatal(err)
			}
		}
		o := n.config
		o.Ready = nil
		ctx, cancel := context.WithTimeout(t.Context(), formLimit)
		err := Run(ctx, o)
		cancel()
		for _, word := range []string{"cairnctl store restore", o.Begun} {
			if err == nil || !strings.Contains(err.Error(), word) {
				t.Fatalf("without %s: %v; want an error with %q", lost.what, err, word)
			}
		}
	}

	t.Run("restored", func(t *testing.T) {
		if _, err := Restore(t.Context(), n.config.Dir, file, c.log); err != nil {
			t.Fatal(err)
		}
		c.start(n)
		wantKeys(t, c.client(t, n), map[string]int{"/t/": 20})
		c.halt(n)
	})
	t.Run("begun anew", func(t *testing.T) {
		if err := errors.Join(os.RemoveAll(n.config.Dir), os.Remove(n.config.Begun)); err != nil {
			t.Fatal(err)
		}
		c.start(n)
		wantKeys(t, c.client(t, n), map[string]int{"/t/": 0})
		c.halt(n)
	})
	t.Run("data of an earlier release", func(t *testing.T) {
		if err := os.Remove(n.config.Begun); err != nil {
			t.Fatal(err)
		}
		c.start(n)
		if _, err := os.Stat(n.config.Begun); err != nil {
			t.Errorf("%v; want the mark", err)
		}
	})
}

// TestFounderRejoins: a founder without its store's directory becomes a new member of its own cluster, and never the first of
// another; also when nobody takes it in for a while and it is started anew meanwhile.
func TestFounderRejoins(t *testing.T) {
	c := newTestCluster(t)
	n := c.founder()
	c.add()
	c.add()
	c.roles(n, "n1 voter", "n2 voter", "n3 voter")
	putKeys(t, c.client(t, n), "/t/", 20)
	before, err := c.status(n)
	if err != nil {
		t.Fatal(err)
	}
	for _, node := range c.nodes {
		c.halt(node)
	}
	if err := os.RemoveAll(n.config.Dir); err != nil {
		t.Fatal(err)
	}
	peers := []string{c.nodes[1].config.Network.Listen, c.nodes[2].config.Network.Listen}
	n.config.Peers = func() []string { return peers }
	for range 2 {
		c.begin(n)
		c.wait("it says whom it waits for", formLimit, func() bool {
			s, err := c.status(n)
			return err == nil && s.Phase == "joining" && strings.Contains(s.Message, peers[1])
		})
		c.halt(n)
	}
	c.begin(c.nodes[1])
	c.begin(c.nodes[2])
	c.start(n)
	c.replaced(n, before.ID)
	c.roles(n, "n1 voter", "n2 voter", "n3 voter")
	wantKeys(t, c.client(t, n), map[string]int{"/t/": 20})
}

// TestSpaceToStart: one of several members waits for a disk with some space; the only voter, without which nothing on its
// machine goes on, does not, whether others could join it or not.
func TestSpaceToStart(t *testing.T) {
	for _, tt := range []struct {
		name   string
		voters int // noted; 0: nothing
		c      Config
		want   space.State
	}{
		{"alone for good", 0, Config{}, space.Full},
		{"founder", 0, Config{Network: &Network{}}, space.Full},
		{"founder with a standby", 1, Config{Network: &Network{}}, space.Full},
		{"one of three", 3, Config{Network: &Network{}}, space.Low},
		{"joins", 0, Config{Network: &Network{}, Join: []string{"a:1"}}, space.Low},
		{"the last voter", 1, Config{Network: &Network{}, Join: []string{"a:1"}}, space.Full},
	} {
		tt.c.Dir = t.TempDir()
		if tt.voters > 0 {
			if err := saveVoters(tt.c.Dir, tt.voters); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := (&Node{config: tt.c}).enough(); got != tt.want || err != nil {
			t.Errorf("%s: starts with a disk that is %v, %v; want %v", tt.name, got, err, tt.want)
		}
	}
}

// TestLoneFullDisk: a server alone, with a disk that is full, comes back after a power cut.
func TestLoneFullDisk(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to mount a small disk")
	}
	c := newTestCluster(t)
	n := c.add(func(o *Config) { mountSmall(t, o.Dir, 512<<20) })
	putKeys(t, c.client(t, n), "/t/", 20)
	c.halt(n)
	ballast := filepath.Join(n.config.Dir, "ballast")
	occupy(t, ballast)
	usage, err := space.Look(n.config.Dir)
	if err != nil {
		t.Fatal(err)
	}
	// Below Full, which is 32 MiB here and counts the reserve as taken, and above Exhausted.
	info, err := os.Stat(ballast)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(ballast, info.Size()-(22<<20)+usage.Free); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	c.start(n)
	t.Logf("serves after %s", time.Since(began))
	wantKeys(t, c.client(t, n), map[string]int{"/t/": 20})
}
