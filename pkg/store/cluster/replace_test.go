//go:build cgo

package cluster

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/cairn-os/cairn/pkg/store/member"
	"github.com/cairn-os/cairn/pkg/store/snapshot"
)

// tree is the content of all files below dir, large ones by their hash.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(dir, path)
		if d.IsDir() {
			files[name] = "a directory"
			return nil
		}
		data, err := os.ReadFile(path)
		if files[name] = string(data); len(data) > 1<<12 {
			files[name] = fmt.Sprintf("%d bytes %x", len(data), sha256.Sum256(data))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// putKeys writes keys until there are count of them and returns the revision.
func putKeys(t *testing.T, client *clientv3.Client, prefix string, count int) int64 {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), formLimit)
	defer cancel()
	var revision int64
	for i := range count {
		resp, err := client.Put(ctx, fmt.Sprintf("%s%03d", prefix, i), fmt.Sprint("value of ", prefix, i))
		if err != nil {
			t.Fatal(err)
		}
		revision = resp.Header.Revision
	}
	return revision
}

// wantKeys expects these and returns the revision.
func wantKeys(t *testing.T, client *clientv3.Client, want map[string]int) int64 {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), formLimit)
	defer cancel()
	var revision int64
	for prefix, count := range want {
		resp, err := client.Get(ctx, prefix, clientv3.WithPrefix())
		if err != nil {
			t.Fatal(err)
		}
		if int(resp.Count) != count {
			t.Errorf("%d keys below %s; want %d", resp.Count, prefix, count)
		}
		for i, kv := range resp.Kvs {
			if want := fmt.Sprint("value of ", prefix, i); string(kv.Value) != want {
				t.Errorf("%s = %q; want %q", kv.Key, kv.Value, want)
			}
		}
		revision = resp.Header.Revision
	}
	return revision
}

// lone makes a node a member of nothing but itself.
func lone(c *Config) { c.Network, c.Join = nil, nil }

// TestRestore brings a lone node back to a snapshot, twice, and to its own
// data before.
func TestRestore(t *testing.T) {
	c := newTestCluster(t)
	n := c.add(lone)
	putKeys(t, c.client(t, n), "/old/", 20)
	taken, err := operator(t, n).Take(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	newest := putKeys(t, c.client(t, n), "/new/", 5)
	file := filepath.Join(n.config.Dir, "snapshots", taken.Name)
	for name, f := range map[string]func() error{
		"plan":    func() error { _, err := PlanRestore(n.config.Dir, file); return err },
		"restore": func() error { _, err := Restore(t.Context(), n.config.Dir, file, c.log); return err },
	} {
		if err := f(); !errors.Is(err, snapshot.ErrInUse) {
			t.Errorf("%s while the node runs: %v; want %v", name, err, snapshot.ErrInUse)
		}
	}
	wantKeys(t, c.client(t, n), map[string]int{"/old/": 20, "/new/": 5})
	c.halt(n)

	before := tree(t, n.config.Dir)
	plan, err := PlanRestore(n.config.Dir, file)
	if err != nil || plan.Snapshot.Revision != taken.Revision || uint64(plan.Former) != member.BootstrapID || len(plan.Newer) != 0 {
		t.Errorf("plan = %+v, %v", plan, err)
	}
	if diff := cmp.Diff(before, tree(t, n.config.Dir)); diff != "" {
		t.Errorf("the plan changed something (-before +after):\n%s", diff)
	}
	if _, err := Restore(t.Context(), n.config.Dir, filepath.Join(n.config.Dir, "voters"), c.log); err == nil {
		t.Error("restore from a file that is no snapshot succeeds")
	}
	if diff := cmp.Diff(before, tree(t, n.config.Dir)); diff != "" {
		t.Errorf("a restore that failed changed something (-before +after):\n%s", diff)
	}

	revision := newest
	for round := range 2 {
		done, err := Restore(t.Context(), n.config.Dir, file, c.log)
		if err != nil {
			t.Fatal(err)
		}
		if done.Revision <= revision+snapshot.DefaultBump/2 {
			t.Errorf("round %d: revision %d after %d: too little", round, done.Revision, revision)
		}
		c.start(n)
		client := c.client(t, n)
		if now := wantKeys(t, client, map[string]int{"/old/": 20, "/new/": 0}); now < done.Revision {
			t.Errorf("round %d: serves revision %d; want %d", round, now, done.Revision)
		}
		revision = putKeys(t, client, "/new/", 3)
		c.halt(n)
		if round == 0 {
			if got := tree(t, done.SetAside)["identity.json"]; got != before["member/identity.json"] || got == "" {
				t.Errorf("set aside in %s: identity %s; want %s", done.SetAside, got, before["member/identity.json"])
			}
		}
	}
}

// TestRestoreInterrupted stops a restore before and after the new member took
// the former one's place: the next start or call does the rest.
func TestRestoreInterrupted(t *testing.T) {
	c := newTestCluster(t)
	n := c.add()
	putKeys(t, c.client(t, n), "/t/", 3)
	taken, err := operator(t, n).Take(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	c.halt(n)
	dir := n.config.Dir
	id, err := member.ReadIdentity(memberDir(dir))
	if err != nil {
		t.Fatal(err)
	}
	note := replacing{Former: id.ID, Revision: taken.Revision + 5}
	if err := writeJSONFile(filepath.Join(dir, replacingFile), note); err != nil {
		t.Fatal(err)
	}
	if replaced, err := FinishReplacing(dir); replaced || err != nil {
		t.Errorf("before the exchange: %v, %v; want nothing to be done", replaced, err)
	}
	if now, err := member.ReadIdentity(memberDir(dir)); err != nil || now != id {
		t.Errorf("afterwards it is %+v, %v; want %+v", now, err, id)
	}
	if _, err := os.Stat(filepath.Join(dir, "addresses.json")); err != nil {
		t.Errorf("the addresses of the member that was not replaced: %v", err)
	}

	// The exchange was the last that happened: the former member is where
	// snapshot.Restore builds.
	if err := writeJSONFile(filepath.Join(dir, replacingFile), note); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "snapshots", taken.Name)
	done, err := snapshot.Restore(t.Context(), file, memberDir(dir), snapshot.RestoreOptions{SetAside: filepath.Join(dir, "damaged"), Logger: c.log})
	if err == nil {
		err = os.Rename(done.SetAside, memberDir(dir)+restoringSuffix)
	}
	if err != nil {
		t.Fatal(err)
	}
	if replaced, err := FinishReplacing(dir); !replaced || err != nil {
		t.Errorf("after the exchange: %v, %v; want it finished", replaced, err)
	}
	var left []string
	for name := range tree(t, dir) {
		if strings.HasPrefix(name, "damaged/") && strings.Count(name, "/") == 1 {
			left = append(left, name[:len("damaged/addresses")])
		}
		if name == "addresses.json" || name == replacingFile || name == "member"+restoringSuffix {
			t.Errorf("%s is still there", name)
		}
	}
	if len(left) != 2 {
		t.Errorf("in damaged: %q; want the member and the addresses", left)
	}
	if floor, err := revisionFloor(dir); err != nil || floor != note.Revision+snapshot.DefaultBump {
		t.Errorf("the next restore begins after %d, %v; want %d", floor, err, note.Revision+snapshot.DefaultBump)
	}
	c.start(n)
	wantKeys(t, c.client(t, n), map[string]int{"/t/": 3})
}
