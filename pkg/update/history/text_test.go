package history

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-os/cairn/pkg/slot"
)

func TestText(t *testing.T) {
	a := Attempt{
		ID: "000007-1.1.0-rc.1", From: v1, To: v2, Slot: slot.B, Started: noon, Armed: noon.Add(5 * time.Minute), Ended: noon.Add(20 * time.Minute),
		Boots: 2, Resumed: 1, Snapshot: "before-1.1.0", Verdict: RolledBack, Reason: Health, Text: "check till: not running",
		Evidence: []Evidence{{"node", true, "Ready", noon, 40}, {"till", false, "pod till-0 is in CrashLoopBackOff", noon, 38}},
		Transfer: Transfer{12_345_678, 80_000_000, 4096, 90_000_000},
	}
	for _, tt := range []struct{ name, got, want string }{
		{"describe", a.Describe(), `attempt      000007-1.1.0-rc.1
from         1.0.0 (Kubernetes v1.36.4, Linux 6.12.1)
to           1.1.0-rc.1 (Kubernetes v1.36.5, Linux 6.12.2), slot b
started      2026-11-22 12:00
armed        2026-11-22 12:05
ended        2026-11-22 12:20
trial boots  2
went on      1 times after an interruption
bytes        12.3 MB downloaded, 80.0 MB taken from the running slot, 4096 bytes already in place, 90.0 MB written
snapshot     before-1.1.0
outcome      rolled back: a health check did not pass before the deadline
             check till: not running
checks       ok node: Ready (2026-11-22 12:00, looked 40 times)
             failed till: pod till-0 is in CrashLoopBackOff (2026-11-22 12:00, looked 38 times)
`},
		{"line", a.String(), "000007-1.1.0-rc.1: 1.0.0 to 1.1.0-rc.1, slot b: rolled back: a health check did not pass before the deadline"},
		{"table", Table([]Attempt{a, {ID: "000006-1.0.0", From: v1, To: v1, Slot: slot.A, Started: noon, Verdict: Abandoned, Text: "the line was down"}}),
			`ATTEMPT            STARTED           FROM   TO          SLOT  OUTCOME
000007-1.1.0-rc.1  2026-11-22 12:00  1.0.0  1.1.0-rc.1  b     rolled back: a health check did not pass before the deadline
000006-1.0.0       2026-11-22 12:00  1.0.0  1.0.0       a     abandoned: the line was down
`},
		{"empty table", Table(nil), "This machine has not been upgraded yet.\n"},
		{"quarantine", QuarantineTable([]Quarantine{{"1.1.0", Panic, "BUG: oops", a.ID, noon}}), `VERSION  SINCE             ATTEMPT            REASON
1.1.0    2026-11-22 12:00  000007-1.1.0-rc.1  its kernel panicked: BUG: oops
`},
		{"empty quarantine", QuarantineTable(nil), "No version is in quarantine.\n"},
		{"state", State{Version: "1.1.0", Slot: slot.B, Step: StepWrite, Problem: "the line is down"}.String(),
			"upgrade to 1.1.0 in slot b: writing the inactive slot; stopped: the line is down"},
	} {
		if diff := cmp.Diff(tt.want, tt.got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
	for _, r := range []Reason{Refused, Panic, Hang, Silent, Phase, Cairnd, Health, Operator, Interrupted} {
		if text, ok := r.text(); !ok || text != r.String() {
			t.Errorf("reason %s has no text", string(r))
		}
	}
}
