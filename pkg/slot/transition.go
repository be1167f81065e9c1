package slot

import (
	"fmt"
	"slices"
)

// Phase is where in an upgrade a state is. It follows from the state and is
// stored nowhere.
type Phase string

// The phases of valid states; that of an invalid one is "".
const (
	Settled Phase = "settled"  // nothing is on trial
	OnTrial Phase = "on trial" // the next boot is the trial slot's
	Spent   Phase = "spent"    // on trial still, but the next boot is the confirmed slot's
)

// Phase returns where in an upgrade s is.
func (s State) Phase() Phase {
	switch {
	case s.Check() != nil:
		return ""
	case s.Trial == None:
		return Settled
	case s.Tries == 0:
		return Spent
	}
	return OnTrial
}

// event is one of the four things that happen to a state.
type event string

const (
	arm      event = "arm"
	attempt  event = "attempt"
	confirm  event = "confirm"
	rollBack event = "roll back"
)

// transition is a row of the table: an event in a phase leads to one of the
// phases in to, or is refused because of err.
type transition struct {
	from Phase
	on   event
	to   []Phase
	err  error
}

// transitions holds every phase with every event.
var transitions = []transition{
	{Settled, arm, []Phase{OnTrial}, nil},
	{Settled, attempt, []Phase{Settled}, nil},
	{Settled, confirm, nil, ErrNoTrial},
	{Settled, rollBack, nil, ErrNoTrial},

	{OnTrial, arm, nil, ErrOnTrial},
	{OnTrial, attempt, []Phase{OnTrial, Spent}, nil},
	{OnTrial, confirm, []Phase{Settled}, nil},
	{OnTrial, rollBack, []Phase{Settled}, nil},

	{Spent, arm, nil, ErrOnTrial},
	{Spent, attempt, []Phase{Spent}, nil},
	{Spent, confirm, []Phase{Settled}, nil},
	{Spent, rollBack, []Phase{Settled}, nil},
}

// move does what all events have in common: the state before and the one after
// keep the rules, and the table has the way between them. what names the move
// for errors. A refused move returns s as it was.
func (s State) move(e event, what string, change func(*State)) (State, error) {
	if err := s.Check(); err != nil {
		return s, fmt.Errorf("%s: %w", what, err)
	}
	from := s.Phase()
	i := slices.IndexFunc(transitions, func(t transition) bool { return t.from == from && t.on == e })
	if i < 0 {
		return s, fmt.Errorf("%s: no such move: %s", what, s)
	}
	row := transitions[i]
	if row.err != nil {
		return s, fmt.Errorf("%s: %w: %s", what, row.err, s)
	}
	next := s
	change(&next)
	if err := next.Check(); err != nil {
		return s, fmt.Errorf("%s: %w", what, err)
	}
	if !slices.Contains(row.to, next.Phase()) {
		return s, fmt.Errorf("%s: it would lead from %q to %q", what, from, next.Phase())
	}
	return next, nil
}

// Arm puts trial on trial for the next tries boots.
func (s State) Arm(trial Slot, tries int) (State, error) {
	what := fmt.Sprintf("arm slot %s", trial)
	if s.Phase() == Settled {
		switch {
		case trial != s.Confirmed.Other():
			return s, fmt.Errorf("%s: it is not the inactive one: %s", what, s)
		case tries < 1 || tries > MaxTries:
			return s, fmt.Errorf("%s: %d tries; want 1 to %d", what, tries, MaxTries)
		}
	}
	return s.move(arm, what, func(n *State) { n.Trial, n.Tries, n.Seq = trial, tries, n.Seq+1 })
}

// Attempt is what the boot selector does at power-on: it returns the slot that
// boots, and the state it must have saved before it loads that slot's kernel.
// The sequence number stays, because the selector writes in place.
func (s State) Attempt() (Slot, State, error) {
	boots := s.Confirmed
	if s.Phase() == OnTrial {
		boots = s.Trial
	}
	next, err := s.move(attempt, "attempt", func(n *State) {
		if boots == n.Trial {
			n.Tries--
		}
	})
	if err != nil {
		return None, s, err
	}
	return boots, next, nil
}

// Count is Attempt for firmware that cannot count: the running system does it
// before it asks for the boot, and writes the state to the other copy, so its
// sequence number is the next one. A state that no attempt changes stays as it
// is.
func (s State) Count() (Slot, State, error) {
	boots, next, err := s.Attempt()
	if err != nil || next == s {
		return boots, next, err
	}
	next.Seq++
	if err := next.Check(); err != nil {
		return None, s, fmt.Errorf("count: %w", err)
	}
	return boots, next, nil
}

// Confirm makes the slot on trial the confirmed one. running is the slot that
// says so about itself.
func (s State) Confirm(running Slot) (State, error) {
	what := fmt.Sprintf("confirm slot %s", running)
	if s.Trial != None && running != s.Trial {
		return s, fmt.Errorf("%s: %w: %s", what, ErrNotTrial, s)
	}
	return s.move(confirm, what, func(n *State) { n.Confirmed, n.Trial, n.Tries, n.Seq = running, None, 0, n.Seq+1 })
}

// RollBack ends the trial in favour of the confirmed slot.
func (s State) RollBack() (State, error) {
	return s.move(rollBack, "roll back", func(n *State) { n.Trial, n.Tries, n.Seq = None, 0, n.Seq+1 })
}
