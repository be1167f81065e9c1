// Package bootloader says what a boot loader does for upgrades, however the
// machine starts: it keeps the slot state where the boot selector finds it, and
// knows how the machine must be restarted. The packages below it are the ways:
// grubenv for GRUB, tryboot for the Raspberry Pi's firmware. Suite conformance
// runs both against models of the selectors.
package bootloader

import (
	"github.com/cairn-os/cairn/pkg/slot"
)

// Backend keeps one machine's slot state.
//
// The state is what the selector goes by. Each verb reads it, makes the one
// transition of package slot and writes the result, so that a power cut at any
// instruction leaves the state before or the one after, and either boots. A
// verb that returns nil has its state on the medium, read back. A verb that the
// state forbids returns slot.ErrOnTrial, slot.ErrNoTrial or slot.ErrNotTrial
// and writes nothing.
//
// The life of a trial, in the words of this interface:
//
//	Arm, Restart       by the confirmed slot, which then restarts the machine
//	WriteReport ...    by the trial slot, as it boots
//	Confirm            by the trial slot, or
//	RollBack, Restart  by either
//
// A machine that comes up in its confirmed slot while Read has a trial with
// tries left either calls Restart and restarts (when SelectorCounts is false:
// nothing else starts the slot again), or takes it as refused by the selector
// and rolls back (when it is true).
//
// Backends are safe for use by several goroutines and processes: a lock on
// CAIRN_SYS makes each call whole. Calls wait for it no longer than a few
// seconds, so that a process that hangs does not keep init from rolling back.
type Backend interface {
	// Read returns the state that counts. Its error is slot.ErrInvalid when
	// the medium holds none; the selector then boots a slot of its own
	// choice, which Repair makes the confirmed one.
	Read() (slot.State, error)
	// Arm puts trial on trial for the next tries boots, and takes away the
	// report of the trial before.
	Arm(trial slot.Slot, tries int) (slot.State, error)
	// Confirm makes the slot on trial, which running is, the confirmed one.
	Confirm(running slot.Slot) (slot.State, error)
	// RollBack ends the trial in favour of the confirmed slot.
	RollBack() (slot.State, error)
	// Repair ends a Confirm that was cut off, and replaces damaged copies, so
	// that the next damage finds a good one. running becomes the confirmed
	// slot when no state is left. It does nothing to a machine in order, so
	// that it can be called at every boot.
	Repair(running slot.Slot) (slot.State, error)
	// Restart is called right before the machine restarts, and returns what
	// the restart has to carry. Where the selector does not count tries it
	// counts this one first.
	Restart() (Restart, error)
	// SelectorCounts reports whether the selector counts and starts the tries
	// of a trial at every power-on, with no help of the confirmed slot.
	SelectorCounts() bool
	// Report returns what the last trial boot said of itself. Its error is
	// slot.ErrNoReport when none did. See slot.Report.Of.
	Report() (slot.Report, error)
	// WriteReport replaces the report. A write that was cut off leaves none.
	WriteReport(slot.Report) error
}
