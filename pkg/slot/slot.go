// Package slot decides which of a machine's two copies of the system boots: the
// state as a pure value, its transitions, what a trial boot says of itself, and
// the encoding of both for the boot selector. It writes nothing; the packages
// below bootloader do.
//
//	        Arm(other, tries)             Attempt: the last try
//	Settled ────────────────▶ OnTrial ─────────────────────────▶ Spent
//	 ▲ ▲ ▲                     │ │ ▲ │ Attempt: tries-1,          │ │ ▲ │ Attempt boots
//	 │ │ │                     │ │ └─┘ boots the trial slot       │ │ └─┘ the confirmed slot
//	 │ │ └────── Confirm ──────┘ │                                │ │
//	 │ └──────── Confirm ────────│────────────────────────────────┘ │
//	 └────────── RollBack ───────┴──────────────────────────────────┘
//
// A settled state's Attempt boots the confirmed slot and changes nothing: tries
// are counted only on trial, so a machine whose power is cut every hour never
// uses up its confirmed slot. The moves are in one table, transitions.
package slot

import (
	"errors"
	"fmt"
)

// Slot is one of the two copies.
type Slot string

// The slots. None stands for "no trial".
const (
	A    Slot = "a"
	B    Slot = "b"
	None Slot = "none"
)

// Other returns the slot that s is not.
func (s Slot) Other() Slot {
	switch s {
	case A:
		return B
	case B:
		return A
	}
	return None
}

const (
	// MaxTries is the largest count that the selector, which counts with
	// one digit, can hold.
	MaxTries = 9
	// DefaultTries is how often a new release may fail to confirm itself.
	DefaultTries = 3
	// maxSeq keeps the sequence number within what GRUB compares as a
	// number, on 32-bit machines too.
	maxSeq = 999_999_999
)

// Errors of transitions that do not fit the state.
var (
	ErrOnTrial  = errors.New("a slot is on trial already")
	ErrNoTrial  = errors.New("no slot is on trial")
	ErrNotTrial = errors.New("the running slot is not the one on trial")
)

// State is the whole of it. Its zero value is invalid; start with New.
type State struct {
	Seq       int  // grows by one at each write of the running system; the newer of two states wins
	Confirmed Slot // boots when nothing is on trial
	Trial     Slot // None, or the slot that is not Confirmed
	Tries     int  // boots that Trial still has, 0 to MaxTries
}

// New is the state of a machine that was just installed to slot confirmed.
func New(confirmed Slot) State {
	return State{Seq: 1, Confirmed: confirmed, Trial: None}
}

// Check returns an error when s breaks a rule that every state keeps.
func (s State) Check() error {
	switch {
	case s.Confirmed != A && s.Confirmed != B:
		return fmt.Errorf("slot state: confirmed slot %q", s.Confirmed)
	case s.Trial != None && s.Trial != s.Confirmed.Other():
		return fmt.Errorf("slot state: trial slot %q beside confirmed slot %q", s.Trial, s.Confirmed)
	case s.Tries < 0 || s.Tries > MaxTries:
		return fmt.Errorf("slot state: %d tries", s.Tries)
	case s.Trial == None && s.Tries != 0:
		return fmt.Errorf("slot state: %d tries of no slot", s.Tries)
	case s.Seq < 0 || s.Seq > maxSeq:
		return fmt.Errorf("slot state: sequence number %d", s.Seq)
	}
	return nil
}

// String is the state in one line, for logs.
func (s State) String() string {
	if s.Trial == None {
		return fmt.Sprintf("#%d: slot %s confirmed", s.Seq, s.Confirmed)
	}
	return fmt.Sprintf("#%d: slot %s confirmed, slot %s on trial with %d tries left", s.Seq, s.Confirmed, s.Trial, s.Tries)
}

// Describe tells an owner what the state means and what happens next.
func (s State) Describe() string {
	switch s.Phase() {
	case Settled:
		return fmt.Sprintf("Slot %s is confirmed and boots every time.", s.Confirmed)
	case OnTrial:
		times := fmt.Sprintf("%d more times", s.Tries)
		if s.Tries == 1 {
			times = "once more"
		}
		return fmt.Sprintf("Slot %s is on trial: it may start %s without being confirmed, then slot %s boots again.", s.Trial, times, s.Confirmed)
	case Spent:
		return fmt.Sprintf("Slot %s is on trial in its last boot: unless it is confirmed now, slot %s boots again.", s.Trial, s.Confirmed)
	}
	return "The slot state is damaged: slot a boots, or what the firmware finds first."
}
