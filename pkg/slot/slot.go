// Package slot decides which of a machine's two copies of the system boots: the
// state as a pure value, its transitions, and its encoding for the boot
// selector. It writes nothing; package grubenv does.
//
//	          Arm(other, tries)
//	confirmed ────────────────▶ on trial ◀──┐ Attempt: tries-1,
//	    ▲ ▲                      │  │  └────┘ boots the trial slot
//	    │ └──── Confirm ─────────┘  │
//	    └────── RollBack ───────────┘   tries 0: Attempt boots the confirmed slot
//
// Tries are counted only on trial, so a machine whose power is cut every hour
// never uses up its confirmed slot.
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

// Arm puts trial on trial for the next tries boots.
func (s State) Arm(trial Slot, tries int) (State, error) {
	switch {
	case s.Trial != None:
		return s, fmt.Errorf("arm slot %s: %w: %s", trial, ErrOnTrial, s)
	case trial != s.Confirmed.Other():
		return s, fmt.Errorf("arm slot %s: it is not the inactive one: %s", trial, s)
	case tries < 1 || tries > MaxTries:
		return s, fmt.Errorf("arm slot %s: %d tries; want 1 to %d", trial, tries, MaxTries)
	}
	s.Trial, s.Tries = trial, tries
	return s.next("arm")
}

// Attempt is what the boot selector does at power-on: it returns the slot that
// boots, and the state it must have saved before it loads that slot's kernel.
// The sequence number stays, because the selector writes in place.
func (s State) Attempt() (Slot, State, error) {
	if err := s.Check(); err != nil {
		return None, s, fmt.Errorf("attempt: %w", err)
	}
	if s.Trial == None || s.Tries == 0 {
		return s.Confirmed, s, nil
	}
	s.Tries--
	return s.Trial, s, nil
}

// Confirm makes the slot on trial the confirmed one. running is the slot that
// says so about itself.
func (s State) Confirm(running Slot) (State, error) {
	switch {
	case s.Trial == None:
		return s, fmt.Errorf("confirm slot %s: %w: %s", running, ErrNoTrial, s)
	case running != s.Trial:
		return s, fmt.Errorf("confirm slot %s: %w: %s", running, ErrNotTrial, s)
	}
	s.Confirmed, s.Trial, s.Tries = s.Trial, None, 0
	return s.next("confirm")
}

// RollBack ends the trial in favour of the confirmed slot.
func (s State) RollBack() (State, error) {
	if s.Trial == None {
		return s, fmt.Errorf("roll back: %w: %s", ErrNoTrial, s)
	}
	s.Trial, s.Tries = None, 0
	return s.next("roll back")
}

func (s State) next(verb string) (State, error) {
	s.Seq++
	if err := s.Check(); err != nil {
		return s, fmt.Errorf("%s: %w", verb, err)
	}
	return s, nil
}
