//go:build cgo

package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/cairn-os/cairn/pkg/store/admin"
)

// fill writes n keys through a client and returns them.
func fill(t *testing.T, client *clientv3.Client, prefix string, n int) map[string]string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), formLimit)
	defer cancel()
	written := map[string]string{}
	for i := range n {
		key, value := fmt.Sprintf("%s%04d", prefix, i), strings.Repeat("v", 500+i)
		if _, err := client.Put(ctx, key, value); err != nil {
			t.Fatal(err)
		}
		written[key] = value
	}
	return written
}

// compare expects all that was acknowledged.
func compare(t *testing.T, client *clientv3.Client, want map[string]string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), formLimit)
	defer cancel()
	resp, err := client.Get(ctx, "/t/", clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, kv := range resp.Kvs {
		got[string(kv.Key)] = string(kv.Value)
	}
	for key, value := range want {
		if got[key] != value {
			t.Errorf("%s has %d bytes; %d were acknowledged", key, len(got[key]), len(value))
		}
	}
}

// segments lists a member's closed segments.
func segments(t *testing.T, n *testNode) []string {
	t.Helper()
	all, err := filepath.Glob(filepath.Join(memberDir(n.config.Dir), "0*-0*"))
	if err != nil || len(all) == 0 {
		t.Fatalf("segments of %s: %v, %v; want some", n.name, all, err)
	}
	slices.Sort(all)
	return all
}

// TestTruncatedSegment cuts a segment of a member's log: the others serve on,
// the member finds it, keeps the data aside and comes back with all of it. The
// founder, which joins nobody by its configuration, heals like the others.
func TestTruncatedSegment(t *testing.T) {
	c := three(t)
	written := fill(t, c.client(t, c.nodes[1]), "/t/a", 150)
	for _, n := range []*testNode{c.nodes[2], c.nodes[0]} {
		before, err := c.status(n)
		if err != nil {
			t.Fatal(err)
		}
		c.halt(n)
		all := segments(t, n)
		last := all[len(all)-1]
		info, err := os.Stat(last)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(last, info.Size()/2); err != nil {
			t.Fatal(err)
		}
		for key, value := range fill(t, c.client(t, c.nodes[1]), "/t/"+n.name, 20) {
			written[key] = value
		}
		c.start(n)
		c.replaced(n, before.ID)
		c.roles(c.nodes[1], "n1 voter", "n2 voter", "n3 voter")
		compare(t, c.client(t, n), written)
		sets, err := filepath.Glob(filepath.Join(n.config.Dir, damagedDir, "*", "report.txt"))
		if err != nil || len(sets) != 1 {
			t.Errorf("%s: set aside %v, %v; want one set with a report", n.name, sets, err)
		}
	}
}

// replaced waits until a node is a member again, under a new ID.
func (c *testCluster) replaced(n *testNode, old admin.ID) {
	c.t.Helper()
	deadline := time.Now().Add(formLimit)
	for {
		s, err := c.status(n)
		if err == nil && s.ID != old && slices.ContainsFunc(s.Members, func(m admin.Member) bool { return m.ID == s.ID }) &&
			!slices.ContainsFunc(s.Members, func(m admin.Member) bool { return m.ID == old }) {
			return
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("%s: status %+v, %v; want to be a member under another ID than %s", n.name, s, err, old)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// TestLoneDamage: nobody else has the data, so the store does not start, says
// what is damaged and names the way back.
func TestLoneDamage(t *testing.T) {
	c := newTestCluster(t)
	n := c.add(func(o *Config) { o.Network, o.Join = nil, nil })
	fill(t, c.client(t, n), "/t/a", 150)
	client := admin.Open(n.config.AdminSocket)
	defer client.Close()
	ctx, cancel := context.WithTimeout(t.Context(), formLimit)
	defer cancel()
	if _, err := client.Take(ctx); err != nil {
		t.Fatal(err)
	}
	c.halt(n)
	all := segments(t, n)
	segment := all[len(all)-1]
	f, err := os.OpenFile(segment, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, info.Size()/2); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 4
	if _, err := f.WriteAt(b, info.Size()/2); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadDir(memberDir(n.config.Dir))
	if err != nil {
		t.Fatal(err)
	}
	n.config.Ready = nil
	err = Run(ctx, n.config)
	for _, word := range []string{filepath.Base(segment), "cairnctl store restore", "snapshots/snapshot-", "only member"} {
		if err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("start on a flipped bit: %v; want an error with %q", err, word)
		}
	}
	after, err := os.ReadDir(memberDir(n.config.Dir))
	if err != nil || len(after) != len(before) {
		t.Errorf("the directory has %d files, %v; had %d: nothing may be changed", len(after), err, len(before))
	}
}

// exhausted waits until a node ends because its disk is full to the end; its
// supervisor would start it anew, and it would wait for space.
func (c *testCluster) exhausted(n *testNode) {
	c.t.Helper()
	select {
	case err := <-n.ended:
		if !errors.Is(err, errExhausted) {
			c.t.Fatalf("%s ended: %v; want because of the full disk", n.name, err)
		}
	case <-time.After(formLimit):
		c.t.Fatalf("%s goes on with a disk that is full to the end", n.name)
	}
}

// TestFullDisk fills a member's disk, a follower's and then the leader's: the
// cluster serves on, and the member goes on when there is space again.
func TestFullDisk(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to mount a small disk")
	}
	c := newTestCluster(t)
	for range 3 {
		c.add(func(o *Config) {
			mountSmall(t, o.Dir, 192<<20)
		})
	}
	c.roles(c.nodes[0], "n1 voter", "n2 voter", "n3 voter")
	leader := c.leader()
	written := map[string]string{}
	for round, n := range []*testNode{c.nodes[(slices.Index(c.nodes, leader)+1)%3], leader} {
		ballast := filepath.Join(n.config.Dir, "ballast")
		occupy(t, ballast)
		c.exhausted(n)
		other := c.nodes[(slices.Index(c.nodes, n)+1)%3]
		client := c.client(t, other)
		deadline := time.Now().Add(formLimit)
		for i := 0; i < 100; {
			key, value := fmt.Sprintf("/t/%d-%04d", round, i), strings.Repeat("v", 9000)
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			_, err := client.Put(ctx, key, value)
			cancel()
			if err == nil {
				written[key] = value
				i++
				continue
			}
			if time.Now().After(deadline) {
				t.Fatalf("no write while the disk of %s is full: %v", n.name, err)
			}
			time.Sleep(100 * time.Millisecond)
		}
		if err := os.Remove(ballast); err != nil {
			t.Fatal(err)
		}
		c.start(n)
		c.roles(other, "n1 voter", "n2 voter", "n3 voter")
		compare(t, c.client(t, n), written)
	}
}
