//go:build cgo

package snapshot

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/k3s-io/kine/pkg/server"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/etcdutl/v3/snapshot"
	"go.uber.org/zap"

	"github.com/cairn-os/cairn/pkg/store/storetest/etcdtest"
)

// startEtcd runs an etcd on dir until the test ends.
func startEtcd(t *testing.T, dir string) *clientv3.Client {
	t.Helper()
	return etcdtest.Dial(t, etcdtest.Start(t, dir, nil))
}

// etcdutl does what `etcdutl snapshot restore` does, its integrity check
// included.
func etcdutl(t *testing.T, path string, bump uint64) (dir string) {
	t.Helper()
	t.Setenv("ETCD_VERIFY", "all")
	status, err := snapshot.NewV3(zap.NewNop()).Status(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("etcdutl snapshot status: %+v", status)
	dir = filepath.Join(t.TempDir(), "etcd")
	err = snapshot.NewV3(zap.NewNop()).Restore(snapshot.RestoreConfig{
		SnapshotPath: path, Name: "default", OutputDataDir: dir, PeerURLs: []string{"http://127.0.0.1:0"},
		InitialCluster: "default=http://127.0.0.1:0", InitialClusterToken: "restored",
		RevisionBump: bump, MarkCompacted: bump > 0,
	})
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// ofEtcd lists all keys of an etcd in the order of revisions, with leases as
// seconds to live, and the current revision.
func ofEtcd(t *testing.T, c *clientv3.Client) ([]string, int64) {
	t.Helper()
	resp, err := c.Get(t.Context(), "\x00", clientv3.WithFromKey(), clientv3.WithSort(clientv3.SortByModRevision, clientv3.SortAscend))
	if err != nil {
		t.Fatal(err)
	}
	var all []*server.KeyValue
	for _, kv := range resp.Kvs {
		row := &server.KeyValue{
			Key: string(kv.Key), Value: kv.Value, CreateRevision: kv.CreateRevision, ModRevision: kv.ModRevision, Version: kv.Version,
		}
		if kv.Lease != 0 {
			lease, err := c.TimeToLive(t.Context(), clientv3.LeaseID(kv.Lease))
			if err != nil {
				t.Fatal(err)
			}
			row.Lease = lease.GrantedTTL
		}
		all = append(all, row)
	}
	return describe(all), resp.Header.Revision
}

// save does what `etcdctl snapshot save` does.
func save(t *testing.T, c *clientv3.Client) (path string) {
	t.Helper()
	r, err := c.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	path = filepath.Join(t.TempDir(), "etcd.db")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := io.Copy(f, r); err != nil {
		t.Fatal(err)
	}
	return path
}

// restored restores a snapshot and runs the store that comes of it.
func restored(t *testing.T, path string) (*running, Restored) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "member")
	done, err := Restore(t.Context(), path, dir, RestoreOptions{Logger: quiet(t), Bump: 1000})
	if err != nil {
		t.Fatal(err)
	}
	return start(t, dir), done
}

// TestToEtcd moves a store of ours to an etcd and back.
func TestToEtcd(t *testing.T) {
	ctx := t.Context()
	from := start(t, filepath.Join(t.TempDir(), "member"))
	from.use(t, "/registry/a", 300)
	path := filepath.Join(t.TempDir(), "s.db")
	if _, err := Write(ctx, path, from); err != nil {
		t.Fatal(err)
	}
	want, rev := from.content(t)
	c := startEtcd(t, etcdutl(t, path, 0))
	got, at := ofEtcd(t, c)
	if diff := cmp.Diff(want, got); diff != "" || at != rev {
		t.Errorf("etcd at %d; want %d: %s", at, rev, diff)
	}
	if _, err := c.Get(ctx, "/", clientv3.WithRev(rev-1)); err == nil || !strings.Contains(err.Error(), "compacted") {
		t.Errorf("Get before the snapshot's revision: %v; want that it is compacted", err)
	}
	resp, err := c.Put(ctx, "/registry/a/0000\x00\xff", "x", clientv3.WithPrevKV())
	if err != nil || resp.Header.Revision != rev+1 || resp.PrevKv == nil {
		t.Errorf("Put = %+v, %v; want revision %d", resp, err, rev+1)
	}
	if _, err := c.Compact(ctx, rev+1, clientv3.WithCompactPhysical()); err != nil {
		t.Error(err)
	}

	back, _ := restored(t, save(t, c))
	want, _ = ofEtcd(t, c)
	got, _ = back.content(t)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("back from etcd: %s", diff)
	}
}

// TestFromEtcd moves an etcd with a history to a store of ours.
func TestFromEtcd(t *testing.T) {
	ctx := t.Context()
	c := startEtcd(t, t.TempDir())
	lease := func(ttl int64) clientv3.OpOption {
		t.Helper()
		l, err := c.Grant(ctx, ttl)
		if err != nil {
			t.Fatal(err)
		}
		return clientv3.WithLease(l.ID)
	}
	hour, day := lease(3600), lease(86400)
	do := func(ops ...clientv3.Op) {
		t.Helper()
		if _, err := c.Txn(ctx).Then(ops...).Commit(); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 300 {
		key := fmt.Sprintf("/registry/%03d", i)
		do(clientv3.OpPut(key, strings.Repeat("v", i*i%7000)))
		switch i % 6 {
		case 1:
			do(clientv3.OpPut(key, "second"))
			do(clientv3.OpPut(key, "third", hour))
		case 2:
			do(clientv3.OpDelete(key))
		case 3:
			do(clientv3.OpDelete(key))
			do(clientv3.OpPut(key, "again", day))
		}
	}
	if _, err := c.Compact(ctx, 200, clientv3.WithCompactPhysical()); err != nil {
		t.Fatal(err)
	}
	do(clientv3.OpDelete("/registry/004"), clientv3.OpPut("not of the apiserver", "x")) // Its revision is its own.
	do(clientv3.OpDelete("/registry/005"))
	want, rev := ofEtcd(t, c)
	path := save(t, c)
	info, err := Verify(path)
	if err != nil || info.Revision != rev || info.Keys != int64(len(want)) || info.LostLeases != 0 {
		t.Errorf("Verify = %+v, %v; want %d keys at %d", info, err, len(want), rev)
	}
	to, done := restored(t, path)
	got, at := to.content(t)
	if diff := cmp.Diff(want, got); diff != "" || at != rev+1000 || done.Loaded.Moved != 0 {
		t.Errorf("at %d, %+v: %s", at, done, diff)
	}

	// Keys of one transaction, a store that etcdutl restored with a bump.
	do(clientv3.OpPut("/b", "1"), clientv3.OpPut("/a", "1"))
	want, rev = ofEtcd(t, c)
	bumped := startEtcd(t, etcdutl(t, save(t, c), 5000))
	if again, at := ofEtcd(t, bumped); at != rev+5000 || cmp.Diff(want, again) != "" {
		t.Fatalf("etcd restored at %d; want %d", at, rev+5000)
	}
	to, done = restored(t, save(t, bumped))
	if done.Loaded.Moved != 1 || done.Loaded.Revision != rev+6000 || done.Loaded.Keys != int64(len(want)) {
		t.Errorf("restored %+v; want one key moved, %d in all, revision %d", done, len(want), rev+6000)
	}
	_, b, err := to.Get(ctx, "/b", 0, false)
	if err != nil || b.ModRevision != rev {
		t.Errorf("/b: %+v, %v; want revision %d", b, err, rev)
	}
	_, a, err := to.Get(ctx, "/a", 0, false)
	if err != nil || a.ModRevision != rev+5001 || a.CreateRevision != rev {
		t.Errorf("/a: %+v, %v; want revision %d", a, err, rev+5001)
	}
}

// TestLostLease keeps a key whose lease the file does not know.
func TestLostLease(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.db")
	source := sample(20)
	for _, kv := range source.rows {
		kv.Lease = 0
	}
	source.rows[3].Lease = 7
	if _, err := Write(t.Context(), path, source); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	// The lease bucket loses its only key: the leaf's count becomes 0.
	key, _, err := marshalLease(7)
	if err != nil {
		t.Fatal(err)
	}
	data = data[:len(data)-32]
	changed := 0
	for at := firstPage * pageSize; at < len(data); at += pageSize {
		if h := parseHeader(data[at:]); h.flags == leafPage && h.count == 1 && bytes.HasPrefix(data[at+headerSize+elementSize:], key) {
			data[at+10] = 0
			changed++
		}
	}
	if changed != 1 {
		t.Fatalf("%d leaves with the lease; want 1", changed)
	}
	if err := os.WriteFile(path, signed(data), 0o600); err != nil {
		t.Fatal(err)
	}
	info, err := Verify(path)
	if err != nil || info.LostLeases != 1 {
		t.Errorf("Verify = %+v, %v; want one lost lease", info, err)
	}
	if got := rows(t, path)[3].Lease; got != 0 {
		t.Errorf("lease %d; want none, for ever", got)
	}
}

// peak returns by how much the heap in use exceeds at most, while f runs, what
// it was before.
func peak(t *testing.T, f func()) int64 {
	t.Helper()
	runtime.GC()
	read := func() int64 {
		sample := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
		metrics.Read(sample)
		return int64(sample[0].Value.Uint64())
	}
	before, most := read(), int64(0)
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for ticker := time.NewTicker(5 * time.Millisecond); ; {
			select {
			case <-done:
				ticker.Stop()
				return
			case <-ticker.C:
				most = max(most, read()-before)
			}
		}
	}()
	f()
	close(done)
	<-ended
	return most
}

func sizeOf(t *testing.T, dir string) (size int64) {
	t.Helper()
	for _, name := range names(t, dir) {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		size += info.Size()
	}
	return size
}

// TestLarge prints what 10,000 keys, 25 MB, cost.
func TestLarge(t *testing.T) {
	if testing.Short() {
		t.Skip("short")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	source := sample(0)
	value := make([]byte, 2500)
	for i := range 10_000 {
		for j := range value {
			value[j] = byte(i*j>>7) ^ byte(j)
		}
		source.revision++
		source.rows = append(source.rows, &server.KeyValue{
			Key: fmt.Sprintf("/registry/pods/namespace-%d/pod-%d", i%50, i), Value: bytes.Clone(value),
			CreateRevision: source.revision, ModRevision: source.revision, Version: 1,
		})
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "in.db")
	if _, err := Write(ctx, path, source); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	done, err := Restore(ctx, path, filepath.Join(dir, "member"), RestoreOptions{Logger: quiet(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("restored %d keys, %.1f MB in %v; the member has %.1f MB",
		done.Loaded.Keys, float64(done.Snapshot.Size)/1e6, time.Since(began).Round(time.Millisecond), float64(sizeOf(t, filepath.Join(dir, "member")))/1e6)
	b := start(t, filepath.Join(dir, "member"))
	began = time.Now()
	var info Info
	defer debug.SetGCPercent(debug.SetGCPercent(25)) // What is held counts, not what waits to be collected.
	grown := peak(t, func() {
		if info, err = Write(ctx, filepath.Join(dir, "out.db"), b); err != nil {
			t.Error(err)
		}
	})
	t.Logf("written in %v, %.2f times the values' bytes, Go heap grew by at most %.1f MB",
		time.Since(began).Round(time.Millisecond), float64(info.Size)/25e6, float64(grown)/1e6)
	if info.Keys != 10_000 || grown > 24<<20 {
		t.Errorf("%d keys, heap grew by %d bytes; want 10000 and less than the values' 25 MB", info.Keys, grown)
	}
	if info.Size > 29<<20 {
		t.Errorf("%d bytes for 25 MB of values", info.Size)
	}
	began = time.Now()
	if _, err := Verify(info.Path); err != nil {
		t.Error(err)
	}
	t.Logf("verified in %v", time.Since(began).Round(time.Millisecond))
}
