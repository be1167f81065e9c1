package history

import (
	"fmt"
	"strings"
	"text/tabwriter"
	"time"
)

// Bytes is n in the unit that a person would choose.
func Bytes(n int64) string {
	switch {
	case n < 10_000:
		return fmt.Sprintf("%d bytes", n)
	case n < 10_000_000:
		return fmt.Sprintf("%.1f kB", float64(n)/1e3)
	default:
		return fmt.Sprintf("%.1f MB", float64(n)/1e6)
	}
}

// when is a time as people here write it; "-" for none.
func when(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format("2006-01-02 15:04")
}

// String is the state in one line.
func (s State) String() string {
	text := fmt.Sprintf("upgrade to %s in slot %s: %s", s.Version, s.Slot, s.Step.text())
	if s.Problem != "" {
		text += "; stopped: " + s.Problem
	}
	return text
}

// Outcome is how the attempt ended, in a few words.
func (a Attempt) Outcome() string {
	switch a.Verdict {
	case Confirmed:
		return "confirmed"
	case RolledBack:
		return "rolled back: " + a.Reason.String()
	case Abandoned:
		if a.Text != "" {
			return "abandoned: " + a.Text
		}
		return "abandoned"
	}
	if !a.Armed.IsZero() {
		return "on trial"
	}
	return "under way"
}

// String is the attempt in one line.
func (a Attempt) String() string {
	return fmt.Sprintf("%s: %s to %s, slot %s: %s", a.ID, a.From.Version, a.To.Version, a.Slot, a.Outcome())
}

// Describe is all that is known of the attempt, in lines.
func (a Attempt) Describe() string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 8, 2, ' ', 0)
	line := func(name, format string, args ...any) { fmt.Fprintf(w, name+"\t"+format+"\n", args...) }
	line("attempt", "%s", a.ID)
	line("from", "%s (Kubernetes %s, Linux %s)", a.From.Version, a.From.Kubernetes, a.From.Kernel)
	line("to", "%s (Kubernetes %s, Linux %s), slot %s", a.To.Version, a.To.Kubernetes, a.To.Kernel, a.Slot)
	line("started", "%s", when(a.Started))
	if !a.Armed.IsZero() {
		line("armed", "%s", when(a.Armed))
	}
	if !a.Ended.IsZero() {
		line("ended", "%s", when(a.Ended))
	}
	if a.Boots > 0 {
		line("trial boots", "%d", a.Boots)
	}
	if a.Resumed > 0 {
		line("went on", "%d times after an interruption", a.Resumed)
	}
	if a.Transfer != (Transfer{}) {
		line("bytes", "%s", a.Transfer)
	}
	if a.Snapshot != "" {
		line("snapshot", "%s", a.Snapshot)
	}
	line("outcome", "%s", a.Outcome())
	if a.Text != "" && a.Verdict != Abandoned {
		line("", "%s", a.Text)
	}
	for i, e := range a.Evidence {
		name, result := "", "failed"
		if i == 0 {
			name = "checks"
		}
		if e.OK {
			result = "ok"
		}
		line(name, "%s %s: %s (%s, looked %d times)", result, e.Check, e.Text, when(e.Time), e.Count)
	}
	_ = w.Flush() // writes to memory
	return b.String()
}

// String names the numbers.
func (t Transfer) String() string {
	return fmt.Sprintf("%s downloaded, %s taken from the running slot, %s already in place, %s written",
		Bytes(t.Downloaded), Bytes(t.Reused), Bytes(t.Present), Bytes(t.Written))
}

// Table shows attempts, one in a line.
func Table(attempts []Attempt) string {
	if len(attempts) == 0 {
		return "This machine has not been upgraded yet.\n"
	}
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "ATTEMPT\tSTARTED\tFROM\tTO\tSLOT\tOUTCOME")
	for _, a := range attempts {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", a.ID, when(a.Started), a.From.Version, a.To.Version, a.Slot, a.Outcome())
	}
	_ = w.Flush() // writes to memory
	return b.String()
}

// QuarantineTable shows versions in quarantine, one in a line.
func QuarantineTable(list []Quarantine) string {
	if len(list) == 0 {
		return "No version is in quarantine.\n"
	}
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "VERSION\tSINCE\tATTEMPT\tREASON")
	for _, q := range list {
		reason := q.Reason.String()
		if q.Text != "" {
			reason += ": " + q.Text
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", q.Version, when(q.Time), q.Attempt, reason)
	}
	_ = w.Flush() // writes to memory
	return b.String()
}
