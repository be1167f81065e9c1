package store

import (
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/cairn-os/cairn/pkg/build/image"
)

// TestRun measures briefly, and looks at the shape of what comes out: the
// figures of a busy test machine say nothing.
func TestRun(t *testing.T) {
	if testing.Short() {
		t.Skip("short: compiles the store and starts real processes")
	}
	for _, tool := range []string{"apt-get", "autoreconf", "x86_64-linux-gnu-gcc", "dpkg-source"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("cannot compile C here: %v", err)
		}
	}
	ctx := t.Context()
	b, err := image.New(ctx, image.Options{Repo: "../../.."})
	if err != nil {
		t.Fatal(err)
	}
	env, err := b.StoreEnv(ctx)
	if err != nil {
		t.Fatal(err)
	}
	programs, err := Compile(ctx, t.TempDir(), env)
	if err != nil {
		t.Fatal(err)
	}
	// Not in memory: the store's direct writes need a disk's file system.
	report, err := Run(ctx, programs, Plan{
		Data: 1e6, Clients: []int{1, 8}, Rounds: 1, Slice: 300 * time.Millisecond, Listed: 100, Lists: 1, Watchers: 10, Starts: 1, Kills: 1,
	}, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, f := range report.Figures {
		if names[f.Name] {
			t.Errorf("two figures %q", f.Name)
		}
		names[f.Name] = true
		if !(f.Cairn > 0) || !(f.Peer > 0) || f.Unit == "" {
			t.Errorf("%s: cairn %v, etcd %v %q; want figures above zero with a unit", f.Name, f.Cairn, f.Peer, f.Unit)
		}
	}
	for _, want := range []string{
		"1 node, 1 client: writes", "3 nodes, 8 clients: writes", "1 node, 8 clients: write p99", "3 nodes, 8 clients: disk written per write",
		"1 node, 8 clients: resident, peak", "1 node: list of 100 keys, p50", "1 node, 10 watchers: events delivered",
		"1 node: start to first answer, median", "1 node: on disk after the writes, all nodes", "3 nodes: leader killed to next accepted write, max",
	} {
		if !names[want] {
			t.Errorf("no figure %q", want)
		}
	}
	if !strings.HasPrefix(report.Peer, "etcd 3.6.") {
		t.Errorf("the peer is %q; want etcd 3.6", report.Peer)
	}
	for _, note := range report.Notes {
		t.Log(note)
	}
}
