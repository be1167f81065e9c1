package history

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-os/cairn/pkg/release"
	"github.com/cairn-os/cairn/pkg/slot"
)

var (
	noon = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	v1   = release.Info{Version: "1.0.0", Kubernetes: "v1.36.4", Kernel: "6.12.1"}
	v2   = release.Info{Version: "1.1.0-rc.1", Kubernetes: "v1.36.5", Kernel: "6.12.2"}
)

func open(t *testing.T) (*Store, *bytes.Buffer) {
	t.Helper()
	var log bytes.Buffer
	s, err := Open(filepath.Join(t.TempDir(), "upgrade"), slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	return s, &log
}

func begin(t *testing.T, s *Store) Attempt {
	t.Helper()
	a, err := s.Begin(Attempt{From: v1, To: v2, Slot: slot.B, Started: noon})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestAttemptRoundTrip(t *testing.T) {
	s, _ := open(t)
	a := begin(t, s)
	if a.ID != "000001-1.1.0-rc.1" {
		t.Errorf("id = %s", a.ID)
	}
	a.Armed, a.Boots, a.Snapshot = noon.Add(time.Minute), 1, "before-1.1.0"
	a.Evidence = []Evidence{{"node", true, "Ready", noon, 12}}
	a.Transfer = Transfer{1, 2, 3, 4}
	if err := s.Save(a); err != nil {
		t.Fatal(err)
	}
	got, found, err := s.Attempt(a.ID)
	if err != nil || !found {
		t.Fatal(found, err)
	}
	if diff := cmp.Diff(a, got); diff != "" {
		t.Error(diff)
	}
	for _, id := range []string{"000009-1.0.0", "../state", "", "1"} {
		if _, found, err := s.Attempt(id); found || err != nil {
			t.Errorf("attempt %q: %v, %v", id, found, err)
		}
	}
}

func TestOnlyTheLastAttemptsAreKept(t *testing.T) {
	s, _ := open(t)
	for range MaxAttempts + 5 {
		begin(t, s)
	}
	all, err := s.Attempts()
	if err != nil {
		t.Fatal(err)
	}
	if len(all) != MaxAttempts || all[0].ID != "000025-1.1.0-rc.1" || all[MaxAttempts-1].ID != "000006-1.1.0-rc.1" {
		t.Errorf("%d attempts from %s to %s", len(all), all[0].ID, all[len(all)-1].ID)
	}
}

func TestAttemptIsBounded(t *testing.T) {
	s, _ := open(t)
	a := begin(t, s)
	a.Text = strings.Repeat("ä", 5000)
	for i := range 5000 {
		a.Evidence = append(a.Evidence, Evidence{Check: fmt.Sprint(i), Text: strings.Repeat("x", 5000)})
	}
	if err := s.Save(a); err != nil {
		t.Fatal(err)
	}
	got, found, err := s.Attempt(a.ID)
	if err != nil || !found || len(got.Evidence) != maxEvidence || len(got.Text) > maxText || !strings.HasSuffix(got.Text, "ä...") {
		t.Errorf("%v, %v: %d pieces of evidence, text of %d", found, err, len(got.Evidence), len(got.Text))
	}
}

// TestAttemptOfANewerRelease reads what a later version of this package may write.
func TestAttemptOfANewerRelease(t *testing.T) {
	s, _ := open(t)
	a := begin(t, s)
	path := filepath.Join(s.dir, attemptFile(a.ID))
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	data = []byte(strings.Replace(string(data), "{", `{"new_field": [1], "verdict": "rolled-back", "reason": "sunspots",`, 1))
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	got, found, err := s.Attempt(a.ID)
	if err != nil || !found || got.Outcome() != `rolled back: reason "sunspots"` {
		t.Errorf("%v, %v, %s", found, err, got.Outcome())
	}
}

func TestStateRoundTrip(t *testing.T) {
	s, _ := open(t)
	if _, found, err := s.State(); found || err != nil {
		t.Fatal(found, err)
	}
	a := begin(t, s)
	want := State{Attempt: a.ID, Version: v2.Version, Slot: slot.B, Step: StepWrite, Problem: "the line is down", Since: noon}
	if err := s.SetState(want); err != nil {
		t.Fatal(err)
	}
	got, found, err := s.State()
	if err != nil || !found || got != want {
		t.Errorf("%+v, %v, %v; want %+v", got, found, err, want)
	}
	for range 2 {
		if err := s.ClearState(); err != nil {
			t.Fatal(err)
		}
	}
	for name, bad := range map[string]State{
		"empty":         {},
		"other version": {Attempt: a.ID, Version: "9.9.9", Slot: slot.B, Step: StepWrite},
		"no slot":       {Attempt: a.ID, Version: v2.Version, Slot: slot.None, Step: StepWrite},
		"no step":       {Attempt: a.ID, Version: v2.Version, Slot: slot.B},
	} {
		if err := s.SetState(bad); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestWasArmed(t *testing.T) {
	for _, tt := range []struct {
		sequence, now int
		want          bool
	}{{0, 5, false}, {7, 6, false}, {7, 7, true}, {7, 8, true}} {
		if got := (State{Sequence: tt.sequence}).WasArmed(slot.State{Seq: tt.now}); got != tt.want {
			t.Errorf("sequence %d, boot selector at %d: %v; want %v", tt.sequence, tt.now, got, tt.want)
		}
	}
}

func TestClose(t *testing.T) {
	for _, tt := range []struct {
		end        End
		quarantine bool
	}{
		{End{Verdict: Confirmed, Time: noon}, false},
		{End{Verdict: Abandoned, Reason: Operator, Time: noon}, false},
		{End{Verdict: RolledBack, Reason: Interrupted, Time: noon}, false},
		{End{Verdict: RolledBack, Reason: Health, Text: "till is not running", Boots: 2, Time: noon, Evidence: []Evidence{{Check: "till", Time: noon}}}, true},
	} {
		s, _ := open(t)
		a := begin(t, s)
		if err := s.SetState(State{Attempt: a.ID, Version: v2.Version, Slot: slot.B, Step: StepArmed}); err != nil {
			t.Fatal(err)
		}
		for range 2 { // as after a power cut between its writes
			if err := s.Close(a.ID, tt.end); err != nil {
				t.Fatal(err)
			}
		}
		got, _, err := s.Attempt(a.ID)
		if err != nil || got.Verdict != tt.end.Verdict || got.Boots != tt.end.Boots || len(got.Evidence) != len(tt.end.Evidence) || got.Ended != noon {
			t.Errorf("%+v: %+v, %v", tt.end, got, err)
		}
		if _, found, err := s.State(); found || err != nil {
			t.Errorf("%+v: the state is still there (%v)", tt.end, err)
		}
		q, found, err := s.InQuarantine(v2.Version)
		if err != nil || found != tt.quarantine {
			t.Errorf("%+v: in quarantine %v, %v", tt.end, found, err)
		}
		if found && (q.Attempt != a.ID || q.Text != tt.end.Text) {
			t.Errorf("quarantine %+v", q)
		}
	}
	s, _ := open(t)
	if err := s.Close("000001-1.0.0", End{Verdict: Confirmed}); !errors.Is(err, ErrNoAttempt) {
		t.Errorf("Close of nothing: %v", err)
	}
}

func TestQuarantine(t *testing.T) {
	s, _ := open(t)
	for _, version := range []string{"1.0.0", "1.1.0", "1.0.0"} {
		if err := s.AddQuarantine(Quarantine{Version: version, Reason: Panic, Time: noon}); err != nil {
			t.Fatal(err)
		}
	}
	list, err := s.Quarantined()
	if err != nil || len(list) != 2 || list[0].Version != "1.0.0" || list[1].Version != "1.1.0" {
		t.Errorf("%+v, %v", list, err)
	}
	if err := s.Release("1.0.0"); err != nil {
		t.Fatal(err)
	}
	if err := s.Release("1.0.0"); !errors.Is(err, ErrNotQuarantined) {
		t.Errorf("second Release: %v", err)
	}
	if _, found, err := s.InQuarantine("1.0.0"); found || err != nil {
		t.Error(found, err)
	}
	if err := s.AddQuarantine(Quarantine{Version: "../x"}); err == nil {
		t.Error("no version, and no error")
	}
	for i := range MaxQuarantine + 3 {
		if err := s.AddQuarantine(Quarantine{Version: fmt.Sprintf("2.0.%d", i)}); err != nil {
			t.Fatal(err)
		}
	}
	if list, err := s.Quarantined(); err != nil || len(list) != MaxQuarantine || list[0].Version != "2.0.52" {
		t.Errorf("%d versions, first %s, %v", len(list), list[0].Version, err)
	}
}

func TestDamagedFilesAreSetAside(t *testing.T) {
	for _, damage := range []string{"", "{", "[]", `{"attempt":"x"} more`, `{} {}`, strings.Repeat(" ", maxFile+1), "\x00\x00\x00"} {
		s, log := open(t)
		a := begin(t, s)
		if err := s.Close(a.ID, End{Verdict: RolledBack, Reason: Panic, Text: "oops", Time: noon}); err != nil {
			t.Fatal(err)
		}
		gone := begin(t, s)
		for _, name := range []string{stateFile, quarantineFile, attemptFile(gone.ID)} {
			if err := os.WriteFile(filepath.Join(s.dir, name), []byte(damage), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if _, found, err := s.State(); found || err != nil {
			t.Errorf("%q: state %v, %v", damage, found, err)
		}
		if all, err := s.Attempts(); err != nil || len(all) != 1 || all[0].ID != a.ID {
			t.Errorf("%q: attempts %v, %v", damage, all, err)
		}
		if damage != `{} {}` && damage != "{" && damage != "" {
			continue
		}
		if q, found, err := s.InQuarantine(v2.Version); err != nil || !found || q.Text != "oops" {
			t.Errorf("%q: a lost quarantine was not made anew: %+v, %v, %v", damage, q, found, err)
		}
		if n := len(s.Problems()); n != 3 || strings.Count(log.String(), "set aside") != 3 {
			t.Errorf("%q: %d problems told, log %s", damage, n, log)
		}
		if _, err := os.Stat(filepath.Join(s.dir, attemptFile(gone.ID)+damagedSuffix)); err != nil {
			t.Error(err)
		}
		if next := begin(t, s); next.ID != "000003-1.1.0-rc.1" {
			t.Errorf("%q: next attempt is %s: the number of a damaged one was given again", damage, next.ID)
		}
	}
}

func TestUnreadableIsAnError(t *testing.T) {
	s, _ := open(t)
	if err := os.Mkdir(filepath.Join(s.dir, stateFile), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.State(); err == nil {
		t.Error("a state that cannot be read counts as none")
	}
	if _, err := os.Stat(filepath.Join(s.dir, stateFile)); errors.Is(err, fs.ErrNotExist) {
		t.Error("it was set aside")
	}
}

func FuzzState(f *testing.F) {
	f.Add([]byte(`{"attempt":"000001-1.0.0","version":"1.0.0","slot":"a","step":"write","since":"2026-11-22T12:00:00Z"}`))
	f.Add([]byte(`{"id":"000001-1.0.0","to":{"version":"1.0.0"},"slot":"b","evidence":[{}]}`))
	f.Add([]byte(`{"versions":[{"version":"1.0.0"}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var st State
		if decode(data, &st) == nil && st.check() == nil {
			_ = st.String()
		}
		var a Attempt
		if decode(data, &a) == nil && a.check() == nil {
			_ = a.Describe()
		}
		var q quarantineList
		if decode(data, &q) == nil && q.check() == nil {
			_ = QuarantineTable(q.Versions)
		}
	})
}
