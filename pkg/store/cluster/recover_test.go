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

	"github.com/google/go-cmp/cmp"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/cairn-os/cairn/pkg/store/damage"
	"github.com/cairn-os/cairn/pkg/store/member"
	"github.com/cairn-os/cairn/pkg/store/snapshot"
)

// lostTwo is a cluster of three whose first two members are gone for good, with
// 50 acknowledged keys. What it returns is the survivor.
func lostTwo(t *testing.T) (*testCluster, *testNode) {
	c := three(t)
	putKeys(t, c.client(t, c.nodes[2]), "/t/", 50)
	for _, n := range c.nodes {
		c.halt(n)
	}
	return c, c.nodes[2]
}

// TestRecover recovers the store from the last of three members.
func TestRecover(t *testing.T) {
	c, n := lostTwo(t)
	dir := n.config.Dir
	before := tree(t, dir)
	r, err := PrepareRecovery(t.Context(), dir, c.log)
	if err != nil {
		t.Fatal(err)
	}
	t.Run("plan", func(t *testing.T) {
		var others []string
		for _, e := range r.Plan.Others {
			others = append(others, e.Name)
		}
		if len(others) != 2 || r.Plan.Snapshot.Keys < 50 || r.Plan.Index == 0 || r.Plan.Term == 0 {
			t.Errorf("plan %+v, others %q; want n1 and n2, 50 keys, a term and an index", r.Plan, others)
		}
		if _, err := PrepareRecovery(t.Context(), dir, c.log); !errors.Is(err, snapshot.ErrInUse) {
			t.Errorf("a second recovery beside: %v; want %v", err, snapshot.ErrInUse)
		}
	})
	if err := r.Discard(); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff(before, tree(t, dir)); diff != "" {
		t.Errorf("a dry run changed something (-before +after):\n%s", diff)
	}

	if r, err = PrepareRecovery(t.Context(), dir, c.log); err != nil {
		t.Fatal(err)
	}
	done, err := r.Apply(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if done.Revision < r.Plan.Snapshot.Revision+snapshot.DefaultBump {
		t.Errorf("revision %d after %d: members that are lost may have known greater ones", done.Revision, r.Plan.Snapshot.Revision)
	}
	if got := tree(t, done.SetAside)["identity.json"]; got != before["member/identity.json"] {
		t.Errorf("set aside: identity %s; want %s", got, before["member/identity.json"])
	}
	c.start(n)
	wantKeys(t, c.client(t, n), map[string]int{"/t/": 50})

	t.Run("a new node joins", func(t *testing.T) {
		c.add(func(c *Config) { c.Join = []string{n.config.Network.Listen} })
		c.roles(n, "n3 voter", "n4 standby")
	})
	t.Run("an old member comes back", func(t *testing.T) { testOldMember(t, c, c.nodes[0], n) })
}

// testOldMember starts a member of the former cluster: it harms nobody.
func testOldMember(t *testing.T, c *testCluster, old, recovered *testNode) {
	id, err := member.ReadIdentity(memberDir(old.config.Dir))
	if err != nil {
		t.Fatal(err)
	}
	before, err := damage.Inspect(memberDir(old.config.Dir))
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	old.stop, old.ended = stop, make(chan error, 1)
	old.config.Ready = nil
	// Where it would look for its own cluster, and finds the other.
	old.config.Join = []string{recovered.config.Network.Listen}
	go func() { old.ended <- Run(ctx, old.config) }()
	client := c.client(t, recovered)
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); {
		putKeys(t, client, "/after/", 5)
		if s, err := c.status(old); err == nil && s.Phase == "leader" {
			t.Fatalf("the old member leads: %+v", s)
		}
	}
	c.halt(old)
	wantKeys(t, client, map[string]int{"/t/": 50, "/after/": 5})
	if s, err := c.status(recovered); err != nil || len(s.Members) != 2 {
		t.Errorf("members of the recovered cluster: %+v, %v; want two", s.Members, err)
	}
	after, err := damage.Inspect(memberDir(old.config.Dir))
	if err != nil || after.LastIndex != before.LastIndex || after.LastTerm != before.LastTerm || after.Damaged() {
		t.Errorf("the old member's log: %+v, %v; want what it was: %+v", after, err, before)
	}
	if now, err := member.ReadIdentity(memberDir(old.config.Dir)); err != nil || now != id {
		t.Errorf("the old member is %+v, %v; want %+v", now, err, id)
	}
}

// TestRecoverInterrupted cuts a recovery off where it leaves something behind.
func TestRecoverInterrupted(t *testing.T) {
	c := newTestCluster(t)
	n := c.add()
	putKeys(t, c.client(t, n), "/t/", 10)
	c.halt(n)
	dir := n.config.Dir
	before := tree(t, dir)

	// While it works: the copy is there, the member is as it was.
	if _, err := prepareAndForget(t, c, dir); err != nil {
		t.Fatal(err)
	}
	cut := tree(t, dir)
	for name, content := range before {
		if cut[name] != content {
			t.Errorf("%s: changed by a recovery that was not applied", name)
		}
	}
	// After the snapshot was put beside the others.
	kept, err := snapshot.List(filepath.Join(dir, recoveringDir, "snapshots"))
	if err != nil || len(kept) != 1 {
		t.Fatalf("snapshots of the recovery: %v, %v; want one", kept, err)
	}
	if err := os.Rename(kept[0].Path, filepath.Join(dir, "snapshots", filepath.Base(kept[0].Path))); err != nil {
		t.Fatal(err)
	}

	if replaced, err := FinishReplacing(dir); replaced || err != nil {
		t.Errorf("finish: %v, %v; want that there is nothing to finish", replaced, err)
	}
	if _, err := os.Lstat(filepath.Join(dir, recoveringDir)); err == nil {
		t.Errorf("%s is left", recoveringDir)
	}

	r, err := PrepareRecovery(t.Context(), dir, c.log)
	if err != nil {
		t.Fatal(err)
	}
	// In the middle of the exchange's preparation.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.Apply(ctx); err == nil {
		t.Fatal("a recovery that was cancelled succeeds")
	}
	if now := tree(t, dir)["member/identity.json"]; now != before["member/identity.json"] {
		t.Errorf("after a cancelled recovery the member is %s; want %s", now, before["member/identity.json"])
	}
	if r, err = PrepareRecovery(t.Context(), dir, c.log); err != nil {
		t.Fatal(err)
	}
	done, err := r.Apply(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for name := range tree(t, dir) {
		if strings.HasPrefix(name, recoveringDir) || name == replacingFile {
			t.Errorf("%s is left", name)
		}
	}
	c.start(n)
	if now := wantKeys(t, c.client(t, n), map[string]int{"/t/": 10}); now < done.Revision {
		t.Errorf("revision %d; want %d", now, done.Revision)
	}
}

// prepareAndForget is a recovery whose process ends before it is applied.
func prepareAndForget(t *testing.T, c *testCluster, dir string) (*Recovery, error) {
	t.Helper()
	r, err := PrepareRecovery(t.Context(), dir, c.log)
	if err == nil {
		r.unlock()
		r.unlock = nil
	}
	return r, err
}

// TestRecoverRefuses: there must be data, whole and not in use.
func TestRecoverRefuses(t *testing.T) {
	c := newTestCluster(t)
	n := c.add(lone)
	client := c.client(t, n)
	putKeys(t, client, "/t/", 10)
	taken, err := operator(t, n).Take(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := PrepareRecovery(t.Context(), n.config.Dir, c.log); !errors.Is(err, snapshot.ErrInUse) {
		t.Errorf("while it runs: %v; want %v", err, snapshot.ErrInUse)
	}
	if _, err := PrepareRecovery(t.Context(), filepath.Join(c.dir, "nowhere"), c.log); !errors.Is(err, ErrNoCopy) {
		t.Errorf("without a directory: %v; want %v", err, ErrNoCopy)
	}
	c.halt(n)
	for _, name := range []string{"metadata1", "metadata2"} {
		if err := os.WriteFile(filepath.Join(memberDir(n.config.Dir), name), []byte("short"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	before := tree(t, n.config.Dir)
	_, err = PrepareRecovery(t.Context(), n.config.Dir, c.log)
	if !errors.Is(err, damage.ErrDamaged) || !strings.Contains(err.Error(), taken.Name) {
		t.Errorf("damaged data: %v; want %v and the snapshot %s", err, damage.ErrDamaged, taken.Name)
	}
	if diff := cmp.Diff(before, tree(t, n.config.Dir)); diff != "" {
		t.Errorf("the refusal changed something (-before +after):\n%s", diff)
	}
}

// TestRecoveredWatch: who watched the lost cluster is told to begin anew.
func TestRecoveredWatch(t *testing.T) {
	c := newTestCluster(t)
	n := c.add(lone)
	revision := putKeys(t, c.client(t, n), "/t/", 5)
	c.halt(n)
	r, err := PrepareRecovery(t.Context(), n.config.Dir, c.log)
	if err == nil {
		_, err = r.Apply(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	c.start(n)
	// A revision that only a lost member gave out.
	ctx, cancel := context.WithTimeout(t.Context(), formLimit)
	defer cancel()
	for resp := range c.client(t, n).Watch(ctx, "/t/", clientv3.WithPrefix(), clientv3.WithRev(revision+3)) {
		if resp.CompactRevision <= revision {
			t.Errorf("watch of a lost revision: %+v; want that it is compacted", resp)
		}
		return
	}
	t.Error("the watch says nothing")
}
