package store

import (
	"net"
	"net/url"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
)

// TestRecording uses an etcd through the tap and compares what was noted.
func TestRecording(t *testing.T) {
	dir := t.TempDir()
	cfg := embed.NewConfig()
	cfg.Dir, cfg.LogLevel = filepath.Join(dir, "etcd"), "fatal"
	cfg.ListenClientUrls = []url.URL{{Scheme: "unix", Path: filepath.Join(dir, "s")}}
	cfg.ListenPeerUrls = []url.URL{{Scheme: "unix", Path: filepath.Join(dir, "p")}}
	server, err := embed.StartEtcd(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	l, err := net.Listen("unix", filepath.Join(dir, "tap"))
	if err != nil {
		t.Fatal(err)
	}
	r := newRecorder()
	tap, err := startTap(l, "unix://"+filepath.Join(dir, "s"), r.observe)
	if err != nil {
		t.Fatal(err)
	}
	c, err := connect(filepath.Join(dir, "tap"))
	if err != nil {
		t.Fatal(err)
	}
	live := useAsApiserver(t, c)
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if err := tap.close(); err != nil {
		t.Error(err)
	}
	got, err := r.finish(live.Kvs)
	if err != nil {
		t.Fatal(err)
	}
	pod := func(value string) []Object { return []Object{{Key: "/registry/pods/default/a", Value: []byte(value)}} }
	want := &Recording{Resources: []Resource{
		{Name: "events", Live: 1, Creates: 1, Leased: 1, KeptBytes: 1, CreatedBytes: 1,
			Kept: []Object{{Key: "/registry/events/e", Value: []byte("e")}}, Created: []Object{{Key: "/registry/events/e", Value: []byte("e")}}},
		{Name: "pods", Live: 1, Creates: 1, Updates: 1, Gets: 1, Lists: 2, Counts: 1, Watches: 1, KeptBytes: 5, CreatedBytes: 3, UpdatedBytes: 5,
			Kept: pod("later"), Created: pod("new"), Updated: pod("later")},
		{Name: "secrets", Creates: 1, Deletes: 1, CreatedBytes: 36,
			Created: []Object{{Key: "/registry/secrets/s", Value: []byte("k8s:enc:secretbox:v1:key1:"), Secret: 10}}},
	}}
	if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("recording (-want +got):\n%s", diff)
	}
	if n := tap.connections.Load(); n != 1 {
		t.Errorf("%d connections; want 1", n)
	}
	data, err := got.encode()
	if err != nil {
		t.Fatal(err)
	}
	again, err := decodeRecording(data)
	if diff := cmp.Diff(got, again, cmpopts.EquateEmpty()); err != nil || diff != "" {
		t.Errorf("encoded and decoded: %v\n%s", err, diff)
	}
}

// useAsApiserver sends the requests of an apiserver and returns what is live.
func useAsApiserver(t *testing.T, c *clientv3.Client) *clientv3.GetResponse {
	t.Helper()
	ctx := t.Context()
	commit := func(key string, revision int64, op clientv3.Op) int64 {
		t.Helper()
		resp, err := c.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(key), "=", revision)).Then(op).Else(clientv3.OpGet(key)).Commit()
		if err != nil {
			t.Fatal(err)
		}
		return resp.Header.Revision
	}
	put := func(key, value string, revision int64, o ...clientv3.OpOption) int64 {
		t.Helper()
		return commit(key, revision, clientv3.OpPut(key, value, o...))
	}
	watch := c.Watch(ctx, "/registry/pods/", watchOptions(0)...)
	a := put("/registry/pods/default/a", "new", 0)
	if w := <-watch; w.Err() != nil || len(w.Events) != 1 {
		t.Errorf("watch through the tap: %v, %v; want an event", w.Events, w.Err())
	}
	put("/registry/pods/default/a", "later", a)
	put("/registry/pods/default/a", "too late", a) // fails: not noted
	s := put("/registry/secrets/s", "k8s:enc:secretbox:v1:key1:0123456789", 0)
	commit("/registry/secrets/s", s, clientv3.OpDelete("/registry/secrets/s"))
	lease, err := c.Grant(ctx, 60)
	if err != nil {
		t.Fatal(err)
	}
	put("/registry/events/e", "e", 0, clientv3.WithLease(lease.ID))
	for _, o := range [][]clientv3.OpOption{nil, {clientv3.WithPrefix()}, {clientv3.WithPrefix(), clientv3.WithLimit(1)}, {clientv3.WithPrefix(), clientv3.WithCountOnly()}} {
		key := "/registry/pods/"
		if o == nil {
			key += "default/a"
		}
		if _, err := c.Get(ctx, key, o...); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.Get(ctx, "compact_rev_key"); err != nil {
		t.Fatal(err)
	}
	live, err := c.Get(ctx, registry, clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	return live
}

func TestResourceOf(t *testing.T) {
	for key, want := range map[string]string{
		"/registry/pods/default/a":                                  "pods",
		"/registry/services/specs/default/kubernetes":               "services/specs",
		"/registry/apiregistration.k8s.io/apiservices/v1.":          "apiregistration.k8s.io/apiservices",
		"/registry/ranges/serviceips":                               "ranges",
		"/registry/pods/":                                           "pods",
		"/registry/apiextensions.k8s.io/customresourcedefinitions/": "apiextensions.k8s.io/customresourcedefinitions",
	} {
		if got, ok := resourceOf(key); got != want || !ok {
			t.Errorf("resourceOf(%s) = %q, %v; want %q", key, got, ok, want)
		}
	}
	for _, key := range []string{"compact_rev_key", "/registry/health"} {
		if got, ok := resourceOf(key); ok {
			t.Errorf("resourceOf(%s) = %q; want none", key, got)
		}
	}
}

func TestRemove(t *testing.T) {
	r := Recording{Resources: []Resource{{Kept: []Object{{Value: []byte("on machine-7 and machine-7, kernel 6.1-x")}}}}}
	if err := r.remove([]string{"machine-7", "6.1-x"}); err != nil {
		t.Fatal(err)
	}
	got := string(r.Resources[0].Kept[0].Value)
	if len(got) != 40 || got[:3] != "on " || got[12:17] != " and " || got[3:12] == "machine-7" || got[35:] == "6.1-x" {
		t.Errorf("%q: want the traces replaced and nothing else", got)
	}
}

// TestProcess looks at a process that has said something and written 400 KiB.
func TestProcess(t *testing.T) {
	// Not to a file system in memory, which sends nothing to a disk.
	script := "dd if=/dev/zero of=$DIR/f bs=4096 count=100 conv=fsync 2>/dev/null; echo said; exec sleep 60"
	p, err := startProcess(t.Context(), []string{"sh", "-c", script}, []string{"DIR=" + t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.kill() })
	for deadline := time.Now().Add(20 * time.Second); p.log.String() != "said\n" && time.Now().Before(deadline); {
		time.Sleep(10 * time.Millisecond)
	}
	if p.failure() != nil || p.log.String() != "said\n" {
		t.Errorf("%v, log %q; want it running", p.failure(), p.log)
	}
	if m, err := p.memory(); err != nil || m.resident < 16<<10 || m.anonymous > m.resident {
		t.Errorf("memory = %+v, %v; want some", m, err)
	}
	if d, err := p.cpu(); err != nil || d > 10*time.Second {
		t.Errorf("cpu = %v, %v; want little", d, err)
	}
	if _, err := p.written(); err != nil { // dd is another process
		t.Error(err)
	}
	if err := p.stop(t.Context()); err != nil || p.failure() == nil {
		t.Errorf("stop: %v, failure %v; want it ended", err, p.failure())
	}
}
