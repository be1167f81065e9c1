package runner

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cairn-os/cairn/pkg/build/cache"
	"github.com/cairn-os/cairn/pkg/build/image"
	"github.com/cairn-os/cairn/pkg/build/lane"
	"github.com/cairn-os/cairn/pkg/build/progress"
	"github.com/cairn-os/cairn/pkg/build/releasedir"
	"github.com/cairn-os/cairn/pkg/build/signing"
	"github.com/cairn-os/cairn/pkg/machine/upgrade"
	"github.com/cairn-os/cairn/pkg/slot"
	"github.com/cairn-os/cairn/pkg/update/history"
	"github.com/cairn-os/cairn/pkg/vm"
)

// upgradePace is by how much the clock of an emulated machine that upgrades is slowed, so that its deadlines are those of a
// real one.
const upgradePace = 5

// trialLimit bounds a trial in emulation: a boot to Ready, and the settling.
const trialLimit = 12 * time.Minute

// releases is a release directory on a web server of this machine.
type releases struct {
	dir  string
	url  string // as a guest reaches it
	sent atomic.Int64
	keys *signing.Keys
}

func newReleases(t *testing.T) *releases {
	t.Helper()
	c, err := cache.Open("")
	if err != nil {
		t.Fatal(err)
	}
	r := &releases{dir: filepath.Join(t.TempDir(), "release")}
	if r.keys, err = signing.Development(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	files := http.FileServer(http.Dir(r.dir))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		files.ServeHTTP(&countingWriter{w, &r.sent}, req)
	}))
	t.Cleanup(server.Close)
	_, port, _ := strings.Cut(strings.TrimPrefix(server.URL, "http://"), ":")
	r.url = "http://10.0.2.2:" + port // QEMU's name for this machine
	return r
}

// countingWriter counts what was sent.
type countingWriter struct {
	http.ResponseWriter
	sent *atomic.Int64
}

func (w *countingWriter) Write(b []byte) (int, error) {
	w.sent.Add(int64(len(b)))
	return w.ResponseWriter.Write(b)
}

// add puts a release into the directory, as the newest of its channel.
func (r *releases) add(t *testing.T, o *image.Output) *releasedir.Report {
	t.Helper()
	ctx := progress.NewContext(t.Context(), progress.New(t.Output()))
	report, err := releasedir.Write(ctx, releasedir.Options{
		Dir: r.dir, Target: "amd64", Info: o.Release, Boot: o.Boot, Root: o.Root, RootHash: o.RootHash, RootBlocks: o.RootBlocks,
		Channel: "stable", Keys: r.keys, Now: time.Now(),
	})
	if err != nil {
		t.Fatal(err)
	}
	return report
}

func vary(t *testing.T, built *image.Output, v image.Variant) *image.Output {
	t.Helper()
	out, err := image.Vary(progress.NewContext(t.Context(), progress.New(t.Output())), built, v, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// upgrader is a machine that upgrades from a release directory.
type upgrader struct {
	*VM
	api *Cluster
}

func newUpgrader(t *testing.T, built *image.Output, r *releases, firmware vm.Firmware) *upgrader {
	t.Helper()
	pace, err := vm.NewPace(t.Context(), upgradePace)
	if err != nil {
		t.Fatal(err)
	}
	m := newTestVM(t, built, VMOptions{Pace: pace, Firmware: firmware, Config: fmt.Appendf(nil,
		"cairn: {upgrade: {source: %s}, health: {settle: 10s, deadline: %s}}\n", r.url, 5*time.Minute)})
	power(t, m)
	api, err := Access(within(t, bootLimit), m, built, m.o.Dir)
	if err != nil {
		t.Fatal(err)
	}
	u := &upgrader{m, api}
	if err := api.WaitNodeReady(within(t, bootLimit), m.Name()); err != nil {
		t.Fatal(err)
	}
	return u
}

// status is what the machine says of upgrades.
func (u *upgrader) status(ctx context.Context, t *testing.T) upgrade.Status {
	t.Helper()
	var st upgrade.Status
	out, err := u.Run(ctx, "cairnctl upgrade status --output json")
	if err == nil {
		err = json.Unmarshal([]byte(out), &st)
	}
	if err != nil {
		t.Fatalf("cairnctl upgrade status: %v\n%s", err, out)
	}
	return st
}

// says waits for a line on the console, of those after from.
func (u *upgrader) says(t *testing.T, pattern string, from int, limit time.Duration) (line Line, next int) {
	t.Helper()
	line, next, err := u.Console().Wait(within(t, limit), regexp.MustCompile(pattern), from)
	if err != nil {
		t.Fatal(err)
	}
	return line, next
}

// TestVMUpgrade brings version 2 to a machine that serves a page, by both firmwares, and goes back from it by command.
func TestVMUpgrade(t *testing.T) {
	lane.Require(t, "vm")
	requireLong(t)
	built := builtImage(t)
	next := vary(t, built, image.Variant{Version: "0.2.0"})
	r := newReleases(t)
	r.add(t, built)
	t.Logf("%s", r.add(t, next))
	for _, firmware := range []vm.Firmware{vm.BIOS, vm.UEFI} {
		t.Run(string(firmware), func(t *testing.T) { testUpgrade(t, built, r, firmware) })
	}
}

func testUpgrade(t *testing.T, built *image.Output, r *releases, firmware vm.Firmware) {
	u := newUpgrader(t, built, r, firmware)
	check(within(t, bootLimit), t, u, built, u.o.Dir)
	before, from, begin := r.sent.Load(), u.Console().Len(), time.Now()
	out, err := u.Run(within(t, trialLimit), "cairnctl upgrade")
	if err != nil {
		t.Fatalf("cairnctl upgrade: %v\n%s", err, out)
	}
	t.Logf("written and armed after %.1f s, %.1f MB sent: %s", time.Since(begin).Seconds(), float64(r.sent.Load()-before)/1e6, out)
	u.stays(t, built, "0.2.0", slot.B, from)

	from = u.Console().Len()
	if out, err := u.Run(within(t, time.Minute), "cairnctl rollback --reason 'a test'"); err != nil {
		t.Fatalf("cairnctl rollback: %v\n%s", err, out)
	}
	u.stays(t, built, built.Release.Version, slot.A, from)
	st := u.status(within(t, time.Minute), t)
	if len(st.Held) != 1 || st.Held[0].Version != "0.2.0" || st.Held[0].Reason != history.Operator {
		t.Errorf("in quarantine: %+v; want 0.2.0 for the operator's word", st.Held)
	}
	if out, err := u.Run(within(t, trialLimit), "cairnctl upgrade"); err == nil || !strings.Contains(err.Error(), "quarantine") {
		t.Errorf("cairnctl upgrade to what is in quarantine: %v\n%s", err, out)
	}
}

// stays expects the machine to restart into version, to confirm it, and to serve its page again.
func (u *upgrader) stays(t *testing.T, built *image.Output, version string, s slot.Slot, from int) {
	t.Helper()
	down, from := u.says(t, `shutting down: reboot`, from, trialLimit)
	_, from = u.says(t, `Cairn `+regexp.QuoteMeta(version)+`, node .*slot `+string(s)+` \(trial\)`, from, trialLimit)
	ready, _ := u.says(t, `node .* Ready after`, from, trialLimit)
	confirmed, _ := u.says(t, `version `+regexp.QuoteMeta(version)+` is confirmed`, from, trialLimit)
	t.Logf("%s: %.1f s without the node, confirmed %.1f s after the restart began", version,
		ready.At.Sub(down.At).Seconds(), confirmed.At.Sub(down.At).Seconds())
	check(within(t, bootLimit), t, u, built, u.o.Dir)
	st := u.status(within(t, time.Minute), t)
	if st.Running.Version != version || st.Slot != s || st.Confirmed != s || st.Trial != "" || st.Last == nil || st.Last.Verdict != history.Confirmed {
		t.Errorf("status %+v, last %+v; want %s confirmed in slot %s", st, st.Last, version, s)
	}
}
