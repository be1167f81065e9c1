//go:build cgo

package cluster

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cairn-os/cairn/pkg/store/admin"
	"github.com/cairn-os/cairn/pkg/store/snapshot"
)

// operator asks a node as its operator does.
func operator(t *testing.T, n *testNode) *admin.Client {
	t.Helper()
	c := admin.Open(n.config.AdminSocket)
	t.Cleanup(c.Close)
	return c
}

// followers are the nodes other than the leader.
func (c *testCluster) followers(leader *testNode) []*testNode {
	var all []*testNode
	for _, n := range c.nodes {
		if n != leader && n.stop != nil {
			all = append(all, n)
		}
	}
	return all
}

// TestOperator does on one cluster what an operator does with a healthy one,
// all of it through a follower.
func TestOperator(t *testing.T) {
	c := three(t)
	leader := c.leader()
	follower := c.followers(leader)[0]
	ask := operator(t, follower)
	put(t, c.client(t, follower), "/t/a")

	taken, err := ask.Take(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Run("snapshot through a follower", func(t *testing.T) {
		s, err := c.status(leader)
		if err != nil || taken.Member != s.ID {
			t.Errorf("taken on %s, %v; want on the leader %s", taken.Member, err, s.ID)
		}
		info, err := snapshot.Verify(filepath.Join(leader.config.Dir, "snapshots", taken.Name))
		if err != nil || info.Revision != taken.Revision || info.Hash != taken.Hash {
			t.Errorf("on the leader's disk: %+v, %v; want %+v", info, err, taken)
		}
		if s, err := c.status(follower); err != nil || s.Snapshot == nil || s.Snapshot.Name != taken.Name {
			t.Errorf("the follower tells of snapshot %+v, %v; want %s", s.Snapshot, err, taken.Name)
		}
	})
	t.Run("list", func(t *testing.T) {
		if all, err := ask.Snapshots(t.Context(), taken.Member); err != nil || len(all) == 0 || all[0].Name != taken.Name {
			t.Errorf("on the leader: %+v, %v; want %s first", all, err, taken.Name)
		}
		if all, err := ask.Snapshots(t.Context(), 0); err != nil || len(all) != 0 {
			t.Errorf("on the follower: %+v, %v; want none", all, err)
		}
	})
	t.Run("download", func(t *testing.T) { testDownload(t, ask, leader, taken) })
	t.Run("leadership is handed over", func(t *testing.T) {
		s, err := c.status(follower)
		if err != nil {
			t.Fatal(err)
		}
		if err := ask.Lead(t.Context(), s.ID); err != nil {
			t.Fatal(err)
		}
		deadline := time.Now().Add(formLimit)
		for c.leader() != follower && time.Now().Before(deadline) {
			time.Sleep(50 * time.Millisecond)
		}
		if now := c.leader(); now != follower {
			t.Fatalf("%s leads; want %s", now.name, follower.name)
		}
		if err := ask.Lead(t.Context(), 77); err == nil || !strings.Contains(err.Error(), "no member 000000000000004d") {
			t.Errorf("lead by a stranger: %v; want that there is none", err)
		}
	})
	t.Run("remove a member that is away", func(t *testing.T) {
		c.halt(leader) // the former one
		if err := ask.Remove(t.Context(), taken.Member); err != nil {
			t.Fatal(err)
		}
		s, err := c.status(follower)
		if err != nil || len(s.Members) != 2 {
			t.Errorf("members afterwards: %+v, %v; want two", s.Members, err)
		}
	})
}

func testDownload(t *testing.T, ask *admin.Client, leader *testNode, taken admin.Snapshot) {
	path := filepath.Join(leader.config.Dir, "snapshots", taken.Name)
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	if err := ask.Download(t.Context(), taken, &got); err != nil || !bytes.Equal(got.Bytes(), want) {
		t.Errorf("download: %d bytes, %v; want the %d of %s", got.Len(), err, len(want), path)
	}
	for _, name := range []string{"../member/identity.json", "..", "/etc/passwd", "snapshot-20261121T120000Z-1.db", ".tmp-snapshot-1", "%2e%2e/member/identity.json"} {
		err := ask.Download(t.Context(), admin.Snapshot{Name: name, Member: taken.Member}, &got)
		var refused *admin.Error
		if !errors.As(err, &refused) || refused.Code != http.StatusNotFound {
			t.Errorf("download %q: %v; want that there is no such snapshot", name, err)
		}
	}
	if err := os.WriteFile(path, append(bytes.Clone(want[:len(want)-1]), want[len(want)-1]^1), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := ask.Download(t.Context(), taken, &got); !errors.Is(err, admin.ErrDamagedCopy) {
		t.Errorf("download of a damaged file: %v; want %v", err, admin.ErrDamagedCopy)
	}
	if err := os.Truncate(path, int64(len(want))-512); err != nil {
		t.Fatal(err)
	}
	if err := ask.Download(t.Context(), taken, &got); !errors.Is(err, admin.ErrDamagedCopy) {
		t.Errorf("download of a short file: %v; want %v", err, admin.ErrDamagedCopy)
	}
}

// TestSchedule: a leader takes a snapshot when one is due, and the next leader
// goes on with a directory of its own.
func TestSchedule(t *testing.T) {
	c := newTestCluster(t)
	n := c.add(func(c *Config) { c.SnapshotInterval, c.SnapshotKeep = 50*time.Millisecond, 2 })
	client := c.client(t, n)
	var newest int64
	ctx, cancel := context.WithTimeout(t.Context(), formLimit)
	defer cancel()
	for seen := 0; seen < 4; {
		put(t, client, "/t/a") // Nothing is taken of what did not change.
		files, err := snapshot.List(filepath.Join(n.config.Dir, "snapshots"))
		if err != nil || ctx.Err() != nil {
			t.Fatalf("%d snapshots so far: %v, %v", seen, err, ctx.Err())
		}
		if len(files) > 0 && files[0].Revision > newest {
			newest = files[0].Revision
			seen++
		}
	}
	c.halt(n)
	if files, err := snapshot.List(filepath.Join(n.config.Dir, "snapshots")); err != nil || len(files) != 2 {
		t.Errorf("kept: %v, %v; want 2", files, err)
	}
}

// TestStatusWithoutQuorum: the last one of three tells who is missing.
func TestStatusWithoutQuorum(t *testing.T) {
	c := three(t)
	c.halt(c.nodes[0])
	c.halt(c.nodes[1])
	c.roles(c.nodes[2], "n1 voter away", "n2 voter away", "n3 voter")
	s, err := c.status(c.nodes[2])
	if err != nil || s.Quorum || s.Phase != "no-leader" || !strings.Contains(s.Message, "cairnctl store recover") {
		t.Errorf("status %+v, %v; want no quorum, and what to do", s, err)
	}
}
