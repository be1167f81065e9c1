package upgrade

import (
	"fmt"

	"github.com/cairn-os/cairn/pkg/slot"
	"github.com/cairn-os/cairn/pkg/update/history"
)

// Signs are what is left of earlier boots when the machine comes up.
type Signs struct {
	Running slot.Slot
	State   slot.State // of the boot selector
	// Counts says that the selector counts tries and starts the slot on trial by itself.
	Counts bool
	Tries  int          // that the slot was armed with
	Report *slot.Report // nil: there is none
	// Panic is the line by which the newest crash of a kernel since the arming tells of itself; "" without one.
	Panic string
	// Watchdog says that the hardware watchdog made the machine start again this time.
	Watchdog bool
}

// Step is what the machine does about an open attempt.
type Step string

// The steps.
const (
	StepNone    Step = "none"    // nothing was armed: the engine goes on with it when it is asked to
	StepWait    Step = "wait"    // armed, and not started yet: the next boot tries it
	StepJudge   Step = "judge"   // on trial, in this boot
	StepClose   Step = "close"   // it has ended: keep how
	StepEnd     Step = "end"     // it has ended, and the boot selector must be told: roll back, then keep how
	StepRestart Step = "restart" // tries are left that only a restart by this system starts
	StepGoBack  Step = "go back" // it was judged already: roll back and restart
)

// Aftermath says what to do about attempt a, whose state st is, and how it ended where it has.
func Aftermath(a history.Attempt, st history.State, s Signs) (Step, history.End) {
	switch {
	case s.State.Trial == a.Slot && s.Running == a.Slot:
		if a.Verdict == history.RolledBack {
			return StepGoBack, history.End{}
		}
		return StepJudge, history.End{}
	case !st.WasArmed(s.State):
		return StepNone, history.End{}
	case s.State.Trial == slot.None && s.State.Confirmed == a.Slot:
		return StepClose, history.End{Verdict: history.Confirmed, Text: "confirmed", Boots: max(a.Boots, 1), Evidence: a.Evidence}
	case s.State.Trial == slot.None:
		return StepClose, s.end(a) // init rolled back at the deadline
	case s.State.Tries == s.Tries:
		return StepWait, history.End{}
	case s.State.Tries == 0:
		return StepEnd, s.end(a)
	case !s.Counts:
		return StepRestart, history.End{}
	}
	// The selector would have started it, had it found it whole.
	return StepEnd, history.End{
		Verdict: history.RolledBack, Reason: history.Refused, Boots: s.boots(a),
		Text: fmt.Sprintf("slot %s was not started though it had tries left", a.Slot),
	}
}

// boots is how often the slot was started, as far as is known.
func (s Signs) boots(a history.Attempt) int {
	if s.State.Trial == a.Slot {
		return max(a.Boots, s.Tries-s.State.Tries)
	}
	return max(a.Boots, 1)
}

// end tells why a trial that is over came to nothing. What the release said itself counts most, then what its kernel left,
// then the watchdog; without any of these it either never came as far as init, or power was cut.
func (s Signs) end(a history.Attempt) history.End {
	e := history.End{Verdict: history.RolledBack, Boots: s.boots(a), Evidence: a.Evidence}
	last := s.Report != nil && s.Report.Slot == a.Slot && (s.State.Trial == slot.None || s.Report.Last(s.State))
	switch {
	case last && s.Report.Phase == "cairnd":
		e.Reason, e.Text = history.Cairnd, s.Report.Error
	case last && s.Report.Phase != "":
		e.Reason, e.Text = history.Phase, fmt.Sprintf("phase %s: %s", s.Report.Phase, s.Report.Error)
	case s.Panic != "":
		e.Reason, e.Text = history.Panic, s.Panic
	case s.Watchdog:
		e.Reason, e.Text = history.Hang, s.reached(last)
	case !last:
		e.Reason, e.Text = history.Silent, s.reached(last)
	case s.State.Trial == slot.None:
		e.Reason, e.Text = history.Cairnd, s.Report.String()
	default:
		e.Reason, e.Text = history.Interrupted, s.Report.String()
	}
	return e
}

// reached tells how far the last boot of the trial came.
func (s Signs) reached(last bool) string {
	switch {
	case last:
		return s.Report.String()
	case s.Report != nil:
		return "an earlier boot of the trial said: " + s.Report.String() + "; the last one said nothing"
	}
	return "no boot of the trial said anything"
}
