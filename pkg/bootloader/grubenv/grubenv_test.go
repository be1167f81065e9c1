package grubenv

import (
	"errors"
	"testing"

	"github.com/cairn-os/cairn/pkg/bootloader/sysfile"
	"github.com/cairn-os/cairn/pkg/slot"
)

// TestOnFiles does an upgrade on real files, which are made writable around
// each change and at no other time.
func TestOnFiles(t *testing.T) {
	opened, open := 0, 0
	s := New(sysfile.Dir{Path: t.TempDir(), Writable: func() (func() error, error) {
		opened++
		open++
		return func() error { open--; return nil }, nil
	}})
	if _, err := s.Read(); !errors.Is(err, slot.ErrInvalid) {
		t.Errorf("Read of nothing: %v; want ErrInvalid", err)
	}
	state, err := s.Repair(slot.A)
	if err != nil || state.Confirmed != slot.A || state.Phase() != slot.Settled {
		t.Fatalf("Repair = %v, %v", state, err)
	}
	for _, step := range []func() (slot.State, error){
		func() (slot.State, error) { return s.Arm(slot.B, 3) },
		func() (slot.State, error) { return s.Confirm(slot.B) },
		func() (slot.State, error) { return s.Arm(slot.A, 2) },
		s.RollBack,
	} {
		if state, err = step(); err != nil {
			t.Fatal(err)
		}
		if got, err := s.Read(); err != nil || got != state {
			t.Errorf("Read = %v, %v; want %v", got, err, state)
		}
	}
	if again, err := s.Repair(slot.B); err != nil || again != state {
		t.Errorf("Repair of a machine in order: %v, %v; want %v", again, err, state)
	}
	if r, err := s.Restart(); err != nil || r.Argument != "" {
		t.Errorf("restart with %q, %v", r.Argument, err)
	}
	if opened != 5 || open != 0 {
		t.Errorf("made writable %d times, still so %d times; want 5 and 0", opened, open)
	}
}
