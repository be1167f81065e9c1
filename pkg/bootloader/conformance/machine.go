package conformance

import (
	"errors"
	"fmt"
	"strings"

	"github.com/cairn-os/cairn/pkg/bootloader"
	"github.com/cairn-os/cairn/pkg/bootloader/sysfile"
	"github.com/cairn-os/cairn/pkg/slot"
)

// tries is what an upgrade is armed with.
const tries = 3

// ending is what the new version does when it runs.
type ending string

// The endings.
const (
	fails    ending = "fails"      // panics, hangs, or has its power cut
	confirms ending = "confirms"   // itself
	rolls    ending = "rolls back" // because it is not healthy
	restarts ending = "restarts"   // without a verdict, as an operator would
)

// machine is a machine that upgrades once, and everything that happens to it.
type machine struct {
	suite    Suite
	disk     *Disk
	ending   ending
	argument string // of the last restart
	armed    bool   // the upgrade was begun

	boots []slot.Slot // that ran
	tried int         // boots that took themselves for a trial
	log   strings.Builder
}

// clone is the machine with a disk of its own and nothing to remember.
func (m *machine) clone() *machine {
	return &machine{suite: m.suite, disk: newDisk(m.disk.files), ending: m.ending, argument: m.argument, armed: m.armed}
}

// maxBoots is more than any upgrade takes.
const maxBoots = 3*tries + 6

// run boots the machine until its upgrade is over.
func (m *machine) run() error {
	for range maxBoots {
		over, err := m.boot()
		switch {
		case errors.Is(err, errPower):
			m.disk.dead, m.argument = false, ""
			m.logf("power cut")
		case err != nil:
			return fmt.Errorf("%w\n%s", err, m.log.String())
		case over:
			return nil
		}
	}
	return fmt.Errorf("not settled after %d boots\n%s", maxBoots, m.log.String())
}

func (m *machine) logf(format string, args ...any) { fmt.Fprintf(&m.log, format+"\n", args...) }

// boot does one boot: the selector, then the system.
func (m *machine) boot() (over bool, err error) {
	argument := m.argument
	m.argument = "" // good for one boot
	b := m.suite.Boot(m.disk, argument)
	if m.disk.dead {
		return false, errPower
	}
	if b.Slot == slot.None {
		return false, fmt.Errorf("no slot was started: %q", b.Messages)
	}
	m.boots = append(m.boots, b.Slot)
	backend := m.suite.New(m.disk)
	state, err := backend.Repair(b.Slot)
	if err != nil {
		m.logf("boot %s: %v", b.Slot, err)
		return false, m.survive(err)
	}
	m.logf("boot %s: %s", b.Slot, state)
	switch b.Slot {
	case state.Trial:
		m.tried++
		return false, m.survive(m.trial(backend, state))
	case state.Confirmed:
		over, err := m.confirmed(backend, state)
		return over, m.survive(err)
	}
	// The selector could not read which slot is the confirmed one. It was
	// repaired.
	return false, m.restart(backend)
}

// survive logs an error that a system logs and lives on with.
func (m *machine) survive(err error) error {
	if err == nil || errors.Is(err, errPower) {
		return err
	}
	m.logf("error: %v", err)
	return nil
}

// trial is what the new version does.
func (m *machine) trial(b bootloader.Backend, state slot.State) error {
	report := state.Report(slot.StageSystem)
	report.Phase, report.Error = "data", "no such device"
	if err := b.WriteReport(report); err != nil {
		return err
	}
	var err error
	switch m.ending {
	case confirms:
		state, err = b.Confirm(state.Trial)
	case rolls:
		state, err = b.RollBack()
	case restarts:
		m.logf("restart")
		return m.restart(b)
	default:
		m.logf("failed")
		return nil
	}
	if err != nil {
		return err
	}
	m.logf("%s: %s", m.ending, state)
	return m.restart(b)
}

// confirmed is what the confirmed slot does: upgrade once, and end a trial that
// did not confirm itself.
func (m *machine) confirmed(b bootloader.Backend, state slot.State) (over bool, err error) {
	switch state.Phase() {
	case slot.Settled:
		if m.armed {
			return true, nil
		}
		m.armed = true
		if state, err = b.Arm(state.Confirmed.Other(), tries); err != nil {
			return false, err
		}
		m.logf("armed: %s", state)
		return false, m.restart(b)
	case slot.OnTrial:
		if !b.SelectorCounts() {
			return false, m.restart(b)
		}
	}
	if report, err := b.Report(); err == nil && report.Of(state) {
		m.logf("report: %s", report)
	}
	if state, err = b.RollBack(); err != nil {
		return false, err
	}
	m.logf("closed: %s", state)
	return false, m.restart(b)
}

func (m *machine) restart(b bootloader.Backend) error {
	r, err := b.Restart()
	if err != nil {
		return err
	}
	m.argument = r.Argument
	return nil
}

// settled returns the state of a machine at rest.
func (m *machine) settled() (slot.State, error) { return m.suite.New(sysfile.Disk(m.disk)).Read() }
