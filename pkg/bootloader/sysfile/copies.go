package sysfile

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/cairn-os/cairn/pkg/slot"
)

// Copies are the two copies of the slot state and the report on a Disk. Its
// methods are called only from within the disk's Do.
type Copies struct{ Disk Disk }

var files = [2]string{State1, State2}

// Read returns the state that the copies hold: the newer valid one. Its error
// is slot.ErrInvalid when neither is valid.
func (c Copies) Read() (slot.State, error) {
	state, _, err := c.read()
	return state, err
}

func (c Copies) read() (state slot.State, index int, err error) {
	var copies [2][]byte
	for i, name := range files {
		if copies[i], err = c.Disk.Read(name); err != nil {
			return slot.State{}, 0, fmt.Errorf("read slot state: %w", err)
		}
	}
	if state, index, err = slot.Choose(copies[0], copies[1]); err != nil {
		return slot.State{}, 0, fmt.Errorf("read slot state: %w", err)
	}
	return state, index, nil
}

// Write makes state the one that counts, durably, and reads it back. state must
// be a successor of what Read returned: its sequence number is one higher.
func (c Copies) Write(state slot.State) error {
	data, err := state.Encode()
	if err != nil {
		return fmt.Errorf("write slot state: %w", err)
	}
	present, index, err := c.read()
	switch {
	case errors.Is(err, slot.ErrInvalid):
		index = 1 // neither copy counts
	case err != nil:
		return fmt.Errorf("write slot state: %w", err)
	case state.Seq != present.Seq+1:
		return fmt.Errorf("write slot state %s: it does not follow %s", state, present)
	}
	if err := c.Disk.Overwrite(files[1-index], data); err != nil {
		return fmt.Errorf("write slot state: %w", err)
	}
	if now, err := c.Read(); err != nil || now != state {
		return fmt.Errorf("write slot state %s: read back %s: %w", state, now, errors.Join(err, ErrReadBack))
	}
	return nil
}

// Damaged reports whether Heal has something to do: neither copy is valid, or
// one is not while nothing is on trial. On a trial a damaged copy waits: it is
// the one that the next write replaces.
func (c Copies) Damaged() (bool, error) {
	state, index, err := c.read()
	switch {
	case errors.Is(err, slot.ErrInvalid):
		return true, nil
	case err != nil:
		return false, err
	case state.Phase() != slot.Settled:
		return false, nil
	}
	other, err := c.Disk.Read(files[1-index])
	if err != nil {
		return false, fmt.Errorf("read slot state: %w", err)
	}
	_, err = slot.Decode(other)
	return err != nil, nil
}

// Heal makes both copies valid: the damaged one becomes the present state with
// the next number, so that damage to the other one too would change nothing.
// Where neither is valid running becomes the confirmed slot.
func (c Copies) Heal(running slot.Slot) error {
	if damaged, err := c.Damaged(); err != nil || !damaged {
		return err
	}
	state, err := c.Read()
	if errors.Is(err, slot.ErrInvalid) {
		state = slot.New(running)
		err = c.Write(state)
	}
	if err != nil {
		return err
	}
	state.Seq++
	return c.Write(state)
}

// Report returns what the last trial boot wrote. Its error is slot.ErrNoReport
// when there is none.
func (c Copies) Report() (slot.Report, error) {
	data, err := c.Disk.Read(Trial)
	if err != nil {
		return slot.Report{}, fmt.Errorf("read the report: %w", err)
	}
	r, err := slot.DecodeReport(data)
	if err != nil {
		return slot.Report{}, fmt.Errorf("read the report: %w", err)
	}
	return r, nil
}

// WriteReport replaces the report in place. Equal ones are not written again.
func (c Copies) WriteReport(r slot.Report) error {
	data, err := r.Encode()
	if err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	if err := c.Put(Trial, data); err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	return nil
}

// Reports is the part of a bootloader.Backend that keeps the report of a trial; back-ends embed it.
type Reports struct{ Disk Disk }

// Report implements bootloader.Backend.
func (r Reports) Report() (found slot.Report, err error) {
	err = r.Disk.Do(false, func() error {
		found, err = Copies(r).Report()
		return err
	})
	return found, err
}

// WriteReport implements bootloader.Backend.
func (r Reports) WriteReport(report slot.Report) error {
	return r.Disk.Do(true, func() error { return Copies(r).WriteReport(report) })
}

// ClearReport takes away what an earlier trial said. It makes the file as well,
// so that no trial boot has to change the folder.
func (c Copies) ClearReport() error {
	empty, err := slot.EncodeBlock(slot.Size)
	if err == nil {
		err = c.Put(Trial, empty)
	}
	if err != nil {
		return fmt.Errorf("clear the report: %w", err)
	}
	return nil
}

// Put overwrites a file unless it holds data already.
func (c Copies) Put(name string, data []byte) error {
	now, err := c.Disk.Read(name)
	if err != nil {
		return err
	}
	if bytes.Equal(now, data) {
		return nil
	}
	return c.Disk.Overwrite(name, data)
}
