// Package grubenv keeps the slot state for GRUB, which reads and counts it by
// images/<target>/grub.cfg.
//
// The state is in two files of one sector each (package sysfile). GRUB takes
// the newer valid one, and counts a try by overwriting a digit in place before
// it loads the kernel. A power cut leaves
//
//   - in Arm, Confirm and RollBack: the state before, or the one after. The copy
//     that is half-written has no valid seal, and the other one counts;
//   - in GRUB's own write: the count before or after, or a torn copy, and then
//     the state before Arm counts: the confirmed slot boots;
//   - in WriteReport: the report before, the new one, or none.
package grubenv

import (
	"github.com/cairn-os/cairn/pkg/bootloader"
	"github.com/cairn-os/cairn/pkg/bootloader/sysfile"
	"github.com/cairn-os/cairn/pkg/slot"
)

// Store is a bootloader.Backend on CAIRN_SYS.
type Store struct {
	sysfile.Reports
	disk   sysfile.Disk
	copies sysfile.Copies
}

var _ bootloader.Backend = (*Store)(nil)

// New returns the store on disk: sysfile.Dir on a node.
func New(disk sysfile.Disk) *Store {
	return &Store{Reports: sysfile.Reports{Disk: disk}, disk: disk, copies: sysfile.Copies{Disk: disk}}
}

// Read implements bootloader.Backend. Without a valid state GRUB boots slot a.
func (s *Store) Read() (state slot.State, err error) {
	err = s.disk.Do(false, func() error {
		state, err = s.copies.Read()
		return err
	})
	return state, err
}

// change writes what a transition makes of the state; before goes first.
func (s *Store) change(before func() error, transition func(slot.State) (slot.State, error)) (state slot.State, err error) {
	err = s.disk.Do(true, func() error {
		if state, err = s.copies.Read(); err != nil {
			return err
		}
		if state, err = transition(state); err != nil {
			return err
		}
		if before != nil {
			if err := before(); err != nil {
				return err
			}
		}
		return s.copies.Write(state)
	})
	return state, err
}

// Arm implements bootloader.Backend.
func (s *Store) Arm(trial slot.Slot, tries int) (slot.State, error) {
	return s.change(s.copies.ClearReport, func(now slot.State) (slot.State, error) { return now.Arm(trial, tries) })
}

// Confirm implements bootloader.Backend.
func (s *Store) Confirm(running slot.Slot) (slot.State, error) {
	return s.change(nil, func(now slot.State) (slot.State, error) { return now.Confirm(running) })
}

// RollBack implements bootloader.Backend.
func (s *Store) RollBack() (slot.State, error) { return s.change(nil, slot.State.RollBack) }

// Repair implements bootloader.Backend.
func (s *Store) Repair(running slot.Slot) (slot.State, error) {
	var damaged bool
	look := func() (err error) {
		damaged, err = s.copies.Damaged()
		return err
	}
	if err := s.disk.Do(false, look); err != nil {
		return slot.State{}, err
	}
	if damaged {
		if err := s.disk.Do(true, func() error { return s.copies.Heal(running) }); err != nil {
			return slot.State{}, err
		}
	}
	return s.Read()
}

// Restart implements bootloader.Backend: any restart will do.
func (s *Store) Restart() (bootloader.Restart, error) { return bootloader.Restart{}, nil }

// SelectorCounts implements bootloader.Backend: GRUB does.
func (s *Store) SelectorCounts() bool { return true }
