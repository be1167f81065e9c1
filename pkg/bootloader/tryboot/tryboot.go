// Package tryboot keeps the slot state for the Raspberry Pi's firmware.
//
// The firmware reads autoboot.txt on the first partition: it names the boot
// partition, and under [tryboot] another one, for a restart that carries the
// tryboot flag. The flag is cleared before anything is loaded, so it lasts for
// one boot: whatever ends a trial boot, the default partition comes next. The
// file is limited to 512 bytes, one sector. (Raspberry Pi documentation,
// "autoboot.txt" and "Fail-safe OS updates"; firmware of 2022-10 and newer.)
//
// The firmware does not count, so the confirmed slot does: Restart takes one off
// the tries, writes the state to the two files that GRUB has elsewhere (package
// sysfile), each time to the older copy, and only then asks for the flag. When
// the machine comes up in the confirmed slot and tries are left, the trial boot
// before did not confirm itself, by whatever fault or power cut, and the
// confirmed slot restarts for the next one.
//
// # What a power cut leaves
//
// Which slot is confirmed is what autoboot.txt says, because the firmware goes
// by nothing else; the state files follow. With D the default in autoboot.txt
// and S the state, slot a confirmed and b new:
//
//	step                      D      S                      then boots
//	before Arm                a      a                      a
//	Arm                       a      a, b on trial, n       a, which restarts for b
//	Restart                   a      a, b on trial, n-1     a, which restarts for b while tries are left
//	trial boot                a      a, b on trial, n-1     a, the same
//	Confirm, first digit      b (b)  a, b on trial, n-1     b
//	Confirm, second digit     b (a)  a, b on trial, n-1     b
//	Confirm, state            b      b                      b
//	RollBack                  a      a                      a
//
// Each step is one write of one sector, so a cut leaves the row before or the
// row itself; a half-written state file has no valid seal, and the other copy
// is the row before. In the two rows of Confirm where D and S differ, Read
// returns what S must become, and Repair, which the next boot calls, writes it.
// The digit in brackets is the partition for the flag; while both are b a
// restart with the flag boots b as well.
//
// A damaged autoboot.txt is beyond the firmware's help: it boots the first
// partition that it can boot, if its PARTITION_WALK is set, else none. A good one
// is therefore never made anew, cut or renamed, and written only to confirm.
// With the flag set it then looks for tryboot.txt in the place of config.txt: a
// slot needs both, with the same content.
package tryboot

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cairn-os/cairn/pkg/bootloader"
	"github.com/cairn-os/cairn/pkg/bootloader/sysfile"
	"github.com/cairn-os/cairn/pkg/slot"
)

// flag is the argument of reboot(2) that makes the firmware boot the [tryboot]
// partition: partition 0 means what autoboot.txt says.
const flag = "0 tryboot"

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

// Read implements bootloader.Backend.
func (s *Store) Read() (state slot.State, err error) {
	err = s.disk.Do(false, func() error {
		_, state, err = s.read()
		return err
	})
	return state, err
}

// read returns the state that the copies hold (the zero one when they hold
// none), and what it is in the light of autoboot.txt.
func (s *Store) read() (kept, state slot.State, err error) {
	kept, err = s.copies.Read()
	lost := errors.Is(err, slot.ErrInvalid)
	if err != nil && !lost {
		return kept, kept, err
	}
	data, readErr := s.disk.Read(Autoboot)
	if readErr != nil {
		return kept, kept, fmt.Errorf("read slot state: %w", readErr)
	}
	byDefault := DecodeAutoboot(data)
	switch {
	case byDefault == slot.None:
		return kept, kept, err
	case lost:
		return slot.State{}, slot.New(byDefault), nil
	case byDefault == kept.Confirmed:
		return kept, kept, nil
	}
	return kept, slot.State{Seq: kept.Seq + 1, Confirmed: byDefault, Trial: slot.None}, nil
}

// settle writes the state that Read returns where the copies hold another, and
// autoboot.txt where it does not say the same; then both are in order.
func (s *Store) settle() (slot.State, error) {
	kept, state, err := s.read()
	if err != nil {
		return state, err
	}
	if err := s.setDefault(state.Confirmed); err != nil {
		return state, err
	}
	if kept != state {
		return state, s.copies.Write(state)
	}
	return state, nil
}

// setDefault makes slot the one that the firmware boots.
func (s *Store) setDefault(byDefault slot.Slot) error {
	data, err := EncodeAutoboot(byDefault)
	if err != nil {
		return err
	}
	if err := s.copies.Put(Autoboot, data); err != nil {
		return fmt.Errorf("write %s: %w", Autoboot, err)
	}
	return nil
}

// change writes what a transition makes of the settled state; before goes
// first, and gets the state to come.
func (s *Store) change(before func(slot.State) error, transition func(slot.State) (slot.State, error)) (state slot.State, err error) {
	err = s.disk.Do(true, func() error {
		if _, state, err = s.read(); err != nil {
			return err
		}
		if _, err := transition(state); err != nil {
			return err // nothing is written, nothing settled
		}
		if state, err = s.settle(); err != nil {
			return err
		}
		if state, err = transition(state); err != nil {
			return err
		}
		if before != nil {
			if err := before(state); err != nil {
				return err
			}
		}
		return s.copies.Write(state)
	})
	return state, err
}

// Arm implements bootloader.Backend.
func (s *Store) Arm(trial slot.Slot, tries int) (slot.State, error) {
	return s.change(func(slot.State) error { return s.copies.ClearReport() },
		func(now slot.State) (slot.State, error) { return now.Arm(trial, tries) })
}

// Confirm implements bootloader.Backend: autoboot.txt first, as the package's
// comment says why.
func (s *Store) Confirm(running slot.Slot) (slot.State, error) {
	return s.change(func(next slot.State) error { return s.setDefault(next.Confirmed) },
		func(now slot.State) (slot.State, error) { return now.Confirm(running) })
}

// RollBack implements bootloader.Backend.
func (s *Store) RollBack() (slot.State, error) { return s.change(nil, slot.State.RollBack) }

// Repair implements bootloader.Backend.
func (s *Store) Repair(running slot.Slot) (slot.State, error) {
	var needed bool
	look := func() (err error) {
		needed, err = s.needsRepair()
		return err
	}
	if err := s.disk.Do(false, look); err != nil {
		return slot.State{}, err
	}
	if needed {
		if err := s.disk.Do(true, func() error { return s.repair(running) }); err != nil {
			return slot.State{}, err
		}
	}
	return s.Read()
}

func (s *Store) needsRepair() (bool, error) {
	kept, state, err := s.read()
	switch {
	case errors.Is(err, slot.ErrInvalid):
		return true, nil
	case err != nil:
		return false, err
	case kept != state:
		return true, nil
	}
	want, err := EncodeAutoboot(state.Confirmed)
	if err != nil {
		return false, err
	}
	data, err := s.disk.Read(Autoboot)
	if err != nil {
		return false, fmt.Errorf("read %s: %w", Autoboot, err)
	}
	if !bytes.Equal(data, want) {
		return true, nil
	}
	return s.copies.Damaged()
}

func (s *Store) repair(running slot.Slot) error {
	_, err := s.settle()
	if errors.Is(err, slot.ErrInvalid) { // nothing is left that says which
		err = s.setDefault(running)
	}
	if err != nil {
		return err
	}
	return s.copies.Heal(running)
}

// Restart implements bootloader.Backend. While tries are left it counts one and
// asks for the tryboot flag.
func (s *Store) Restart() (r bootloader.Restart, err error) {
	var state slot.State
	look := func() error {
		_, state, err = s.read()
		return err
	}
	if err := s.disk.Do(false, look); err != nil {
		return r, err
	}
	if state.Phase() != slot.OnTrial {
		return r, nil
	}
	count := func(now slot.State) (slot.State, error) {
		_, next, err := now.Count()
		return next, err
	}
	if _, err := s.change(nil, count); err != nil {
		return r, err
	}
	return bootloader.Restart{Argument: flag}, nil
}

// SelectorCounts implements bootloader.Backend: the firmware does not.
func (s *Store) SelectorCounts() bool { return false }

// Chosen is the folder of the device tree in which the firmware says how it
// booted.
const Chosen = "/proc/device-tree/chosen/bootloader"

// Running returns the slot that the firmware booted, and whether it did so by
// the tryboot flag, from the folder Chosen. A slot's files are the same in both
// slots, so its command line cannot tell.
func Running(chosen string) (running slot.Slot, tried bool, err error) {
	number, err := cell(filepath.Join(chosen, "partition"))
	if err != nil {
		return slot.None, false, fmt.Errorf("ask the firmware for the running slot: %w", err)
	}
	if running = slotOf(int(number)); running == slot.None {
		return slot.None, false, fmt.Errorf("ask the firmware for the running slot: it booted partition %d", number)
	}
	on, err := cell(filepath.Join(chosen, "tryboot"))
	if err != nil {
		return slot.None, false, fmt.Errorf("ask the firmware for its tryboot flag: %w", err)
	}
	return running, on == 1, nil
}

// cell reads a property of one 32-bit cell.
func cell(path string) (uint32, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	if len(data) != 4 {
		return 0, fmt.Errorf("%s: %d bytes; want 4", path, len(data))
	}
	return binary.BigEndian.Uint32(data), nil
}
