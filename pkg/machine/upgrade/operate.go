package upgrade

import (
	"context"
	"errors"
	"fmt"

	"github.com/cairn-os/cairn/pkg/health"
	"github.com/cairn-os/cairn/pkg/release"
	"github.com/cairn-os/cairn/pkg/slot"
	"github.com/cairn-os/cairn/pkg/update"
	"github.com/cairn-os/cairn/pkg/update/history"
)

// Request is what an operator wants.
type Request struct {
	Version  string `json:"version,omitempty"` // "" for the newest of the channel
	Source   string `json:"source,omitempty"`  // a release directory; "" for the configured one
	NoReboot bool   `json:"no_reboot,omitempty"`
}

// Plan says what Upgrade would do.
func (m *Manager) Plan(ctx context.Context, q Request) (update.Plan, error) {
	return m.engage(q, "planning an upgrade", func(update.Progress) {}, func(e Engine) (update.Plan, error) {
		return e.Plan(ctx, update.Request{Version: q.Version, NoReboot: q.NoReboot})
	})
}

// Upgrade upgrades, and tells where it is. It returns when the machine is about to restart, or, with NoReboot, when the next
// start is a trial. The last that is told before the restart has the step update.StepReboot.
func (m *Manager) Upgrade(ctx context.Context, q Request, tell func(update.Progress)) (update.Plan, error) {
	return m.engage(q, "upgrading", tell, func(e Engine) (update.Plan, error) {
		return e.Run(ctx, update.Request{Version: q.Version, NoReboot: q.NoReboot})
	})
}

func (m *Manager) engage(q Request, what string, tell func(update.Progress), do func(Engine) (update.Plan, error)) (update.Plan, error) {
	done, err := m.claim(what)
	if err != nil {
		return update.Plan{}, err
	}
	defer done()
	e, shut, err := m.o.Engine(q.Source, func(p update.Progress) {
		m.mu.Lock()
		m.progress = p
		m.mu.Unlock()
		tell(p)
	})
	if err != nil {
		return update.Plan{}, err
	}
	defer shut()
	return do(e)
}

// RollBack goes back to the release before the running one. On trial that ends the trial; what is armed and was not
// started is disarmed; and from a confirmed release the one before it is tried, which must become healthy as any other.
// The release that is left goes into quarantine. restart says whether the machine restarts now.
func (m *Manager) RollBack(ctx context.Context, text string) (restart bool, err error) {
	if m.judging() { // Settle has the machine, and is overtaken
		return true, m.endTrial(ctx, text)
	}
	done, err := m.claim("rolling back")
	if err != nil {
		return false, err
	}
	defer done()
	state, err := m.o.Backend.Read()
	if err != nil {
		return false, err
	}
	if state.Trial == m.o.Running.Slot {
		return true, m.endTrial(ctx, text)
	}
	e, shut, err := m.o.Engine("", func(update.Progress) {})
	if err != nil {
		return false, err
	}
	defer shut()
	if state.Trial != slot.None {
		return false, e.Cancel(text)
	}
	_, err = e.Back(ctx, update.Request{})
	return err == nil, err
}

func (m *Manager) judging() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.trial != nil
}

// endTrial goes back from the running release, on trial, at an operator's word.
func (m *Manager) endTrial(ctx context.Context, text string) error {
	m.deciding.Lock()
	defer m.deciding.Unlock()
	now, err := m.o.Backend.Read()
	if err != nil {
		return err
	}
	if now.Trial != m.o.Running.Slot {
		return fmt.Errorf("%w: the trial has just ended (%s): roll back once more if it was confirmed", update.ErrRefused, now)
	}
	st, open, err := m.o.History.State()
	if err == nil && open {
		err = m.close(st.Attempt, history.End{Verdict: history.RolledBack, Reason: history.Operator, Text: text})
	}
	return errors.Join(err, m.goBack(ctx, text))
}

// Attempts returns the last upgrades, the newest first.
func (m *Manager) Attempts() ([]history.Attempt, error) { return m.o.History.Attempts() }

// Clear takes a version out of quarantine.
func (m *Manager) Clear(version string) error { return m.o.History.Release(version) }

// Status is where the machine stands. Its JSON field names are stable: fields may be added, never renamed.
type Status struct {
	Running   release.Info         `json:"running"`
	Slot      slot.Slot            `json:"slot"`                 // that runs
	Confirmed slot.Slot            `json:"confirmed,omitempty"`  // that starts when nothing is on trial
	Trial     slot.Slot            `json:"trial,omitempty"`      // that is on trial, or will be at the next start
	TriesLeft int                  `json:"tries_left,omitempty"` // of it, after this one
	Doing     string               `json:"doing,omitempty"`      // what is done now
	Progress  *update.Progress     `json:"progress,omitempty"`   // of an upgrade
	Judging   *health.Progress     `json:"judging,omitempty"`    // of the running release, on trial
	Open      *history.State       `json:"open,omitempty"`       // the upgrade that is under way or waits to go on
	Last      *history.Attempt     `json:"last,omitempty"`       // the last one, open or not
	Held      []history.Quarantine `json:"quarantine"`
	Problem   string               `json:"problem,omitempty"`
}

// Status tells where the machine stands: all that can be read, and what could not as an error.
func (m *Manager) Status() (Status, error) {
	m.mu.Lock()
	s := Status{Running: m.o.Running.Info, Slot: m.o.Running.Slot, Doing: m.busy, Judging: m.trial, Problem: m.problem, Held: []history.Quarantine{}}
	if m.progress.Step != "" {
		p := m.progress
		s.Progress = &p
	}
	m.mu.Unlock()
	var problems [4]error
	var now slot.State
	if now, problems[0] = m.o.Backend.Read(); problems[0] == nil {
		s.Confirmed, s.TriesLeft = now.Confirmed, now.Tries
		if now.Trial != slot.None {
			s.Trial = now.Trial
		}
	}
	st, open, err := m.o.History.State()
	if problems[1] = err; open {
		s.Open = &st
	}
	all, err := m.o.History.Attempts()
	if problems[2] = err; len(all) > 0 {
		s.Last = &all[0]
	}
	held, err := m.o.History.Quarantined()
	problems[3] = err
	s.Held = append(s.Held, held...)
	return s, errors.Join(problems[:]...)
}
