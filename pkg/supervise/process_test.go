package supervise

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/cairn-os/cairn/pkg/reaper"
	"github.com/cairn-os/cairn/pkg/status"
)

// childVar makes this test binary a supervised process instead.
const childVar = "SUPERVISE_TEST_CHILD"

func TestMain(m *testing.M) {
	if mode := os.Getenv(childVar); mode != "" {
		child(mode)
		return
	}
	os.Exit(m.Run())
}

// child is a well-behaved service; "mute" never notifies, "stubborn" ignores SIGTERM, "once FILE" fails until FILE is
// there.
func child(mode string) {
	if file, ok := strings.CutPrefix(mode, "once "); ok {
		once(file)
		return
	}
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	fmt.Println("serving in mode", mode)
	if mode != "mute" {
		if sent, err := daemon.SdNotify(false, "READY=1\nSTATUS=all well"); !sent || err != nil {
			fmt.Println("notify:", sent, err)
			os.Exit(1)
		}
	}
	<-term
	if mode == "stubborn" {
		select {}
	}
	fmt.Println("ending")
}

func once(file string) {
	if _, err := os.Stat(file); err == nil {
		return
	}
	if sent, err := daemon.SdNotify(false, "STATUS=no file yet"); !sent || err != nil {
		fmt.Println("notify:", sent, err)
	}
	os.Exit(1)
}

func service(name, mode string, after ...string) Service {
	return Service{
		Name: name, Argv: []string{"/proc/self/exe"}, Env: []string{childVar + "=" + mode}, After: after,
		Notify: true, StopGrace: 20 * time.Second,
	}
}

// world is a running supervisor.
type world struct {
	*Supervisor
	t    *testing.T
	dir  string
	stop func()

	mu      sync.Mutex
	log     []string
	changes []string
}

func run(t *testing.T, services ...Service) *world {
	t.Helper()
	w := &world{t: t, dir: t.TempDir()}
	r, err := reaper.New()
	if err != nil {
		t.Fatal(err)
	}
	w.Supervisor, err = New(Options{
		Reaper: r, LogDir: filepath.Join(w.dir, "log"), NotifyDir: filepath.Join(w.dir, "notify"),
		Env: []string{"PATH=" + os.Getenv("PATH")}, Logf: w.logf, OnChange: w.changed,
	}, services)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	reap, stopReaping := context.WithCancel(context.Background())
	var all, reaping sync.WaitGroup
	reaping.Go(func() { r.Serve(reap) })
	all.Go(func() {
		if err := w.Run(ctx); err != nil {
			t.Errorf("Run() = %v", err)
		}
	})
	w.stop = sync.OnceFunc(func() { cancel(); all.Wait(); stopReaping(); reaping.Wait() })
	t.Cleanup(w.stop)
	return w
}

func (w *world) logf(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.log = append(w.log, fmt.Sprintf(format, args...))
}

func (w *world) changed(p status.Process) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.changes = append(w.changes, p.Name+" "+p.State)
	if p.State == "starting" {
		panic("a hook's bug")
	}
}

func (w *world) text() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return strings.Join(w.log, "\n")
}

// process waits until the service fulfils the condition.
func (w *world) process(name, what string, cond func(status.Process) bool) status.Process {
	w.t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		i := slices.IndexFunc(w.Status(), func(p status.Process) bool { return p.Name == name })
		p := w.Status()[i]
		if cond(p) {
			return p
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("%s is not %s: %+v\n%s", name, what, p, w.text())
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func (w *world) ready(name string) status.Process {
	w.t.Helper()
	return w.process(name, "ready", func(p status.Process) bool { return p.State == string(Ready) })
}

func TestKilledServiceIsRestarted(t *testing.T) {
	w := run(t, service("store", "good"), service("control", "good", "store"))
	store, control := w.ready("store"), w.ready("control")
	if control.StartedS < store.ReadyS {
		t.Errorf("control started at %s, before store was ready at %s", control.StartedS, store.ReadyS)
	}
	if store.Message != "all well" || store.RSSBytes < 1<<20 {
		t.Errorf("status %+v; want message and memory", store)
	}
	if err := syscall.Kill(store.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	again := w.process("store", "ready again", func(p status.Process) bool { return p.Restarts == 1 && p.State == string(Ready) })
	if again.PID == store.PID || again.LastExit != "killed by SIGKILL" {
		t.Errorf("after the kill: %+v", again)
	}
	if p := w.ready("control"); p.PID != control.PID {
		t.Errorf("control was restarted with its dependency: pid %d, was %d", p.PID, control.PID)
	}
	if text := w.text(); !strings.Contains(text, "store ended by itself") || !strings.Contains(text, "store | serving in mode good") {
		t.Errorf("the console got no crash summary:\n%s", text)
	}
	if !w.Healthy(10 * time.Second) {
		t.Error("Healthy() = false")
	}
}

func TestStopIsInReverseOrder(t *testing.T) {
	w := run(t, service("store", "good"), service("control", "good", "store"), service("node", "good", "control"))
	w.ready("node")
	w.stop()
	var order []string
	for _, c := range w.changes {
		if name, ok := strings.CutSuffix(c, " stopped"); ok {
			order = append(order, name)
		}
	}
	if want := []string{"node", "control", "store"}; !slices.Equal(order, want) {
		t.Errorf("stopped in order %v; want %v", order, want)
	}
	for _, line := range []string{"store stopped: exit status 0", "panic in hook: a hook's bug"} {
		if !strings.Contains(w.text(), line) {
			t.Errorf("no line %q in\n%s", line, w.text())
		}
	}
	if strings.Contains(w.text(), "SIGKILL") {
		t.Errorf("something was killed:\n%s", w.text())
	}
	log, err := os.ReadFile(filepath.Join(w.dir, "log/store.log"))
	if err != nil || !strings.HasSuffix(string(log), "Z ending\n") {
		t.Errorf("log of store: %q, %v", log, err)
	}
}

func TestStubbornServiceIsKilled(t *testing.T) {
	svc := service("web", "stubborn")
	svc.StopGrace = 200 * time.Millisecond
	w := run(t, svc)
	w.ready("web")
	w.stop()
	if want := "did not end within 200ms of SIGTERM: SIGKILL"; !strings.Contains(w.text(), want) {
		t.Errorf("no line %q in\n%s", want, w.text())
	}
	if !strings.Contains(w.text(), "web stopped: killed by SIGKILL") {
		t.Errorf("not stopped:\n%s", w.text())
	}
}

func TestMuteServiceIsStartedAgain(t *testing.T) {
	svc := service("web", "mute")
	svc.ReadyTimeout = 300 * time.Millisecond
	w := run(t, svc, service("late", "good", "web"))
	w.process("web", "restarted", func(p status.Process) bool { return p.Restarts >= 1 })
	if late := w.Status()[1]; late.State != string(Waiting) {
		t.Errorf("late is %s; want it waiting", late.State)
	}
	if want := "web was not ready within 300ms"; !strings.Contains(w.text(), want) {
		t.Errorf("no line %q in\n%s", want, w.text())
	}
}

// TestOnlyTheMainProcessNotifies: the shell's child is not listened to.
func TestOnlyTheMainProcessNotifies(t *testing.T) {
	svc := service("web", "good")
	svc.Argv = []string{"sh", "-c", `"$0" & wait`, exe(t)}
	w := run(t, svc)
	deadline := time.Now().Add(20 * time.Second)
	for !strings.Contains(w.text(), "ignored") {
		if time.Now().After(deadline) {
			t.Fatalf("no line about an ignored notification:\n%s", w.text())
		}
		time.Sleep(10 * time.Millisecond)
	}
	if p := w.Status()[0]; p.State != string(Starting) {
		t.Errorf("state %s; want starting", p.State)
	}
}

func exe(t *testing.T) string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// TestLeftoversDie: what a dead main process leaves in its session is killed, unless MainOnly.
func TestLeftoversDie(t *testing.T) {
	for _, mainOnly := range []bool{false, true} {
		w := run(t, Service{Name: "web", Argv: []string{"sh", "-c", "sleep 300 & echo pid $!; exec sleep 300"}, MainOnly: mainOnly})
		p := w.process("web", "talking", func(status.Process) bool { l, _ := w.Tail("web"); return len(l) == 1 })
		tail, err := w.Tail("web")
		if err != nil {
			t.Fatal(err)
		}
		var pid int
		if _, err := fmt.Sscanf(tail[0], "pid %d", &pid); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(p.PID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		w.process("web", "restarted", func(p status.Process) bool { return p.Restarts == 1 })
		gone := func() bool { return syscall.Kill(pid, 0) != nil }
		for deadline := time.Now().Add(10 * time.Second); !mainOnly && !gone() && time.Now().Before(deadline); {
			time.Sleep(5 * time.Millisecond)
		}
		if gone() == mainOnly {
			t.Errorf("MainOnly %v: the child is gone: %v", mainOnly, gone())
		}
		if mainOnly {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Error(err)
			}
		}
		w.stop()
	}
}

func TestRequests(t *testing.T) {
	w := run(t, service("web", "good"))
	first := w.ready("web")
	if err := w.Restart("web"); err != nil {
		t.Fatal(err)
	}
	w.process("web", "another", func(p status.Process) bool { return p.State == string(Ready) && p.PID != first.PID })
	if err := w.Stop("web"); err != nil {
		t.Fatal(err)
	}
	w.process("web", "stopped", func(p status.Process) bool { return p.State == string(Stopped) })
	if err := w.Start("web"); err != nil {
		t.Fatal(err)
	}
	w.ready("web")
	if err := w.Stop("nobody"); !errors.Is(err, ErrUnknown) {
		t.Errorf("Stop(nobody) = %v; want ErrUnknown", err)
	}
}

func TestUnstartableService(t *testing.T) {
	w := run(t, Service{Name: "web", Argv: []string{t.TempDir() + "/none"}})
	p := w.process("web", "backing off", func(p status.Process) bool { return p.State == string(Backoff) })
	if !strings.Contains(p.LastExit, "no such file") {
		t.Errorf("last exit %q", p.LastExit)
	}
}

func TestNewRefuses(t *testing.T) {
	ok := []string{"true"}
	for want, services := range map[string][]Service{
		"not a plain file name":                 {{Name: "../x", Argv: ok}},
		"no command":                            {{Name: "x"}},
		"named twice":                           {{Name: "x", Argv: ok}, {Name: "x", Argv: ok}},
		`After names unknown service "y"`:       {{Name: "x", Argv: ok, After: []string{"y"}}},
		"waits for itself through [x y]":        {{Name: "x", Argv: ok, After: []string{"y"}}, {Name: "y", Argv: ok, After: []string{"x"}}},
		"oom score 2000 is not within -1000 to": {{Name: "x", Argv: ok, OOMScore: 2000}},
	} {
		_, err := New(Options{Reaper: &reaper.Reaper{}, LogDir: t.TempDir(), NotifyDir: t.TempDir(), Logf: t.Logf}, services)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("New(%+v) = %v; want %q", services, err, want)
		}
	}
}

// TestOneshot: what comes after a one-shot service waits until that has ended well, and says why it does not.
func TestOneshot(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	join := service("join", "once "+file)
	join.Oneshot = true
	w := run(t, join, service("web", "web", "join"))
	w.process("join", "tried again", func(p status.Process) bool { return p.Restarts > 0 })
	if p := w.process("web", "known", func(status.Process) bool { return true }); p.State != string(Waiting) {
		t.Errorf("web is %s; want it to wait for join", p.State)
	}
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	w.ready("web")
	done := func(p status.Process) bool { return p.State == string(Done) }
	p := w.process("join", "done", done)
	if p.PID != 0 || p.LastExit != "exit status 0" || p.Message != "" || p.ReadyS == 0 {
		t.Errorf("join is %+v; want it done, without a process and a message", p)
	}
	if text := w.text(); strings.Count(text, "join: no file yet") != 1 {
		t.Errorf("the console said:\n%s\nwant once why join does not go on", text)
	}
	if err := w.Restart("join"); err != nil {
		t.Fatal(err)
	}
	again := w.process("join", "done again", func(q status.Process) bool { return done(q) && q.Restarts > p.Restarts })
	if web := w.ready("web"); web.Restarts != 0 || again.Restarts != p.Restarts+1 {
		t.Errorf("after a restart of join: web %+v, join %+v; want one more run and web untouched", web, again)
	}
	w.stop()
	if p := w.Status()[0]; p.State != string(Stopped) {
		t.Errorf("join is %s after the shutdown; want it stopped", p.State)
	}
}
