package cluster

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/cairn-os/cairn/pkg/build/image"
	"github.com/cairn-os/cairn/pkg/build/lane"
	"github.com/cairn-os/cairn/pkg/nodens"
)

func TestMain(m *testing.M) {
	nodens.Child() // a machine in namespaces begins as a copy of this program
	os.Exit(m.Run())
}

// TestMachine takes a machine of each kind through all that is measured, and
// looks at the shape of what comes out: figures of a busy machine say nothing.
func TestMachine(t *testing.T) {
	lane.Require(t, "native")
	if err := nodens.Available(); err != nil {
		t.Skip(err)
	}
	built, err := image.Load(os.Getenv("CAIRN_IMAGES"))
	if err != nil {
		t.Fatal(err)
	}
	b, err := image.New(t.Context(), image.Options{Repo: "../../.."})
	if err != nil {
		t.Fatal(err)
	}
	upstream, err := b.Upstream(t.Context(), PeerInit)
	if err != nil {
		t.Fatal(err)
	}
	for i, k := range []kind{&cairn{built: built}, &vanilla{built: built, upstream: upstream}} {
		t.Run(k.name(), func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
			defer cancel()
			c, err := newCluster(ctx, k, t.TempDir(), "test", built.Tree, byte(141+i), server)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := c.end(); err != nil {
					t.Error(err)
				}
			})
			testStarts(ctx, t, c, built.HelloTag)
			testLoad(ctx, t, c, built.HelloTag)
		})
	}
}

func testStarts(ctx context.Context, t *testing.T, c *cluster, image string) {
	for _, kept := range []bool{false, true} {
		s, err := c.measureStart(ctx, image, false, kept)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("kept %v: Ready after %s, a pod runs after %s", kept, s.ready, s.pod)
		if s.ready <= 0 || s.pod <= 0 {
			t.Errorf("kept %v: %+v; want both times", kept, s)
		}
	}
}

func testLoad(ctx context.Context, t *testing.T, c *cluster, image string) {
	var l loaded
	m := c.machines[0]
	t.Cleanup(func() {
		if t.Failed() {
			logs(t, m)
		}
	})
	if err := c.anew(ctx); err != nil {
		t.Fatal(err)
	}
	api, err := m.client(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.awaitAccount(ctx, api); err != nil {
		t.Fatal(err)
	}
	if err := l.deploy(ctx, m, api, 5, image); err != nil {
		t.Fatal(err)
	}
	if l.latencies, err = m.ask(ctx, 2*time.Second); err != nil {
		t.Fatal(err)
	}
	gone, err := m.remove(ctx, api)
	if err != nil {
		t.Fatal(err)
	}
	inUse, err := m.inUse()
	if err != nil || inUse < 50<<20 {
		t.Errorf("the machine uses %d bytes, %v; want more", inUse, err)
	}
	for name, u := range l.account {
		t.Logf("%-26s %d: %6.1f MiB anonymous, %6.1f MiB PSS, %5.1f s, %6.2f MB written",
			name, u.count, mebibytes(u.anonymous), mebibytes(u.pss), u.cpu.Seconds(), megabytes(u.written))
	}
	if n := l.account[shims].count; n != 5 {
		t.Errorf("%d shims; want 5", n)
	}
	if n := l.account[pauses].count; n != 5 {
		t.Errorf("%d pauses; want 5", n)
	}
	want := map[string][]string{
		"cairn":   {"init", "cairnd", "store", "control", "node", "containerd"},
		"vanilla": {"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "containerd"},
	}[c.kind.name()]
	for _, name := range want {
		if u := l.account[name]; u.count != 1 || u.anonymous == 0 || u.pss == 0 {
			t.Errorf("%s uses %+v; want one process with memory", name, u)
		}
	}
	for kind, name := range requestNames() {
		if len(l.latencies[kind]) == 0 {
			t.Errorf("no %s was answered", name)
		}
	}
	t.Logf("started in %s, gone in %s, %.0f MiB in use", l.start, gone, mebibytes(inUse))
}

// logs shows what the programs of m said last.
func logs(t *testing.T, m *machine) {
	if m.power == nil {
		return
	}
	root := filepath.Join("/proc", strconv.Itoa(m.power.pid), "root")
	files, _ := filepath.Glob(filepath.Join(root, "run/*/log/*.log"))
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err == nil {
			t.Logf("%s:\n%s", filepath.Base(file), text[max(0, len(text)-3000):])
		}
	}
}
