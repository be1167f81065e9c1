package slot

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// step is an event with its arguments.
type step struct {
	on  event
	do  func(State) (State, error)
	arg string
}

// steps are all events with all arguments, senseless ones too.
func steps() []step {
	list := []step{
		{attempt, func(s State) (State, error) { _, n, err := s.Attempt(); return n, err }, ""},
		{attempt, func(s State) (State, error) { _, n, err := s.Count(); return n, err }, "count"},
		{rollBack, State.RollBack, ""},
	}
	for _, slot := range []Slot{A, B, None, "", "c"} {
		list = append(list, step{confirm, func(s State) (State, error) { return s.Confirm(slot) }, string(slot)})
		for tries := -1; tries <= MaxTries+1; tries++ {
			list = append(list, step{arm, func(s State) (State, error) { return s.Arm(slot, tries) }, string(slot)})
		}
	}
	return list
}

// reachable are all states that events lead to from an installed machine, with
// the sequence number set to seq.
func reachable(t *testing.T, seq int) []State {
	t.Helper()
	seen := map[State]bool{}
	queue := []State{{seq, A, None, 0}, {seq, B, None, 0}}
	for len(queue) > 0 {
		s := queue[0]
		queue = queue[1:]
		if seen[s] {
			continue
		}
		seen[s] = true
		for _, st := range steps() {
			if next, err := st.do(s); err == nil {
				next.Seq = seq
				queue = append(queue, next)
			}
		}
	}
	var states []State
	for s := range seen {
		states = append(states, s)
	}
	return states
}

func TestTableIsWhole(t *testing.T) {
	seen := map[Phase][]event{}
	for _, row := range transitions {
		if slices.Contains(seen[row.from], row.on) {
			t.Errorf("%q on %q is there twice", row.on, row.from)
		}
		if (row.err == nil) == (len(row.to) == 0) {
			t.Errorf("%q on %q is neither a move nor a refusal", row.on, row.from)
		}
		seen[row.from] = append(seen[row.from], row.on)
	}
	all := []event{arm, attempt, confirm, rollBack}
	if diff := cmp.Diff(map[Phase][]event{Settled: all, OnTrial: all, Spent: all}, seen); diff != "" {
		t.Errorf("table (-want +got):\n%s", diff)
	}
}

// TestEveryMove does every event in every reachable state.
func TestEveryMove(t *testing.T) {
	states := reachable(t, 5)
	if want := 2 * (1 + 1 + MaxTries); len(states) != want {
		t.Fatalf("%d states are reachable; want %d: per confirmed slot one settled, one spent, one for each count", len(states), want)
	}
	moved, refused := 0, 0
	for _, seq := range []int{0, 5, maxSeq - 1, maxSeq} {
		for _, s := range states {
			s.Seq = seq
			for _, st := range steps() {
				next, err := st.do(s)
				if err != nil {
					refused++
					if next != s || !strings.Contains(err.Error(), string(st.on)) && st.arg != "count" {
						t.Errorf("%s %s of %v: refused with %v, state then %v", st.on, st.arg, s, err, next)
					}
					continue
				}
				moved++
				checkMove(t, s, st, next)
			}
		}
	}
	t.Logf("%d states, %d moves, %d refusals", len(states), moved, refused)
}

func checkMove(t *testing.T, s State, st step, next State) {
	t.Helper()
	if err := next.Check(); err != nil {
		t.Errorf("%s %s of %v: %v", st.on, st.arg, s, err)
	}
	row := transitions[slices.IndexFunc(transitions, func(r transition) bool { return r.from == s.Phase() && r.on == st.on })]
	if !slices.Contains(row.to, next.Phase()) {
		t.Errorf("%s of %v leads to %v, which the table does not have", st.on, s, next)
	}
	if st.on != confirm && next.Confirmed != s.Confirmed {
		t.Errorf("%s of %v changes the confirmed slot: %v", st.on, s, next)
	}
	if st.on == confirm && next.Confirmed != s.Trial {
		t.Errorf("confirm of %v makes %v", s, next)
	}
	if grown := next.Seq - s.Seq; grown < 0 || grown > 1 || (grown == 0) != (st.on == attempt && (st.arg == "" || next == s)) {
		t.Errorf("%s %s of %v: sequence number %d", st.on, st.arg, s, next.Seq)
	}
	if data, err := next.Encode(); err != nil {
		t.Errorf("encode %v: %v", next, err)
	} else if back, err := Decode(data); err != nil || back != next {
		t.Errorf("%v comes back as %v, %v", next, back, err)
	}
}

// TestEveryTrialEnds boots every reachable state over and over.
func TestEveryTrialEnds(t *testing.T) {
	for _, s := range reachable(t, 5) {
		for _, count := range []bool{false, true} {
			now, trials := s, 0
			for boot := range 2*MaxTries + 2 {
				try := State.Attempt
				if count {
					try = State.Count
				}
				slot, next, err := try(now)
				if err != nil {
					t.Fatalf("%v: %v", now, err)
				}
				if slot == s.Trial {
					trials++
				}
				if slot != s.Confirmed && boot >= s.Tries {
					t.Errorf("%v: boot %d starts slot %s", s, boot+1, slot)
				}
				now = next
			}
			if trials != s.Tries {
				t.Errorf("%v: %d boots of the slot on trial", s, trials)
			}
			if now.Confirmed != s.Confirmed || now.Trial != s.Trial {
				t.Errorf("%v becomes %v by booting", s, now)
			}
		}
	}
}

func TestInvalidStatesDoNotMove(t *testing.T) {
	for _, s := range []State{{}, {1, "c", None, 0}, {1, A, A, 1}, {1, A, None, 1}, {1, A, B, 10}, {-1, A, None, 0}} {
		for _, st := range steps() {
			if next, err := st.do(s); err == nil || next != s {
				t.Errorf("%s %s of invalid %v: %v, %v", st.on, st.arg, s, next, err)
			}
		}
		if s.Phase() != "" {
			t.Errorf("phase of %v: %q", s, s.Phase())
		}
	}
}

func TestDescribe(t *testing.T) {
	for _, tt := range []struct {
		s    State
		want string
	}{
		{onA, "Slot a is confirmed and boots every time."},
		{trialB, "Slot b is on trial: it may start 3 more times without being confirmed, then slot a boots again."},
		{State{6, B, A, 1}, "Slot a is on trial: it may start once more without being confirmed, then slot b boots again."},
		{spentB, "Slot b is on trial in its last boot: unless it is confirmed now, slot a boots again."},
		{State{}, "The slot state is damaged: slot a boots, or what the firmware finds first."},
	} {
		if got := tt.s.Describe(); got != tt.want {
			t.Errorf("%v: %q; want %q", tt.s, got, tt.want)
		}
	}
}
