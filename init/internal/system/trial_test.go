package system

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cairn-os/cairn/init/internal/emergency"
	"github.com/cairn-os/cairn/init/internal/trial"
	"github.com/cairn-os/cairn/pkg/bootloader"
	"github.com/cairn-os/cairn/pkg/bootloader/grubenv"
	"github.com/cairn-os/cairn/pkg/bootloader/sysfile"
	"github.com/cairn-os/cairn/pkg/power"
	"github.com/cairn-os/cairn/pkg/reaper"
	"github.com/cairn-os/cairn/pkg/sequence"
	"github.com/cairn-os/cairn/pkg/slot"
	"github.com/cairn-os/cairn/pkg/status"
	"github.com/cairn-os/cairn/pkg/supervise"
	"github.com/google/go-cmp/cmp"
)

// trialNode is a machine whose slot b is started for the first time of three, or as state says.
type trialNode struct {
	*machine
	console strings.Builder
	backend *grubenv.Store
	booting context.Context
}

func newTrialNode(t *testing.T, state slot.State, running slot.Slot) *trialNode {
	t.Helper()
	dir := t.TempDir()
	data, err := state.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "cairn"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, sysfile.State2), data, 0o644); err != nil {
		t.Fatal(err)
	}
	n := &trialNode{backend: grubenv.New(sysfile.Dir{Path: dir})}
	begin := time.Now()
	n.machine = &machine{
		opt: Options{Since: func() time.Duration { return time.Since(begin) + 20*time.Second }},
		log: log.New(&n.console, "", 0), requests: make(chan power.Action, 4), slot: status.Slot{Name: string(running), State: status.SlotUnknown},
	}
	n.booting, n.abort = context.WithCancelCause(t.Context())
	n.beginTrial(func(use func(bootloader.Backend) error) error { return use(n.backend) }, running)
	return n
}

func (n *trialNode) report(t *testing.T) string {
	t.Helper()
	r, err := n.backend.Report()
	if err != nil {
		return err.Error()
	}
	return fmt.Sprintf("%s|%s|%s", r.Stage, r.Phase, r.Error)
}

// on is the state in which the selector starts slot b for the first time of three.
func on(t *testing.T) slot.State {
	t.Helper()
	armed, err := slot.New(slot.A).Arm(slot.B, 3)
	if err != nil {
		t.Fatal(err)
	}
	_, s, err := armed.Attempt()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSlotStates(t *testing.T) {
	for name, tt := range map[string]struct {
		state   slot.State
		running slot.Slot
		want    status.SlotState
		trial   *status.Trial
	}{
		"confirmed":                 {slot.New(slot.A), slot.A, status.SlotConfirmed, nil},
		"on trial":                  {on(t), slot.B, status.SlotTrial, &status.Trial{TriesLeft: 2, DeadlineS: 600}},
		"the trial was refused":     {on(t), slot.A, status.SlotConfirmed, nil},
		"neither, as a last resort": {slot.New(slot.A), slot.B, status.SlotUnknown, nil},
	} {
		synctest.Test(t, func(t *testing.T) {
			n := newTrialNode(t, tt.state, tt.running)
			defer n.stopDeadline()
			got := handler{n.machine}.Status()
			if got.Slot.State != tt.want || cmp.Diff(tt.trial, got.Trial) != "" {
				t.Errorf("%s: status %v, %+v; want %v, %+v", name, got.Slot, got.Trial, tt.want, tt.trial)
			}
			if got, want := n.report(t), "system||"; tt.trial != nil && got != want {
				t.Errorf("%s: report %q; want %q", name, got, want)
			}
		})
	}
	n := &trialNode{machine: &machine{log: log.New(&strings.Builder{}, "", 0), slot: status.Slot{State: status.SlotUnknown}}}
	n.beginTrial(trial.At(t.TempDir()), slot.A)
	if n.slot.State != status.SlotUnknown || n.trial != nil {
		t.Errorf("without a state the slot is %v", n.slot)
	}
}

// TestDeadline: what nobody confirms is over at the deadline, the later one of the configuration too.
func TestDeadline(t *testing.T) {
	for name, deadline := range map[string]time.Duration{"default": 0, "configured": 15 * time.Minute, "passed already": 10 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			n := newTrialNode(t, on(t), slot.B)
			want := 10 * time.Minute
			if deadline != 0 {
				n.setDeadline(deadline)
				want = max(deadline, 20*time.Second) // when this node's life began
			}
			action := n.wait()
			if at := n.opt.Since(); action != power.Reboot || at != want || !n.overdueNow() {
				t.Errorf("%s: %v at %v; want a reboot at %v", name, action, at, want)
			}
			if cause := context.Cause(n.booting); !errors.Is(cause, errOverdue) {
				t.Errorf("%s: a boot that is not through goes on: %v", name, cause)
			}
			if !strings.Contains(n.console.String(), "the deadline of the trial has passed") {
				t.Errorf("%s: the console says %q", name, n.console.String())
			}
			n.endTrial(t, slot.A)
		})
	}
}

// endTrial runs the step of the shutdown that rolls back, and holds the slot that boots next.
func (n *trialNode) endTrial(t *testing.T, next slot.Slot) {
	t.Helper()
	for _, p := range n.shutdownPhases(power.Reboot) {
		if p.Name == "roll back" && p.RunWhen() {
			if err := p.Run(t.Context()); err != nil {
				t.Error(err)
			}
		}
	}
	state, err := n.backend.Read()
	if err != nil {
		t.Fatal(err)
	}
	if boots, _, err := state.Attempt(); err != nil || boots != next {
		t.Errorf("%s boots next of %s, %v; want %s", boots, state, err, next)
	}
}

// TestConfirm: only what the disk says ends the deadline, and that ends it also when nobody told init.
func TestConfirm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newTrialNode(t, on(t), slot.B)
		h := handler{n.machine}
		if err := h.Confirm(); !errors.Is(err, errNotThere) {
			t.Errorf("Confirm() = %v before the disk has it; want %v", err, errNotThere)
		}
		if _, err := n.backend.Confirm(slot.B); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := h.Confirm(); err != nil {
				t.Errorf("Confirm() = %v", err)
			}
		}
		if s := h.Status(); s.Slot.State != status.SlotConfirmed || s.Trial != nil {
			t.Errorf("status %v, %+v; want a confirmed slot", s.Slot, s.Trial)
		}
		time.Sleep(time.Hour)
		if n.overdueNow() || len(n.requests) != 0 {
			t.Error("a confirmed slot is rolled back at the deadline of its trial")
		}
		n.endTrial(t, slot.B)
	})
	synctest.Test(t, func(t *testing.T) {
		n := newTrialNode(t, on(t), slot.B)
		if _, err := n.backend.Confirm(slot.B); err != nil { // and then cairnd dies
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		if s := (handler{n.machine}).Status(); n.overdueNow() || s.Slot.State != status.SlotConfirmed {
			t.Errorf("status %v; want what the disk says at the deadline", s.Slot)
		}
	})
}

// TestRebootBeforeTheDeadline: an operator's reboot is one try, and no roll-back.
func TestRebootBeforeTheDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newTrialNode(t, on(t), slot.B)
		n.request(power.Reboot)
		n.wait()
		n.stopDeadline()
		time.Sleep(time.Hour)
		if n.overdueNow() {
			t.Error("the deadline came to a node that is going down")
		}
		n.endTrial(t, slot.B)
	})
}

func TestFailedPhase(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newTrialNode(t, on(t), slot.B)
		defer n.stopDeadline()
		failed := &sequence.Error{Phase: "data", Number: 7, Total: 21, Err: errors.New("no ext4")}
		err := n.failed(failed)
		if trial := (emergency.OnTrial{}); !errors.As(err, &trial) || trial.TriesLeft != 2 || !errors.Is(err, failed.Err) {
			t.Errorf("failed() = %#v; want the failure of a trial with 2 tries left", err)
		}
		if got, want := n.report(t), "system|data|no ext4"; got != want {
			t.Errorf("report %q; want %q", got, want)
		}
		n.failed(overdue(failed))
		if got, want := n.report(t), "system|data|the deadline of the trial has passed: no ext4"; got != want {
			t.Errorf("report %q; want %q", got, want)
		}
	})
	n := &trialNode{machine: &machine{}}
	if err := errors.New("x"); n.failed(err) != err {
		t.Error("a failure of a confirmed slot is told as one of a trial")
	}
}

func TestNoVerdict(t *testing.T) {
	for want, p := range map[string]status.Process{
		"exit status 2, restarted 14 times; no verdict by the deadline of 10m0s; it is backoff": {Name: "cairnd", State: "backoff", LastExit: "exit status 2", Restarts: 14},
		"no verdict by the deadline of 10m0s; it is ready: waits for the node":                  {Name: "cairnd", State: "ready", Message: "waits for the node"},
		"no verdict by the deadline of 10m0s; it is not among the services":                     {Name: "store", State: "ready"},
	} {
		if got := noVerdict([]status.Process{{Name: "join"}, p}, 10*time.Minute); got.Error() != want {
			t.Errorf("noVerdict(%+v) = %q; want %q", p, got, want)
		}
	}
}

// TestShutdownLimit: the watchdog is fed for longer than an orderly shutdown can take, and not for ever.
func TestShutdownLimit(t *testing.T) {
	var all time.Duration
	for _, p := range (&machine{}).shutdownPhases(power.Reboot) {
		all += p.Timeout + 2*time.Second // package sequence's grace
	}
	if all > shutdownLimit {
		t.Errorf("all steps may take %v; the watchdog is fed for %v", all, shutdownLimit)
	}
}

// TestCrashingJudge: cairnd ends at each start until the deadline comes. The reason is in the report by then.
func TestCrashingJudge(t *testing.T) {
	n := newTrialNode(t, on(t), slot.B)
	defer n.stopDeadline()
	n.trial.Reached(slot.StageServices)
	r, err := reaper.New()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	s, err := supervise.New(supervise.Options{
		Reaper: r, LogDir: filepath.Join(dir, "log"), NotifyDir: filepath.Join(dir, "notify"), Logf: t.Logf,
	}, []supervise.Service{{Name: judge, Argv: []string{"/bin/sh", "-c", "exit 2"}, Notify: true}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	all.Go(func() { r.Serve(ctx) })
	all.Go(func() {
		if err := s.Run(ctx); err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("Run() = %v", err)
		}
	})
	defer func() { cancel(); all.Wait() }()
	n.mu.Lock()
	n.supervisor = s
	n.mu.Unlock()
	for end := time.Now().Add(10 * time.Second); s.Status()[0].LastExit == ""; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("it does not crash: %+v", s.Status())
		}
	}
	n.setDeadline(n.opt.Since())
	if action := n.wait(); action != power.Reboot {
		t.Errorf("the deadline brings %v; want a reboot", action)
	}
	if got := n.report(t); !strings.HasPrefix(got, "services|cairnd|exit status 2, restarted ") || !strings.Contains(got, "no verdict by the deadline") {
		t.Errorf("report %q; want what came of cairnd", got)
	}
	n.endTrial(t, slot.A)
}
