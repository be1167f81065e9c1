package machine

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-os/cairn/pkg/initctl"
	"github.com/cairn-os/cairn/pkg/machine/adminapi"
	"github.com/cairn-os/cairn/pkg/machine/logfile"
	"github.com/cairn-os/cairn/pkg/membership"
	"github.com/cairn-os/cairn/pkg/status"
)

// pid1 answers init's control socket.
type pid1 struct {
	mu   sync.Mutex
	told []string
}

func (p *pid1) tell(s string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.told = append(p.told, s)
	return nil
}

func (p *pid1) Status() status.Status {
	return status.Status{Hostname: "till-1", Role: "witness", Server: "10.0.0.2:6443", UptimeS: 80, Slot: status.Slot{Name: "a", State: status.SlotConfirmed},
		Phases:    []status.Phase{{Name: "data", StartS: 2, DurationS: 0.5}},
		Processes: []status.Process{{Name: "store", State: "ready", PID: 12, ReadyS: 4}, {Name: "cairnd", State: "ready", ReadyS: 77}, {Name: "join", State: "done", ReadyS: 2.7}},
		Timeline:  []status.Mark{{Name: "init started", AtS: 1.2}, {Name: readyMark, AtS: 71.3}, {Name: "cairnd ready", AtS: 3}},
	}
}

func (p *pid1) Start(s string) error { return p.tell("start " + s) }
func (p *pid1) Stop(s string) error  { return p.tell("stop " + s) }
func (p *pid1) Restart(s string) error {
	if s != "store" {
		return errors.New("no such process: " + s)
	}
	return p.tell("restart " + s)
}
func (p *pid1) Reboot() error        { return p.tell("reboot") }
func (p *pid1) PowerOff() error      { return p.tell("poweroff") }
func (p *pid1) Announce(s, m string) { p.tell("announce " + s) }

// start runs a Machine beside a pid1 and returns its client.
func start(t *testing.T, change ...func(*Options)) (*adminapi.Client, *pid1, string) {
	t.Helper()
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	t.Cleanup(func() { cancel(); wg.Wait() })

	p := &pid1{}
	srv, err := initctl.Listen(filepath.Join(dir, "init.sock"), p, t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	wg.Go(func() { srv.Serve(ctx) })

	notify, err := net.ListenPacket("unixgram", filepath.Join(dir, "notify.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer notify.Close()
	t.Setenv("NOTIFY_SOCKET", notify.LocalAddr().String())
	opt := Options{
		Node: "till-1", Kubeconfig: filepath.Join(dir, "none"), Socket: filepath.Join(dir, "cairnd.sock"),
		InitSocket: filepath.Join(dir, "init.sock"), LogDir: dir, Log: slog.New(slog.DiscardHandler),
	}
	for _, f := range change {
		f(&opt)
	}
	m, err := New(opt)
	if err != nil {
		t.Fatal(err)
	}
	wg.Go(func() {
		if err := m.Run(ctx); err != nil {
			t.Errorf("Run() = %v", err)
		}
	})
	buf := make([]byte, 64)
	if err := notify.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if n, _, err := notify.ReadFrom(buf); err != nil || string(buf[:n]) != "READY=1" {
		t.Fatalf("notified %q, %v; want READY=1", buf[:n], err)
	}
	return adminapi.NewClient(filepath.Join(dir, "cairnd.sock")), p, dir
}

func TestStatus(t *testing.T) {
	c, _, dir := start(t)
	st, err := c.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if st.Hostname != "till-1" || st.Slot.Name != "a" || len(st.Processes) != 3 {
		t.Errorf("init's part is missing: %+v", st)
	}
	if st.Node == nil || st.Node.Name != "till-1" || st.Node.Ready || st.Node.Reason != "NoKubeconfig" {
		t.Errorf("node %+v; want it not Ready without kubeconfig", st.Node)
	}
	want := []status.Mark{{Name: "init started", AtS: 1.2}, {Name: "phases done", AtS: 2.5}, {Name: "join done", AtS: 2.7}, {Name: "cairnd ready", AtS: 3}, {Name: "store ready", AtS: 4}, {Name: readyMark, AtS: 71.3}}
	if diff := cmp.Diff(want, st.Timeline); diff != "" {
		t.Errorf("timeline (-want +got):\n%s", diff)
	}
	if fi, err := os.Stat(filepath.Join(dir, "cairnd.sock")); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("socket %v, %v; want mode 0600", fi, err)
	}
}

// TestWitness: a machine that is no Kubernetes node has none to tell about.
func TestWitness(t *testing.T) {
	c, _, _ := start(t, func(o *Options) { o.Kubeconfig = "" })
	st, err := c.Status(t.Context())
	if err != nil || st.Node != nil || st.Role != "witness" || st.Server != "10.0.0.2:6443" {
		t.Errorf("status %+v, %v; want the role and no node", st, err)
	}
}

func TestPodNetworks(t *testing.T) {
	path := filepath.Join(t.TempDir(), "membership.json")
	m := &Machine{opt: Options{Membership: path, Log: slog.New(slog.DiscardHandler)}}
	if got := m.podNetworks(); len(got) != 1 || got[0].String() != "10.42.0.0/16" {
		t.Errorf("before joining: %v; want the default", got)
	}
	own := membership.Membership{Role: membership.Agent, Node: "till-1", Servers: []string{"10.0.0.2:6443"}, Settings: membership.DefaultSettings()}
	own.Settings.PodCIDRs = []netip.Prefix{netip.MustParsePrefix("10.64.0.0/16"), netip.MustParsePrefix("fd00::/56")}
	if err := own.Save(path); err != nil {
		t.Fatal(err)
	}
	if got := m.podNetworks(); len(got) != 2 || got[1].String() != "fd00::/56" {
		t.Errorf("in a cluster: %v; want its pods' networks", got)
	}
}

func TestRequests(t *testing.T) {
	c, p, _ := start(t)
	for _, req := range []initctl.Request{
		{Verb: initctl.VerbRestart, Process: "store"}, {Verb: initctl.VerbStop, Process: "x y/z"}, {Verb: initctl.VerbReboot},
	} {
		if err := c.Do(t.Context(), req); err != nil {
			t.Errorf("Do(%v) = %v", req, err)
		}
	}
	if diff := cmp.Diff([]string{"restart store", "stop x y/z", "reboot"}, p.told); diff != "" {
		t.Errorf("init was told (-want +got):\n%s", diff)
	}
	var remote *adminapi.RemoteError
	err := c.Do(t.Context(), initctl.Request{Verb: initctl.VerbRestart, Process: "nobody"})
	if !errors.As(err, &remote) || remote.Code != http.StatusBadRequest || !strings.Contains(remote.Text, "no such process: nobody") {
		t.Errorf("Do(restart nobody) = %v; want init's words", err)
	}
	err = c.Do(t.Context(), initctl.Request{Verb: "explode"})
	if !errors.As(err, &remote) || remote.Code != http.StatusNotFound {
		t.Errorf("Do(explode) = %v; want not found", err)
	}
}

func TestLogs(t *testing.T) {
	c, _, dir := start(t)
	path := filepath.Join(dir, "store.log")
	if err := os.WriteFile(path, []byte("one\ntwo\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	if err := c.Logs(t.Context(), &out, "store", logfile.Options{Lines: 1}); err != nil || out.String() != "two\n" {
		t.Errorf("Logs() = %q, %v", out.String(), err)
	}
	var remote *adminapi.RemoteError
	for _, name := range []string{"nobody", "../init", ".."} {
		if err := c.Logs(t.Context(), &out, name, logfile.Options{}); !errors.As(err, &remote) || remote.Code != http.StatusNotFound {
			t.Errorf("Logs(%q) = %v; want not found", name, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	w := writer(func(b []byte) (int, error) {
		if strings.Contains(string(b), "added") {
			cancel()
		}
		return len(b), nil
	})
	time.AfterFunc(100*time.Millisecond, func() { os.WriteFile(path, []byte("one\ntwo\nadded\n"), 0o600) })
	done := make(chan error, 1)
	go func() { done <- c.Logs(ctx, w, "store", logfile.Options{Follow: true}) }()
	select {
	case err := <-done:
		if err != nil {
			t.Errorf("followed Logs() = %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Error("the added line did not come")
		cancel()
	}
}

type writer func([]byte) (int, error)

func (w writer) Write(b []byte) (int, error) { return w(b) }

// TestInitStarted: whatever PID 1 is here, it was started before this test and after the machine.
func TestInitStarted(t *testing.T) {
	now := time.Now()
	up, err := kernelUptime()
	if err != nil {
		t.Fatal(err)
	}
	began, err := initStarted(now)
	if err != nil || !began.Before(now) || began.Before(now.Add(-up-time.Second)) {
		t.Errorf("initStarted() = %v, %v; want it between %v and %v", began, err, now.Add(-up), now)
	}
}

func TestPlain(t *testing.T) {
	if got := plain("a\nb\x1b[2J" + strings.Repeat("é", 300)); strings.ContainsAny(got, "\n\x1b") || len(got) > 410 {
		t.Errorf("plain() = %q", got)
	}
}
