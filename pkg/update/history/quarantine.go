package history

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cairn-os/cairn/pkg/release"
)

// Quarantine says that a version failed on this machine and is not to be tried again until an operator clears it.
type Quarantine struct {
	Version string    `json:"version"`
	Reason  Reason    `json:"reason"`
	Text    string    `json:"text,omitempty"`    // particulars, for a person
	Attempt string    `json:"attempt,omitempty"` // where its evidence is, as long as that is kept
	Time    time.Time `json:"time"`
}

// ErrNotQuarantined says that a version is free already.
var ErrNotQuarantined = errors.New("not in quarantine")

type quarantineList struct {
	Versions []Quarantine `json:"versions"`
}

func (q quarantineList) check() error {
	for _, e := range q.Versions {
		if err := release.CheckVersion(e.Version); err != nil {
			return err
		}
	}
	return nil
}

// Quarantined returns all versions in quarantine, the latest first.
func (s *Store) Quarantined() ([]Quarantine, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	q, err := s.quarantined()
	slices.Reverse(q.Versions)
	return q.Versions, err
}

// InQuarantine returns why version must not be tried; false when it may.
func (s *Store) InQuarantine(version string) (Quarantine, bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	q, err := s.quarantined()
	if err != nil {
		return Quarantine{}, false, err
	}
	for _, e := range q.Versions {
		if e.Version == version {
			return e, true, nil
		}
	}
	return Quarantine{}, false, nil
}

// AddQuarantine puts a version into quarantine, or replaces what is said of it there.
func (s *Store) AddQuarantine(e Quarantine) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.quarantine(e)
}

func (s *Store) quarantine(e Quarantine) error {
	q, err := s.quarantined()
	if err != nil {
		return err
	}
	e.Text, e.Time = short(e.Text), clean(e.Time)
	q.Versions = append(slices.DeleteFunc(q.Versions, func(o Quarantine) bool { return o.Version == e.Version }), e)
	q.Versions = q.Versions[max(0, len(q.Versions)-MaxQuarantine):]
	if err := q.check(); err != nil {
		return fmt.Errorf("quarantine: %w", err)
	}
	return s.write(quarantineFile, q)
}

// Release takes a version out of quarantine at an operator's word. It wraps ErrNotQuarantined when it is not there.
func (s *Store) Release(version string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	q, err := s.quarantined()
	if err != nil {
		return err
	}
	n := len(q.Versions)
	q.Versions = slices.DeleteFunc(q.Versions, func(e Quarantine) bool { return e.Version == version })
	if len(q.Versions) == n {
		return fmt.Errorf("version %s: %w", version, ErrNotQuarantined)
	}
	return s.write(quarantineFile, q)
}

// quarantined reads the list. When its file is damaged the attempts tell what must have been in it; what an operator
// had released meanwhile is in it again, which is the safe side.
func (s *Store) quarantined() (quarantineList, error) {
	var q quarantineList
	before := len(s.problems)
	found, err := s.read(quarantineFile, &q, func() error { return q.check() })
	if err != nil || found {
		return q, err
	}
	q = quarantineList{}
	if len(s.problems) == before {
		return q, nil // there never was one
	}
	all, err := s.attempts()
	if err != nil {
		return q, err
	}
	for _, a := range slices.Backward(all) {
		if a.Verdict == RolledBack && a.Reason.Quarantines() {
			q.Versions = append(slices.DeleteFunc(q.Versions, func(o Quarantine) bool { return o.Version == a.To.Version }),
				Quarantine{a.To.Version, a.Reason, a.Text, a.ID, a.Ended})
		}
	}
	return q, s.write(quarantineFile, q)
}
