package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-os/cairn/pkg/initctl"
	"github.com/cairn-os/cairn/pkg/status"
)

var rewrite = flag.Bool("update", false, "rewrite the golden files")

// pid1 is a node whose cairnd is down.
type pid1 struct{ told chan string }

func (p pid1) Status() status.Status { return example() }
func (p pid1) Start(s string) error  { return p.tell("start " + s) }
func (p pid1) Stop(s string) error   { return p.tell("stop " + s) }
func (p pid1) Restart(s string) error {
	if s == "nobody" {
		return errors.New("no such process: nobody")
	}
	return p.tell("restart " + s)
}
func (p pid1) Reboot() error           { return p.tell("reboot") }
func (p pid1) PowerOff() error         { return p.tell("poweroff") }
func (p pid1) Announce(string, string) {}

func (p pid1) tell(s string) error {
	p.told <- s
	return nil
}

func example() status.Status {
	return status.Status{
		Hostname: "till-1", UptimeS: 93.4,
		Slot:    status.Slot{Name: "a", State: status.SlotConfirmed},
		Release: status.Release{Version: "0.1.0", Kubernetes: "v1.36.4", Kernel: "6.12.57"},
		Phases: []status.Phase{
			{Name: "mounts", StartS: 2.2, DurationS: 0.038},
			{Name: "modules", StartS: 2.238, Skipped: true},
			{Name: "network", StartS: 2.3, DurationS: 3.42, Error: "eth1: no lease"},
		},
		Processes: []status.Process{
			{Name: "store", State: "ready", PID: 231, ReadyS: 6.71, RSSBytes: 48 << 20},
			{Name: "control", State: "backoff", Restarts: 3, LastExit: "killed by SIGKILL"},
		},
		Addresses: []status.Address{{Link: "eth0", Prefix: "10.0.2.15/24"}, {Link: "eth0", Prefix: "fec0::5/64"}},
		Timeline:  []status.Mark{{Name: "init started", AtS: 2.1}, {Name: "store ready", AtS: 6.71}},
	}
}

// world returns the paths of a node on which only init answers.
func world(t *testing.T) (paths, pid1) {
	t.Helper()
	p := pid1{told: make(chan string, 8)}
	return serveInit(t, t.TempDir(), p), p
}

// serveInit has h answer for init.
func serveInit(t *testing.T, dir string, h initctl.Handler) paths {
	t.Helper()
	srv, err := initctl.Listen(filepath.Join(dir, "init.sock"), h, t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { srv.Serve(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	return paths{daemon: filepath.Join(dir, "cairnd.sock"), init: filepath.Join(dir, "init.sock"), logs: dir}
}

func cairnctl(t *testing.T, p paths, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, errs strings.Builder
	code = run(t.Context(), &out, &errs, args, p)
	return out.String(), errs.String(), code
}

func TestStatus(t *testing.T) {
	p, _ := world(t)
	out, errs, code := cairnctl(t, p, "status")
	if code != exitOK || errs != "" {
		t.Fatalf("exit code %d, %q", code, errs)
	}
	golden(t, "status.txt", out)

	out, _, code = cairnctl(t, p, "status", "--output", "json")
	var got status.Status
	if err := json.Unmarshal([]byte(out), &got); err != nil || code != exitOK {
		t.Fatalf("exit code %d, %v in %s", code, err, out)
	}
	if diff := cmp.Diff(example(), got); diff != "" {
		t.Errorf("JSON (-want +got):\n%s", diff)
	}
	golden(t, "status.json", out)
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *rewrite {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", name, diff)
	}
}

func TestNodeText(t *testing.T) {
	for want, n := range map[string]*status.Node{
		"unknown: cairnd is down": nil,
		"till-1 is Ready":         {Name: "till-1", Ready: true, Reason: "KubeletReady"},
		"till-1 is not Ready: Unreachable: connection refused": {Name: "till-1", Reason: "Unreachable", Message: "connection refused"},
	} {
		if got := nodeText(n); got != want {
			t.Errorf("nodeText(%+v) = %q; want %q", n, got, want)
		}
	}
}

// TestSteer: with cairnd down, requests reach init.
func TestSteer(t *testing.T) {
	p, init := world(t)
	for _, args := range [][]string{{"restart", "store"}, {"stop", "store"}, {"start", "store"}, {"reboot"}, {"poweroff"}} {
		if _, errs, code := cairnctl(t, p, args...); code != exitOK {
			t.Fatalf("%v: exit code %d, %s", args, code, errs)
		}
		if got, want := <-init.told, strings.Join(args, " "); got != want {
			t.Errorf("init was told %q; want %q", got, want)
		}
	}
	if _, errs, code := cairnctl(t, p, "restart", "nobody"); code != exitFailed || !strings.Contains(errs, "no such process: nobody") {
		t.Errorf("restart nobody: exit code %d, %q", code, errs)
	}
}

func TestLogsWithoutDaemon(t *testing.T) {
	p, _ := world(t)
	if err := os.WriteFile(filepath.Join(p.logs, "cairnd.log"), []byte("one\ntwo\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, errs, code := cairnctl(t, p, "logs", "cairnd", "-n", "1"); code != exitOK || out != "two\n" {
		t.Errorf("logs: %d, %q, %q", code, out, errs)
	}
	if _, errs, code := cairnctl(t, p, "logs", "nobody"); code != exitFailed || !strings.Contains(errs, `no log of this process: "nobody"`) {
		t.Errorf("logs nobody: %d, %q", code, errs)
	}
}

func TestOnAWorkstation(t *testing.T) {
	dir := t.TempDir()
	p := paths{daemon: dir + "/d", init: dir + "/i", logs: dir, store: dir + "/s"}
	for _, args := range [][]string{{"status"}, {"logs", "store"}, {"restart", "store"}, {"reboot"}, {"store", "status"}, {"store", "recover"}} {
		if _, errs, code := cairnctl(t, p, args...); code != exitUnreachable || !strings.Contains(errs, "run cairnctl on the node") {
			t.Errorf("%v: exit code %d, %q", args, code, errs)
		}
	}
}

func TestUsage(t *testing.T) {
	p := paths{}
	for _, args := range [][]string{{"explode"}, {"status", "x"}, {"status", "--evil"}, {"status", "-o", "xml"}, {"logs"}, {"restart"}, {"config", "check"}, {"logs", "x", "-n", "many"}} {
		if _, errs, code := cairnctl(t, p, args...); code != exitUsage || errs == "" {
			t.Errorf("%v: exit code %d, %q; want %d", args, code, errs, exitUsage)
		}
	}
}

// TestHelp: every command has a description, an example and a place in a group.
func TestHelp(t *testing.T) {
	for _, cmd := range newRoot(paths{}).Commands() {
		if cmd.Name() == "completion" || cmd.Name() == "help" {
			continue
		}
		if cmd.Short == "" || cmd.GroupID == "" || cmd.Example == "" && !cmd.HasSubCommands() {
			t.Errorf("%s lacks help", cmd.CommandPath())
		}
	}
	out, _, code := cairnctl(t, paths{}, "--help")
	if code != exitOK || !strings.Contains(out, "Exit codes:") || !strings.Contains(out, "Steer the node:") {
		t.Errorf("--help: exit code %d\n%s", code, out)
	}
	if out, errs, code := cairnctl(t, paths{}, "completion", "bash"); code != exitOK || !strings.Contains(out, "cairnctl") {
		t.Errorf("completion: %d, %s", code, errs)
	}
}

func TestConfigCheck(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good, bad, empty := write("good.yaml", "hostname: till-1\n"), write("bad.yaml", "hostname: till-1\nhostnane: x\n"), write("empty.yaml", "#cloud-config\n")
	if out, errs, code := cairnctl(t, paths{}, "config", "check", good, empty); code != exitOK || !strings.Contains(out, good+": ok\n") {
		t.Errorf("check of good files: %d, %q, %q", code, out, errs)
	}
	_, errs, code := cairnctl(t, paths{}, "config", "check", good, bad)
	if code != exitFailed || !strings.Contains(errs, "bad.yaml:2: ") || !strings.Contains(errs, "1 of 2 files have problems") {
		t.Errorf("check of a bad file: %d, %q; want file and line", code, errs)
	}
}
