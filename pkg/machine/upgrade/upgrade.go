// Package upgrade is the machine daemon's part in upgrades. When the machine comes up it closes what earlier boots left: it
// finds out how a trial ended, keeps why, and puts what failed into quarantine. On trial it judges the running release and
// confirms it or goes back. It upgrades when an operator, the channel or the cluster says so, one upgrade at a time, and
// goes back when an operator says so.
//
// What a power cut leaves between two of its writes:
//
//	judged healthy     Confirm, then the attempt is closed     cut between: the slot is confirmed, the next start closes it
//	judged unhealthy   the attempt is closed, then RollBack    cut between: on trial with a closed attempt; the next start goes back
//	ended trial        the attempt is closed, then RollBack    cut between: nothing is open; the next start rolls back
package upgrade

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/cairn-os/cairn/pkg/bootloader"
	"github.com/cairn-os/cairn/pkg/health"
	"github.com/cairn-os/cairn/pkg/slot"
	"github.com/cairn-os/cairn/pkg/update"
	"github.com/cairn-os/cairn/pkg/update/history"
)

// reserve is how long before init's deadline the verdict falls, so that it is this daemon's, with evidence.
const reserve = 20 * time.Second

// Judge judges the running release; *health.Judge is one.
type Judge interface {
	Run(ctx context.Context, left time.Duration) (health.Verdict, error)
}

// Engine upgrades; *update.Engine is one.
type Engine interface {
	Plan(ctx context.Context, q update.Request) (update.Plan, error)
	Run(ctx context.Context, q update.Request) (update.Plan, error)
	Back(ctx context.Context, q update.Request) (update.Plan, error)
	Cancel(text string) error
}

// Options are what a Manager works with. All are required but what says otherwise.
type Options struct {
	Running update.Running
	Backend bootloader.Backend
	History *history.Store
	Tries   int // that a slot is armed with; 0: slot.DefaultTries
	// Engine returns the engine for a release directory, "" being the configured one, and what closes it.
	Engine func(source string, progress func(update.Progress)) (Engine, func(), error)
	// Judge returns the judge of a trial, which is told what there was before the upgrade.
	Judge func(ctx context.Context, progress func(health.Progress)) (Judge, error)
	// Deadline is what is left until init goes back by itself.
	Deadline func(ctx context.Context) (time.Duration, error)
	// Confirmed tells init, which stops counting.
	Confirmed func(ctx context.Context) error
	Reboot    func(ctx context.Context) error
	// Announce tells whoever looks at the console.
	Announce func(ctx context.Context, line string)
	// Panic and Watchdog are those of Signs: what an earlier kernel left since a moment, and whether the watchdog started
	// the machine this time.
	Panic    func(since time.Time) string
	Watchdog func(ctx context.Context) bool
	Log      *slog.Logger
	Now      func() time.Time
}

// Manager is running upgrades. Its methods are safe for concurrent use.
type Manager struct {
	o Options

	// deciding is held while a trial ends: this daemon's verdict and an operator's word can come at the same moment.
	deciding sync.Mutex

	mu       sync.Mutex // guards all below
	busy     string     // what is done now, "" nothing
	progress update.Progress
	trial    *health.Progress // nil unless the running release is judged
	problem  string           // why the last thing that this daemon began by itself failed
}

// New returns a manager. It touches nothing.
func New(o Options) *Manager {
	if o.Tries == 0 {
		o.Tries = slot.DefaultTries
	}
	return &Manager{o: o}
}

// ErrBusy says that something else is under way.
var ErrBusy = errors.New("another upgrade or rollback is under way: see \"cairnctl upgrade status\"")

// claim reserves the machine for one thing.
func (m *Manager) claim(what string) (done func(), err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.busy != "" {
		return nil, fmt.Errorf("%w (%s)", ErrBusy, m.busy)
	}
	m.busy = what
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.busy, m.progress = "", update.Progress{}
	}, nil
}

// Settle closes what earlier boots left and, on trial, judges the running release. It returns when the running slot is
// confirmed, when ctx ends, or when it has asked for the restart that follows a rollback. It comes before all others.
func (m *Manager) Settle(ctx context.Context) error {
	done, err := m.claim("looking at what earlier boots left")
	if err != nil {
		return err
	}
	defer done()
	state, err := m.o.Backend.Repair(m.o.Running.Slot)
	if err != nil {
		return fmt.Errorf("slot state: %w", err)
	}
	st, open, err := m.o.History.State()
	if err != nil {
		return err
	}
	var a history.Attempt
	if open {
		if a, open, err = m.o.History.Attempt(st.Attempt); err != nil {
			return err
		}
	}
	if !open {
		return m.settleUnknown(ctx, state)
	}
	step, end := Aftermath(a, st, m.signs(ctx, state, a))
	m.o.Log.Info("what the last upgrade left", "attempt", a.ID, "slots", state.String(), "step", string(step), "reason", string(end.Reason))
	switch step {
	case StepJudge:
		return m.judge(ctx, a, state)
	case StepGoBack:
		return m.goBack(ctx, "it was judged before the power was cut")
	case StepRestart:
		return m.o.Reboot(ctx)
	case StepClose, StepEnd:
		if err := m.close(a.ID, end); err != nil {
			return err
		}
		if step == StepEnd {
			if _, err := m.o.Backend.RollBack(); err != nil {
				return err
			}
		}
		if end.Verdict == history.RolledBack {
			m.o.Announce(ctx, fmt.Sprintf("version %s was tried and did not stay: %s; version %s runs on", a.To.Version, end.Reason, m.o.Running.Version))
		}
	}
	return nil
}

// settleUnknown is for a machine without an open attempt: none was begun, it is closed, or its record is lost.
func (m *Manager) settleUnknown(ctx context.Context, state slot.State) error {
	switch {
	case state.Trial == slot.None:
		return nil
	case state.Trial != m.o.Running.Slot:
		_, err := m.o.Backend.RollBack() // closed, and the power was cut before this
		return err
	}
	all, err := m.o.History.Attempts()
	if err != nil {
		return err
	}
	if len(all) > 0 && all[0].Slot == state.Trial && all[0].Verdict == history.RolledBack {
		return m.goBack(ctx, "it was judged before the power was cut")
	}
	a, err := m.o.History.Begin(history.Attempt{To: m.o.Running.Info, Slot: state.Trial, Started: m.o.Now()})
	if err != nil {
		return err
	}
	return m.judge(ctx, a, state)
}

// signs gathers what Aftermath decides by.
func (m *Manager) signs(ctx context.Context, state slot.State, a history.Attempt) Signs {
	s := Signs{Running: m.o.Running.Slot, State: state, Counts: m.o.Backend.SelectorCounts(), Tries: m.o.Tries}
	report, err := m.o.Backend.Report()
	switch {
	case err == nil:
		s.Report = &report
	case !errors.Is(err, slot.ErrNoReport):
		m.o.Log.Warn("report of the trial not read", "error", err)
	}
	s.Panic = m.o.Panic(a.Armed)
	s.Watchdog = m.o.Watchdog(ctx)
	return s
}

func (m *Manager) close(id string, end history.End) error {
	end.Time = m.o.Now()
	if err := m.o.History.Close(id, end); err != nil && !errors.Is(err, history.ErrNoAttempt) {
		return err
	}
	return nil
}

// judge decides whether the running release stays.
func (m *Manager) judge(ctx context.Context, a history.Attempt, state slot.State) error {
	a.Boots = max(a.Boots, m.o.Tries-state.Tries)
	if err := m.o.History.Save(a); err != nil {
		m.o.Log.Warn("attempt not kept", "error", err) // a full disk does not make a release unhealthy
	}
	m.mu.Lock()
	m.busy = "version " + m.o.Running.Version + " is on trial"
	m.trial = &health.Progress{}
	m.mu.Unlock()
	m.o.Announce(ctx, fmt.Sprintf("version %s is on trial, %d more tries", m.o.Running.Version, state.Tries))
	left, err := m.o.Deadline(ctx)
	if err != nil {
		return fmt.Errorf("deadline of the trial: %w", err)
	}
	j, err := m.o.Judge(ctx, func(p health.Progress) {
		m.mu.Lock()
		news := m.trial == nil || m.trial.Text != p.Text
		m.trial = &p
		m.mu.Unlock()
		if news {
			m.o.Announce(ctx, fmt.Sprintf("trial of %s: %s", m.o.Running.Version, p.Text))
		}
	})
	if err != nil {
		return err
	}
	v, err := j.Run(ctx, max(left-reserve, 0))
	m.mu.Lock()
	m.trial = nil
	m.mu.Unlock()
	if err != nil {
		return err
	}
	m.deciding.Lock()
	defer m.deciding.Unlock()
	if now, err := m.o.Backend.Read(); err != nil || now.Trial != m.o.Running.Slot {
		return err // an operator was faster, and the machine restarts
	}
	if !v.Healthy {
		end := history.End{Verdict: history.RolledBack, Reason: history.Health, Text: v.Reason, Boots: a.Boots, Evidence: evidence(v, m.o.Now())}
		if err := m.close(a.ID, end); err != nil {
			m.o.Log.Error("verdict not kept", "error", err) // going back is what matters
		}
		return m.goBack(ctx, v.Reason)
	}
	if _, err := m.o.Backend.Confirm(m.o.Running.Slot); err != nil {
		return fmt.Errorf("confirm version %s: %w", m.o.Running.Version, err)
	}
	end := history.End{Verdict: history.Confirmed, Text: v.Reason, Boots: a.Boots, Evidence: evidence(v, m.o.Now())}
	m.o.Announce(ctx, fmt.Sprintf("version %s is confirmed", m.o.Running.Version))
	return errors.Join(m.close(a.ID, end), m.o.Confirmed(ctx))
}

// goBack ends the trial of the running slot and restarts the machine.
func (m *Manager) goBack(ctx context.Context, why string) error {
	m.o.Announce(ctx, fmt.Sprintf("version %s does not stay: %s; going back", m.o.Running.Version, why))
	_, err := m.o.Backend.RollBack()
	if err != nil {
		m.o.Log.Error("not rolled back, the tries will run out", "error", err)
	}
	return errors.Join(err, m.o.Reboot(ctx))
}

// evidence is a verdict's, as it is kept.
func evidence(v health.Verdict, at time.Time) []history.Evidence {
	var all []history.Evidence
	for _, c := range v.Evidence {
		text := c.Text
		if !c.OK && c.Failed != "" && c.Failed != c.Text {
			text += " (before: " + c.Failed + ")"
		}
		all = append(all, history.Evidence{Check: c.Name, OK: c.OK, Text: text, Time: at, Count: c.Looks})
	}
	return all
}
