package history

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cairn-os/cairn/pkg/release"
	"github.com/cairn-os/cairn/pkg/slot"
)

// Reason is why a release did not become the confirmed one.
type Reason string

// The reasons.
const (
	Refused     Reason = "refused"     // the boot selector found the slot damaged
	Panic       Reason = "panic"       // the kernel panicked
	Hang        Reason = "hang"        // the watchdog reset the machine
	Silent      Reason = "silent"      // the kernel never came as far as init
	Phase       Reason = "phase"       // a phase of the boot failed
	Cairnd      Reason = "cairnd"      // no verdict by the deadline
	Health      Reason = "health"      // a health check failed
	Operator    Reason = "operator"    // somebody said so
	Interrupted Reason = "interrupted" // power cuts used up the tries, no fault was seen
)

// texts explain each reason to a person.
func (r Reason) text() (string, bool) {
	switch r {
	case Refused:
		return "the boot selector found its files damaged and did not start it", true
	case Panic:
		return "its kernel panicked", true
	case Hang:
		return "it hung until the watchdog reset the machine", true
	case Silent:
		return "its kernel never came as far as starting the system", true
	case Phase:
		return "a phase of its boot failed", true
	case Cairnd:
		return "cairnd gave no verdict before the deadline", true
	case Health:
		return "a health check did not pass before the deadline", true
	case Operator:
		return "an operator ended it", true
	case Interrupted:
		return "power cuts used up its tries; no fault of its own was seen", true
	}
	return "", false
}

// String is the reason in words for a person.
func (r Reason) String() string {
	if text, ok := r.text(); ok {
		return text
	}
	return "reason " + strconv.Quote(string(r))
}

// Quarantines tells whether a version that failed for r should not be offered again. It should after power cuts: those
// are not its fault.
func (r Reason) Quarantines() bool { return r != Interrupted && r != "" }

// Verdict is how an attempt ended.
type Verdict string

// The verdicts. Pending is that of an attempt that has not ended.
const (
	Pending    Verdict = ""
	Confirmed  Verdict = "confirmed"   // the release runs for good
	RolledBack Verdict = "rolled-back" // it was tried and the machine went back
	Abandoned  Verdict = "abandoned"   // it was given up before it was tried
)

// Evidence is what one check found.
type Evidence struct {
	Check string    `json:"check"` // the check's name
	OK    bool      `json:"ok"`
	Text  string    `json:"text"`            // what it saw, for a person
	Time  time.Time `json:"time"`            // when it last looked
	Count int       `json:"count,omitempty"` // how often it looked
}

// Transfer counts an upgrade's bytes.
type Transfer struct {
	Downloaded int64 `json:"downloaded"` // over the line, chunks and lists
	Reused     int64 `json:"reused"`     // of images, taken from the running slot
	Present    int64 `json:"present"`    // of images, already in place
	Written    int64 `json:"written"`    // to the medium
}

// Attempt is one try to bring a release to this machine.
type Attempt struct {
	ID      string       `json:"id"` // given by Begin
	From    release.Info `json:"from"`
	To      release.Info `json:"to"`
	Slot    slot.Slot    `json:"slot"` // the one that To is written to
	Started time.Time    `json:"started"`
	Armed   time.Time    `json:"armed,omitzero"` // when the boot selector was told to try it
	Ended   time.Time    `json:"ended,omitzero"`
	// Boots is how many trial boots are known of.
	Boots    int        `json:"boots,omitempty"`
	Resumed  int        `json:"resumed,omitempty"` // how often it went on after an interruption
	Snapshot string     `json:"snapshot,omitempty"`
	Verdict  Verdict    `json:"verdict,omitempty"`
	Reason   Reason     `json:"reason,omitempty"` // of RolledBack, and of Abandoned where there is one
	Text     string     `json:"text,omitempty"`   // the reason's particulars, for a person
	Evidence []Evidence `json:"evidence,omitempty"`
	Transfer Transfer   `json:"transfer"`
}

func (a Attempt) check() error {
	number, version, ok := parseID(a.ID)
	switch {
	case !ok || a.ID != makeID(number, version):
		return fmt.Errorf("attempt id %q", a.ID)
	case version != a.To.Version:
		return fmt.Errorf("attempt %s is to version %q", a.ID, a.To.Version)
	case a.Slot != slot.A && a.Slot != slot.B:
		return fmt.Errorf("attempt %s: slot %q", a.ID, a.Slot)
	case a.Verdict != Pending && a.Verdict != Confirmed && a.Verdict != RolledBack && a.Verdict != Abandoned:
		return fmt.Errorf("attempt %s: verdict %q", a.ID, a.Verdict)
	}
	if len(a.Reason) > 32 { // one that a later release knows is kept
		return fmt.Errorf("attempt %s: reason of %d bytes", a.ID, len(a.Reason))
	}
	return nil
}

// makeID is short to type, sorts as text up to a million attempts, and is a file name.
func makeID(number int, version string) string { return fmt.Sprintf("%06d-%s", number, version) }

func parseID(id string) (number int, version string, ok bool) {
	digits, version, ok := strings.Cut(id, "-")
	number, err := strconv.Atoi(digits)
	return number, version, ok && err == nil && number > 0 && release.CheckVersion(version) == nil
}

// Begin keeps a new attempt and returns it with its ID. Attempts beyond the last MaxAttempts are forgotten.
func (s *Store) Begin(a Attempt) (Attempt, error) {
	if err := release.CheckVersion(a.To.Version); err != nil {
		return a, fmt.Errorf("begin attempt: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	ids, newest, err := s.ids()
	if err != nil {
		return a, err
	}
	a.ID = makeID(newest+1, a.To.Version)
	if err := s.save(a); err != nil {
		return a, err
	}
	for len(ids) >= MaxAttempts {
		if err := s.remove(attemptFile(ids[0])); err != nil {
			return a, err
		}
		ids = ids[1:]
	}
	return a, nil
}

// Save replaces an attempt that Begin returned.
func (s *Store) Save(a Attempt) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.save(a)
}

func (s *Store) save(a Attempt) error {
	a.Started, a.Armed, a.Ended, a.Text = clean(a.Started), clean(a.Armed), clean(a.Ended), short(a.Text)
	a.Evidence = slices.Clone(a.Evidence[:min(len(a.Evidence), maxEvidence)])
	for i, e := range a.Evidence {
		a.Evidence[i] = Evidence{short(e.Check), e.OK, short(e.Text), clean(e.Time), e.Count}
	}
	if err := a.check(); err != nil {
		return fmt.Errorf("keep attempt: %w", err)
	}
	return s.write(attemptFile(a.ID), a)
}

// Attempt returns one attempt; false when it is not there.
func (s *Store) Attempt(id string) (Attempt, bool, error) {
	if _, _, ok := parseID(id); !ok {
		return Attempt{}, false, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.attempt(id)
}

func (s *Store) attempt(id string) (Attempt, bool, error) {
	var a Attempt
	found, err := s.read(attemptFile(id), &a, func() error {
		if a.ID != id {
			return fmt.Errorf("it holds attempt %q", a.ID)
		}
		return a.check()
	})
	if err != nil || !found {
		return Attempt{}, false, err
	}
	return a, true, nil
}

// Attempts returns all that are kept, the newest first.
func (s *Store) Attempts() ([]Attempt, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.attempts()
}

func (s *Store) attempts() ([]Attempt, error) {
	ids, _, err := s.ids()
	if err != nil {
		return nil, err
	}
	var all []Attempt
	for _, id := range slices.Backward(ids) {
		a, found, err := s.attempt(id)
		if err != nil {
			return nil, err
		}
		if found {
			all = append(all, a)
		}
	}
	return all, nil
}

// ids returns the attempts on the disk in their order, and the highest number ever given as far as it can be known:
// that of a damaged file counts.
func (s *Store) ids() (ids []string, newest int, err error) {
	entries, err := os.ReadDir(filepath.Join(s.dir, attemptsDir))
	if err != nil {
		return nil, 0, fmt.Errorf("list attempts: %w", err)
	}
	for _, e := range entries {
		name, whole := strings.CutSuffix(strings.TrimSuffix(e.Name(), damagedSuffix), ".json")
		number, _, ok := parseID(name)
		if !whole || !ok {
			continue
		}
		newest = max(newest, number)
		if !strings.HasSuffix(e.Name(), damagedSuffix) {
			ids = append(ids, name)
		}
	}
	slices.SortFunc(ids, func(a, b string) int {
		x, _, _ := parseID(a)
		y, _, _ := parseID(b)
		return x - y
	})
	return ids, newest, nil
}

func attemptFile(id string) string { return filepath.Join(attemptsDir, id+".json") }

// ErrNoAttempt says that an attempt is not kept, or not any more.
var ErrNoAttempt = errors.New("no such attempt")

// Close ends an open attempt: it records the verdict, puts a version that rolled back into quarantine unless the reason
// says that it is not at fault, and clears the state when it is the attempt's. It may be called again after a power cut.
func (s *Store) Close(id string, end End) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	a, found, err := s.attempt(id)
	if err != nil {
		return err
	}
	if !found {
		return fmt.Errorf("close attempt %s: %w", id, ErrNoAttempt)
	}
	a.Verdict, a.Reason, a.Text, a.Ended = end.Verdict, end.Reason, end.Text, end.Time
	a.Boots = max(a.Boots, end.Boots)
	if len(end.Evidence) > 0 {
		a.Evidence = end.Evidence
	}
	if err := s.save(a); err != nil {
		return err
	}
	if end.Verdict == RolledBack && end.Reason.Quarantines() {
		if err := s.quarantine(Quarantine{Version: a.To.Version, Reason: end.Reason, Text: end.Text, Attempt: id, Time: end.Time}); err != nil {
			return err
		}
	}
	var st State
	if found, err := s.read(stateFile, &st, func() error { return st.check() }); err != nil || !found || st.Attempt != id {
		return err
	}
	return s.remove(stateFile)
}

// End is how an attempt ended.
type End struct {
	Verdict  Verdict
	Reason   Reason
	Text     string // particulars, for a person
	Boots    int
	Evidence []Evidence // replaces what the attempt holds, when there is any
	Time     time.Time
}
