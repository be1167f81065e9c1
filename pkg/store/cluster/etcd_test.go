//go:build cgo

package cluster

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/etcdutl/v3/snapshot"
	"go.uber.org/zap"

	"github.com/cairn-os/cairn/pkg/store/storetest/etcdtest"
)

// toEtcd makes an etcd out of a snapshot, as `etcdutl snapshot restore` does,
// and runs it.
func toEtcd(t *testing.T, file string) *clientv3.Client {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "etcd")
	const peers = "http://127.0.0.1:0"
	err := snapshot.NewV3(zap.NewNop()).Restore(snapshot.RestoreConfig{
		SnapshotPath: file, Name: "default", OutputDataDir: dir, PeerURLs: []string{peers}, InitialCluster: "default=" + peers, InitialClusterToken: "restored",
	})
	if err != nil {
		t.Fatal(err)
	}
	return etcdtest.Dial(t, etcdtest.Start(t, dir, nil))
}

// TestMoveToEtcdAndBack takes a store's state to an etcd, and the etcd's back,
// by the files that `cairnctl store export` and `etcdctl snapshot save` write.
func TestMoveToEtcdAndBack(t *testing.T) {
	c := newTestCluster(t)
	n := c.add(lone)
	putKeys(t, c.client(t, n), "/ours/", 10)
	ask := operator(t, n)
	taken, err := ask.Take(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	exported, err := os.Create(filepath.Join(c.dir, "export.db"))
	if err == nil {
		err = errors.Join(ask.Download(t.Context(), taken, exported), exported.Close())
	}
	if err != nil {
		t.Fatal(err)
	}

	etcd := toEtcd(t, exported.Name())
	wantKeys(t, etcd, map[string]int{"/ours/": 10})
	putKeys(t, etcd, "/theirs/", 10)
	saved, err := etcd.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(saved)
	if err == nil {
		err = os.WriteFile(filepath.Join(c.dir, "etcd.db"), data, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}

	c.halt(n)
	done, err := Restore(t.Context(), n.config.Dir, filepath.Join(c.dir, "etcd.db"), c.log)
	if err != nil || done.Keys != 21 || done.Moved != 0 || done.LostLeases != 0 {
		t.Fatalf("import: %+v, %v; want 20 keys and kine's health key", done, err)
	}
	c.start(n)
	wantKeys(t, c.client(t, n), map[string]int{"/ours/": 10, "/theirs/": 10})
}
