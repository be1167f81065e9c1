package history

import (
	"fmt"
	"time"

	"github.com/cairn-os/cairn/pkg/slot"
)

// Step is how far an upgrade has come.
type Step string

// The steps, in their order. What each leaves behind when power is cut:
const (
	StepPrepare Step = "prepare" // nothing was written yet
	StepWrite   Step = "write"   // the inactive slot has no boot file system, or is whole
	StepReady   Step = "ready"   // the inactive slot is whole and was read back; nothing is armed
	StepArm     Step = "arm"     // the boot selector is being told, or was: see State.Sequence
	StepArmed   Step = "armed"   // the next boot is a trial of the new release
)

func (s Step) text() string {
	switch s {
	case StepPrepare:
		return "preparing"
	case StepWrite:
		return "writing the inactive slot"
	case StepReady:
		return "written and verified"
	case StepArm:
		return "handing over to the boot selector"
	case StepArmed:
		return "starts at the next boot"
	}
	return ""
}

// State is the upgrade under way. It is written when a step begins, not for every chunk: what is in place is found out
// by reading the slot.
type State struct {
	Attempt  string    `json:"attempt"` // its ID
	Version  string    `json:"version"`
	Slot     slot.Slot `json:"slot"` // the one that is written
	Step     Step      `json:"step"`
	NoReboot bool      `json:"no_reboot,omitempty"` // the operator wants to reboot by hand
	// Sequence is the number of the slot state that arms the slot, from StepArm on. If the boot selector's state has this
	// number or a higher one, the arming was done, whatever Step says.
	Sequence int       `json:"sequence,omitempty"`
	Problem  string    `json:"problem,omitempty"` // why it stopped, if it did; it goes on at the next run
	Since    time.Time `json:"since"`             // of Step
}

func (s State) check() error {
	if _, version, ok := parseID(s.Attempt); !ok || version != s.Version {
		return fmt.Errorf("upgrade state: attempt %q of version %q", s.Attempt, s.Version)
	}
	if s.Slot != slot.A && s.Slot != slot.B {
		return fmt.Errorf("upgrade state: slot %q", s.Slot)
	}
	if s.Step.text() == "" {
		return fmt.Errorf("upgrade state: step %q", s.Step)
	}
	return nil
}

// WasArmed tells whether the boot selector, whose state is now, has ever been told to try the slot in this attempt.
func (s State) WasArmed(now slot.State) bool { return s.Sequence > 0 && now.Seq >= s.Sequence }
