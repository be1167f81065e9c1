package upgrade

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-os/cairn/pkg/release"
	"github.com/cairn-os/cairn/pkg/slot"
	"github.com/cairn-os/cairn/pkg/update/history"
)

func TestAftermath(t *testing.T) {
	attempt := history.Attempt{ID: "000007-1.1.0", To: release.Info{Version: "1.1.0"}, Slot: slot.B, Armed: time.Unix(1_800_000_000, 0)}
	state := history.State{Attempt: attempt.ID, Version: "1.1.0", Slot: slot.B, Step: history.StepArmed, Sequence: 5}
	trial := func(tries int) slot.State { return slot.State{Seq: 5, Confirmed: slot.A, Trial: slot.B, Tries: tries} }
	rolledBack := slot.State{Seq: 6, Confirmed: slot.A, Trial: slot.None}
	report := func(tries int, stage slot.Stage, phase, text string) *slot.Report {
		return &slot.Report{Seq: 5, Slot: slot.B, Tries: tries, Stage: stage, Phase: phase, Error: text}
	}
	judged := attempt
	judged.Verdict = history.RolledBack
	unarmed := state
	unarmed.Sequence = 0
	for _, tt := range []struct {
		name    string
		attempt history.Attempt
		state   history.State
		signs   Signs
		step    Step
		verdict history.Verdict
		reason  history.Reason
		boots   int
		text    string
	}{
		{"on trial", attempt, state, Signs{Running: slot.B, State: trial(2)}, StepJudge, "", "", 0, ""},
		{"on trial, judged, power cut before the rollback", judged, state, Signs{Running: slot.B, State: trial(1)}, StepGoBack, "", "", 0, ""},
		{"being written", attempt, unarmed, Signs{Running: slot.A, State: slot.State{Seq: 4, Confirmed: slot.A, Trial: slot.None}}, StepNone, "", "", 0, ""},
		{"about to be armed", attempt, state, Signs{Running: slot.A, State: slot.State{Seq: 4, Confirmed: slot.A, Trial: slot.None}}, StepNone, "", "", 0, ""},
		{"armed, not started", attempt, state, Signs{Running: slot.A, State: trial(3)}, StepWait, "", "", 0, ""},
		{"confirmed, power cut before it was noted", attempt, state, Signs{Running: slot.B, State: slot.State{Seq: 6, Confirmed: slot.B, Trial: slot.None}},
			StepClose, history.Confirmed, "", 1, "confirmed"},
		{"confirmed, went back by hand in the selector's fallback", attempt, state, Signs{Running: slot.A, State: slot.State{Seq: 6, Confirmed: slot.B, Trial: slot.None}},
			StepClose, history.Confirmed, "", 1, "confirmed"},
		{"refused by the selector", attempt, state, Signs{Running: slot.A, State: trial(2)}, StepEnd, history.RolledBack, history.Refused, 1, "not started"},
		{"firmware that does not count", attempt, state, Signs{Running: slot.A, State: trial(2), Report: report(2, slot.StageEarly, "", "")}, StepRestart, "", "", 0, ""},
		{"panic thrice", attempt, state, Signs{Running: slot.A, State: trial(0), Panic: "Kernel panic - not syncing: no init"},
			StepEnd, history.RolledBack, history.Panic, 3, "no init"},
		{"panic after init ended", attempt, state, Signs{Running: slot.A, State: trial(0), Panic: "Attempted to kill init", Report: report(0, slot.StageSystem, "", "")},
			StepEnd, history.RolledBack, history.Panic, 3, "kill init"},
		{"hang", attempt, state, Signs{Running: slot.A, State: trial(0), Watchdog: true, Report: report(0, slot.StageServices, "", "")},
			StepEnd, history.RolledBack, history.Hang, 3, "started its services"},
		{"hang before init", attempt, state, Signs{Running: slot.A, State: trial(0), Watchdog: true}, StepEnd, history.RolledBack, history.Hang, 3, "no boot of the trial said anything"},
		{"silent", attempt, state, Signs{Running: slot.A, State: trial(0)}, StepEnd, history.RolledBack, history.Silent, 3, "no boot of the trial said anything"},
		{"only the first boot spoke", attempt, state, Signs{Running: slot.A, State: trial(0), Report: report(2, slot.StageServices, "", "")},
			StepEnd, history.RolledBack, history.Silent, 3, "the last one said nothing"},
		{"verity", attempt, state, Signs{Running: slot.A, State: trial(0), Report: report(0, slot.StageEarly, "verity", "CAIRN_ROOT_B: hash mismatch")},
			StepEnd, history.RolledBack, history.Phase, 3, "phase verity: CAIRN_ROOT_B: hash mismatch"},
		{"the phase's word counts more than a reset by the watchdog", attempt, state,
			Signs{Running: slot.A, State: trial(0), Watchdog: true, Report: report(0, slot.StageSystem, "data", "e2fsck")},
			StepEnd, history.RolledBack, history.Phase, 3, "data"},
		{"power cuts", attempt, state, Signs{Running: slot.A, State: trial(0), Report: report(0, slot.StageServices, "", "")},
			StepEnd, history.RolledBack, history.Interrupted, 3, "started its services"},
		{"deadline, init rolled back", attempt, state, Signs{Running: slot.A, State: rolledBack, Report: report(2, slot.StageServices, "cairnd", "exit status 1")},
			StepClose, history.RolledBack, history.Cairnd, 1, "exit status 1"},
		{"deadline, without a word of cairnd", attempt, state, Signs{Running: slot.A, State: rolledBack, Report: report(2, slot.StageServices, "", "")},
			StepClose, history.RolledBack, history.Cairnd, 1, "started its services"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.signs.Tries, tt.signs.Counts = 3, tt.name != "firmware that does not count"
			step, end := Aftermath(tt.attempt, tt.state, tt.signs)
			if step != tt.step {
				t.Fatalf("step %q; want %q", step, tt.step)
			}
			got := history.End{Verdict: end.Verdict, Reason: end.Reason, Boots: end.Boots}
			if diff := cmp.Diff(history.End{Verdict: tt.verdict, Reason: tt.reason, Boots: tt.boots}, got); diff != "" {
				t.Errorf("end (-want +got):\n%s", diff)
			}
			if !strings.Contains(end.Text, tt.text) {
				t.Errorf("text %q; want it to hold %q", end.Text, tt.text)
			}
		})
	}
}
