package system

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cairn-os/cairn/init/internal/emergency"
	"github.com/cairn-os/cairn/init/internal/guard"
	"github.com/cairn-os/cairn/init/internal/trial"
	"github.com/cairn-os/cairn/pkg/config"
	"github.com/cairn-os/cairn/pkg/power"
	"github.com/cairn-os/cairn/pkg/sequence"
	"github.com/cairn-os/cairn/pkg/slot"
	"github.com/cairn-os/cairn/pkg/status"
)

// judge is the process that confirms a slot on trial.
const judge = "cairnd"

var (
	errOverdue  = errors.New("the deadline of the trial has passed")
	errNotThere = errors.New("the slot state on the disk does not say that the running slot is confirmed")
)

// beginTrial finds out how far the running slot is trusted. From here on a trial has its deadline, which holds for what
// is left of the boot as well.
func (m *machine) beginTrial(open trial.Open, running slot.Slot) {
	t, state, err := trial.Begin(open, running, m.log.Printf)
	m.mu.Lock()
	m.trial = t
	switch {
	case err != nil:
		m.log.Printf("boot selector's state: %v", err)
	case t != nil:
		m.slot.State = status.SlotTrial
	case state.Confirmed == running:
		m.slot.State = status.SlotConfirmed
	default: // the selector found the confirmed slot damaged: SlotUnknown
		m.log.Printf("slot %s was started though it is neither confirmed nor on trial: %s", running, state)
	}
	m.mu.Unlock()
	if t != nil {
		t.Reached(slot.StageSystem)
		m.setDeadline(config.DefaultDeadline)
	}
}

// setDeadline sets, or moves, the time since power-on at which a trial that is not confirmed is over.
func (m *machine) setDeadline(at time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.trial == nil || m.expired {
		return
	}
	if m.timer != nil {
		m.timer.Stop()
	}
	m.deadline = at
	m.timer = time.AfterFunc(max(0, at-m.opt.Since()), func() {
		if err := guard.Call(func() error { m.overdue(at); return nil }); err != nil {
			m.log.Print(err)
			m.giveUp() // a bug in the telling must not keep the old version from coming back
		}
	})
}

// stopDeadline ends the wait for the deadline; one that passed stays so.
func (m *machine) stopDeadline() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.timer != nil {
		m.timer.Stop()
	}
}

// overdue ends a trial that nobody confirmed by the deadline at: why goes into the report, the node is taken down in
// order, and the slot state rolled back as the last step of that.
func (m *machine) overdue(at time.Duration) {
	if err := m.confirm(); err == nil {
		return // confirmed on the disk, and cairnd could not tell any more
	} else if !errors.Is(err, errNotThere) {
		m.log.Print(err)
	}
	m.mu.Lock()
	supervisor, moved := m.supervisor, m.deadline != at
	m.mu.Unlock()
	if moved {
		return // while this one waited for the lock
	}
	if supervisor == nil {
		m.log.Printf("%v (%v) and this version has not even started its services: going back to the old one", errOverdue, at)
	} else {
		why := noVerdict(supervisor.Status(), at)
		m.log.Printf("%v (%v) and nobody confirmed this version: going back to the old one; %s: %v", errOverdue, at, judge, why)
		m.current().Failed(judge, why)
	}
	m.giveUp()
}

// giveUp has the boot, or the running node, end with a roll-back.
func (m *machine) giveUp() {
	m.mu.Lock()
	m.expired = true
	m.mu.Unlock()
	m.abort(errOverdue)
	m.request(power.Reboot)
}

// noVerdict says why there is no word of cairnd: what came of the process first, for the report is short.
func noVerdict(all []status.Process, at time.Duration) error {
	for _, p := range all {
		if p.Name != judge {
			continue
		}
		text := fmt.Sprintf("no verdict by the deadline of %v; it is %s", at, p.State)
		if p.Message != "" {
			text += ": " + p.Message
		}
		if p.LastExit != "" {
			text = fmt.Sprintf("%s, restarted %d times; %s", p.LastExit, p.Restarts, text)
		}
		return errors.New(text)
	}
	return fmt.Errorf("no verdict by the deadline of %v; it is not among the services", at)
}

// confirm ends the deadline when the disk says that the running slot is confirmed. Its error is errNotThere when the
// disk says otherwise.
func (m *machine) confirm() error {
	m.mu.Lock()
	t, name := m.trial, m.slot.Name
	m.mu.Unlock()
	if t == nil {
		return nil
	}
	switch there, err := t.Confirmed(); {
	case err != nil:
		return fmt.Errorf("confirm slot %s: %w", name, err)
	case !there:
		return fmt.Errorf("confirm slot %s: %w", name, errNotThere)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.trial == nil {
		return nil // by another call
	}
	if m.expired {
		return fmt.Errorf("confirm slot %s: %w", name, errOverdue)
	}
	m.timer.Stop()
	m.trial, m.slot.State = nil, status.SlotConfirmed
	m.log.Printf("slot %s is confirmed", name)
	return nil
}

// overdue makes err, of a phase that the deadline interrupted, say so.
func overdue(err error) error {
	if failed := (*sequence.Error)(nil); errors.As(err, &failed) {
		late := *failed
		late.Err = fmt.Errorf("%w: %w", errOverdue, failed.Err)
		return &late
	}
	return fmt.Errorf("%w: %w", errOverdue, err)
}

// failed has the report say which phase ended the boot, and tells the emergency screen about the trial.
func (m *machine) failed(err error) error {
	t := m.current()
	if t == nil {
		return err
	}
	t.Failed("", err)
	return emergency.OnTrial{Err: err, TriesLeft: t.TriesLeft()}
}

// rollBack makes the confirmed slot boot next. When that fails the tries count down, which takes longer.
func (m *machine) rollBack(context.Context) error { return m.current().RollBack() }

// current is the trial under way; nil when there is none.
func (m *machine) current() *trial.Trial {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.trial
}

// overdueNow reports whether the trial's deadline has passed.
func (m *machine) overdueNow() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.expired
}

// trialStatus is what the node tells of its trial; nil when there is none. mu is held.
func (m *machine) trialStatus() *status.Trial {
	if m.trial == nil {
		return nil
	}
	return &status.Trial{TriesLeft: m.trial.TriesLeft(), DeadlineS: status.InSeconds(m.deadline)}
}
