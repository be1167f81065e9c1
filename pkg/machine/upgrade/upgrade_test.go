package upgrade

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-os/cairn/pkg/bootloader"
	"github.com/cairn-os/cairn/pkg/bootloader/grubenv"
	"github.com/cairn-os/cairn/pkg/bootloader/sysfile"
	"github.com/cairn-os/cairn/pkg/health"
	"github.com/cairn-os/cairn/pkg/release"
	"github.com/cairn-os/cairn/pkg/slot"
	"github.com/cairn-os/cairn/pkg/update"
	"github.com/cairn-os/cairn/pkg/update/history"
)

// world is a machine whose boot selector's files and history are real, and whose power comes and goes.
type world struct {
	t         *testing.T
	sys       string // where CAIRN_SYS is
	backend   bootloader.Backend
	history   *history.Store
	log       []string // what happened, in order
	now       time.Time
	healthy   bool
	panic     string
	boots     func(*Manager) // is called before the daemon settles
	meanwhile func()         // happens while the running release is judged
	cut       string         // the word in the log at which the power is cut
	running   slot.Slot
	version   map[slot.Slot]string
}

// errCut is what everything returns when there is no power.
var errCut = errors.New("power cut")

func newWorld(t *testing.T) *world {
	t.Helper()
	sys, data := t.TempDir(), t.TempDir()
	w := &world{t: t, now: time.Date(2026, 11, 22, 3, 0, 0, 0, time.UTC), healthy: true, running: slot.A,
		version: map[slot.Slot]string{slot.A: "1.0.0", slot.B: "1.1.0"}}
	w.sys = sys
	w.backend = grubenv.New(sysfile.Dir{Path: sys})
	if _, err := w.backend.Repair(slot.A); err != nil {
		t.Fatal(err)
	}
	var err error
	if w.history, err = history.Open(data, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	return w
}

// say logs, and cuts the power where that was asked for.
func (w *world) say(format string, args ...any) error {
	line := fmt.Sprintf(format, args...)
	w.log = append(w.log, line)
	if w.cut != "" && strings.HasPrefix(line, w.cut) {
		return errCut
	}
	return nil
}

// writer cuts the power before or after a write of the selector's state.
type writer struct {
	bootloader.Backend
	w *world
}

func (b writer) do(verb string, f func() (slot.State, error)) (slot.State, error) {
	if err := b.w.say("before %s", verb); err != nil {
		return slot.State{}, err
	}
	s, err := f()
	if err != nil {
		return s, err
	}
	return s, b.w.say("%s: %s", verb, s)
}

func (b writer) Confirm(r slot.Slot) (slot.State, error) {
	return b.do("confirm", func() (slot.State, error) { return b.Backend.Confirm(r) })
}

func (b writer) RollBack() (slot.State, error) { return b.do("roll back", b.Backend.RollBack) }

func (b writer) Arm(trial slot.Slot, tries int) (slot.State, error) {
	return b.do("arm", func() (slot.State, error) { return b.Backend.Arm(trial, tries) })
}

// judge gives the world's verdict.
type judge struct{ w *world }

func (j judge) Run(context.Context, time.Duration) (health.Verdict, error) {
	if err := j.w.say("judge"); err != nil {
		return health.Verdict{}, err
	}
	if j.w.meanwhile != nil {
		j.w.meanwhile()
	}
	v := health.Verdict{Healthy: j.w.healthy, Reason: "all checks passed", Evidence: []health.Check{{Name: "node", OK: j.w.healthy, Text: "Ready", Looks: 7}}}
	if !j.w.healthy {
		v.Reason = "waiting for: node: NotReady"
	}
	return v, nil
}

// boot starts the machine: the selector chooses, and the daemon settles.
func (w *world) boot() (*Manager, error) {
	w.t.Helper()
	state, err := w.backend.Read()
	if err != nil {
		w.t.Fatal(err)
	}
	chosen, next, err := state.Attempt()
	if err != nil {
		w.t.Fatal(err)
	}
	if next != state { // the selector writes in place
		if err := w.count(next); err != nil {
			w.t.Fatal(err)
		}
	}
	w.running = chosen
	w.say("boot %s", w.version[chosen])
	m := w.manager()
	if w.boots != nil {
		w.boots(m)
	}
	return m, m.Settle(w.t.Context())
}

// count saves a state as GRUB does: in place of the copy that counts, under the same number.
func (w *world) count(next slot.State) error {
	var copies [2][]byte
	var names [2]string
	for i := range copies {
		names[i] = filepath.Join(w.sys, [2]string{sysfile.State1, sysfile.State2}[i])
		var err error
		if copies[i], err = os.ReadFile(names[i]); err != nil {
			return err
		}
	}
	_, index, err := slot.Choose(copies[0], copies[1])
	if err != nil {
		return err
	}
	data, err := next.Encode()
	if err != nil {
		return err
	}
	return os.WriteFile(names[index], data, 0o644)
}

func (w *world) manager() *Manager {
	return New(Options{
		Running: update.Running{Info: release.Info{Version: w.version[w.running]}, Target: "amd64", Slot: w.running},
		Backend: writer{w.backend, w}, History: w.history,
		Judge:    func(context.Context, func(health.Progress)) (Judge, error) { return judge{w}, nil },
		Deadline: func(context.Context) (time.Duration, error) { return 10 * time.Minute, nil },
		Engine: func(string, func(update.Progress)) (Engine, func(), error) {
			reboot := func(context.Context) error { return w.say("reboot") }
			return update.New(update.Options{
				History: w.history, Bootloader: writer{w.backend, w}, Callbacks: update.Callbacks{Reboot: reboot},
				Running: update.Running{Info: release.Info{Version: w.version[w.running]}, Target: "amd64", Slot: w.running},
				Now:     func() time.Time { return w.now }, Log: slog.New(slog.DiscardHandler),
			}), func() {}, nil
		},
		Confirmed: func(context.Context) error { return w.say("told init") },
		Reboot:    func(context.Context) error { return w.say("reboot") },
		Announce:  func(_ context.Context, line string) {},
		Panic:     func(time.Time) string { return w.panic },
		Watchdog:  func(context.Context) bool { return false },
		Log:       slog.New(slog.DiscardHandler), Now: func() time.Time { return w.now },
	})
}

// arm does what the engine does at the end of an upgrade.
func (w *world) arm() {
	w.t.Helper()
	state, err := w.backend.Read()
	if err != nil {
		w.t.Fatal(err)
	}
	other := w.running.Other()
	a, err := w.history.Begin(history.Attempt{From: release.Info{Version: w.version[w.running]}, To: release.Info{Version: w.version[other]},
		Slot: other, Started: w.now, Armed: w.now})
	if err == nil {
		err = w.history.SetState(history.State{Attempt: a.ID, Version: w.version[other], Slot: other, Step: history.StepArmed, Sequence: state.Seq + 1, Since: w.now})
	}
	if err == nil {
		_, err = w.backend.Arm(other, slot.DefaultTries)
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// ends expects the last attempt's end, nothing open, and the slots.
func (w *world) ends(verdict history.Verdict, reason history.Reason, confirmed slot.Slot) {
	w.t.Helper()
	all, err := w.history.Attempts()
	if err != nil || len(all) == 0 {
		w.t.Fatalf("attempts %v, %v", all, err)
	}
	if all[0].Verdict != verdict || all[0].Reason != reason {
		w.t.Errorf("the attempt ended %q for %q (%s); want %q for %q", all[0].Verdict, all[0].Reason, all[0].Text, verdict, reason)
	}
	if st, open, err := w.history.State(); open || err != nil {
		w.t.Errorf("still open: %v, %v", st, err)
	}
	state, err := w.backend.Read()
	if err != nil || state.Confirmed != confirmed || state.Trial != slot.None {
		w.t.Errorf("slots: %v, %v; want %s confirmed and none on trial", state, err, confirmed)
	}
	_, held, err := w.history.InQuarantine(all[0].To.Version)
	if want := verdict == history.RolledBack && reason.Quarantines(); err != nil || held != want {
		w.t.Errorf("in quarantine: %v, %v; want %v", held, err, want)
	}
}

func TestTranscripts(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*world)
		boots  int
		log    []string
		end    func(*world)
	}{
		{"confirmed", func(*world) {}, 1,
			[]string{"boot 1.1.0", "judge", "before confirm", "confirm: #4: slot b confirmed", "told init"},
			func(w *world) { w.ends(history.Confirmed, "", slot.B) }},
		{"not healthy", func(w *world) { w.healthy = false }, 2,
			[]string{"boot 1.1.0", "judge", "before roll back", "roll back: #4: slot a confirmed", "reboot", "boot 1.0.0"},
			func(w *world) { w.ends(history.RolledBack, history.Health, slot.A) }},
		{"a kernel that panics each time", func(w *world) {
			w.panic = "Kernel panic - not syncing"
			state, err := w.backend.Read()
			for range slot.DefaultTries {
				if err == nil {
					_, state, err = state.Attempt()
				}
			}
			if err == nil {
				err = w.count(state)
			}
			if err != nil {
				w.t.Fatal(err)
			}
		}, 1, []string{"boot 1.0.0", "before roll back", "roll back: #4: slot a confirmed"},
			func(w *world) { w.ends(history.RolledBack, history.Panic, slot.A) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			w.arm()
			tt.change(w)
			for range tt.boots {
				if _, err := w.boot(); err != nil {
					t.Fatal(err)
				}
			}
			if diff := cmp.Diff(tt.log, w.log); diff != "" {
				t.Errorf("what happened (-want +got):\n%s", diff)
			}
			tt.end(w)
		})
	}
}

// TestPowerCuts cuts the power at every step of a good and of a bad trial. The machine starts again until it has settled.
func TestPowerCuts(t *testing.T) {
	for _, healthy := range []bool{true, false} {
		whole := newWorld(t)
		whole.healthy = healthy
		whole.arm()
		for range 2 {
			if _, err := whole.boot(); err != nil {
				t.Fatal(err)
			}
		}
		for _, at := range whole.log {
			t.Run(fmt.Sprintf("healthy %v, %s", healthy, at), func(t *testing.T) {
				w := newWorld(t)
				w.healthy, w.cut = healthy, at
				w.arm()
				for range 5 {
					_, err := w.boot()
					if w.cut = ""; err != nil && !errors.Is(err, errCut) {
						t.Fatal(err)
					}
				}
				if healthy {
					w.ends(history.Confirmed, "", slot.B)
				} else {
					w.ends(history.RolledBack, history.Health, slot.A)
				}
			})
		}
	}
}

// TestRollBackOnTrial: an operator's word counts more than a verdict that comes at the same moment.
func TestRollBackOnTrial(t *testing.T) {
	w := newWorld(t)
	w.arm()
	w.boots = func(m *Manager) {
		w.meanwhile = func() {
			if _, err := m.Upgrade(t.Context(), Request{}, func(update.Progress) {}); !errors.Is(err, ErrBusy) {
				t.Errorf("Upgrade on trial: %v; want ErrBusy", err)
			}
			if restart, err := m.RollBack(t.Context(), "it smells"); err != nil || !restart {
				t.Errorf("RollBack = %v, %v", restart, err)
			}
		}
	}
	if _, err := w.boot(); err != nil {
		t.Fatal(err)
	}
	want := []string{"boot 1.1.0", "judge", "before roll back", "roll back: #4: slot a confirmed", "reboot"}
	if diff := cmp.Diff(want, w.log); diff != "" {
		t.Errorf("what happened (-want +got):\n%s", diff)
	}
	w.ends(history.RolledBack, history.Operator, slot.A)
}

func TestRollBackOfAConfirmedRelease(t *testing.T) {
	w := newWorld(t)
	w.arm()
	m, err := w.boot()
	if err != nil {
		t.Fatal(err)
	}
	restart, err := m.RollBack(t.Context(), "the till prints nothing")
	if err != nil || !restart {
		t.Fatalf("RollBack = %v, %v", restart, err)
	}
	if _, held, err := w.history.InQuarantine("1.1.0"); !held || err != nil {
		t.Errorf("1.1.0 in quarantine: %v, %v; want it held", held, err)
	}
	if _, err := w.boot(); err != nil {
		t.Fatal(err)
	}
	w.ends(history.Confirmed, "", slot.A)
	if !slices.Contains(w.log, "boot 1.0.0") {
		t.Errorf("it never ran 1.0.0: %q", w.log)
	}
	if _, err := w.manager().RollBack(t.Context(), "and back"); !errors.Is(err, update.ErrRefused) || !strings.Contains(err.Error(), "quarantine") {
		t.Errorf("RollBack once more: %v; want it refused, for 1.1.0 is in quarantine", err)
	}
}

func TestRollBackWithNothingBefore(t *testing.T) {
	w := newWorld(t)
	m, err := w.boot()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.RollBack(t.Context(), "why not"); !errors.Is(err, update.ErrRefused) {
		t.Errorf("RollBack of a fresh machine: %v; want it refused", err)
	}
}

func TestRollBackOfWhatWasOnlyArmed(t *testing.T) {
	w := newWorld(t)
	if _, err := w.boot(); err != nil {
		t.Fatal(err)
	}
	w.arm()
	m := w.manager()
	if restart, err := m.RollBack(t.Context(), "not tonight"); err != nil || restart {
		t.Fatalf("RollBack = %v, %v; want it disarmed without a restart", restart, err)
	}
	w.ends(history.Abandoned, history.Operator, slot.A)
}
