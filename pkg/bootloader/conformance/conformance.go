// Package conformance is the suite that every bootloader.Backend passes, on a
// model of the selector that it writes for: whole upgrades as transcripts, and
// the same with the power cut at every byte of every write, with writes lost,
// with damaged files and on a medium that can no longer be written.
package conformance

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-os/cairn/pkg/bootloader"
	"github.com/cairn-os/cairn/pkg/bootloader/selector"
	"github.com/cairn-os/cairn/pkg/bootloader/sysfile"
	"github.com/cairn-os/cairn/pkg/partition"
	"github.com/cairn-os/cairn/pkg/slot"
)

// Suite is a backend and the selector that starts its machines.
type Suite struct {
	// New returns the backend on a disk.
	New func(sysfile.Disk) bootloader.Backend
	// Boot starts a machine whose last restart carried argument.
	Boot func(d *Disk, argument string) selector.Boot
	// BootDamaged is Boot for the tests that damage files; nil: Boot. It is
	// for firmware that can be set up to live with that.
	BootDamaged func(d *Disk, argument string) selector.Boot
	// Files are those of an installed machine whose confirmed slot is
	// confirmed, by partition and path, both slots filled.
	Files func(confirmed slot.Slot) map[string]map[string][]byte
	// Transcripts are what upgrades from slot a look like, by their ending.
	Transcripts map[string]string
}

// Test runs the suite.
func Test(t *testing.T, s Suite) {
	t.Run("transcripts", s.transcripts)
	t.Run("verbs", s.verbs)
	t.Run("power cuts", s.powerCuts)
	t.Run("lost writes", s.lostWrites)
	t.Run("damage", s.damage)
	t.Run("read-only", s.readOnly)
	t.Run("repair is at rest", s.atRest)
}

func (s Suite) machine(confirmed slot.Slot, e ending) *machine {
	return &machine{suite: s, disk: newDisk(s.Files(confirmed)), ending: e}
}

var endings = []ending{fails, confirms, rolls, restarts}

// result is the slot that an upgrade from slot a ends on.
func (e ending) result() slot.Slot {
	if e == confirms {
		return slot.B
	}
	return slot.A
}

func (s Suite) transcripts(t *testing.T) {
	for _, e := range endings {
		m := s.machine(slot.A, e)
		if err := m.run(); err != nil {
			t.Errorf("%s: %v", e, err)
			continue
		}
		if diff := cmp.Diff(s.Transcripts[string(e)], m.log.String()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", e, diff)
		}
		if state, err := m.settled(); err != nil || state.Phase() != slot.Settled || state.Confirmed != e.result() {
			t.Errorf("%s: state %v, %v", e, state, err)
		}
	}
	// From slot b it is the same the other way round.
	m := s.machine(slot.B, confirms)
	if err := m.run(); err != nil {
		t.Error(err)
	}
	if state, err := m.settled(); err != nil || state.Confirmed != slot.A {
		t.Errorf("upgrade from slot b: %v, %v", state, err)
	}
}

// verbs holds that moves the state forbids write nothing.
func (s Suite) verbs(t *testing.T) {
	d := newDisk(s.Files(slot.A))
	b := s.New(d)
	refused := func(what string, want error, call func() (slot.State, error)) {
		t.Helper()
		before := len(d.writes)
		if state, err := call(); err == nil || want != nil && !errors.Is(err, want) {
			t.Errorf("%s: %v, %v; want %v", what, state, err, want)
		}
		if len(d.writes) != before {
			t.Errorf("%s: refused, and wrote %q", what, d.writes[before:])
		}
	}
	confirm := func(running slot.Slot) func() (slot.State, error) {
		return func() (slot.State, error) { return b.Confirm(running) }
	}
	arm := func(trial slot.Slot, tries int) func() (slot.State, error) {
		return func() (slot.State, error) { return b.Arm(trial, tries) }
	}
	refused("confirm without a trial", slot.ErrNoTrial, confirm(slot.A))
	refused("roll back without a trial", slot.ErrNoTrial, b.RollBack)
	refused("arm the confirmed slot", nil, arm(slot.A, tries))
	refused("arm without tries", nil, arm(slot.B, 0))
	if _, err := b.Report(); !errors.Is(err, slot.ErrNoReport) {
		t.Errorf("report of a new machine: %v; want ErrNoReport", err)
	}
	if _, err := b.Arm(slot.B, tries); err != nil {
		t.Fatal(err)
	}
	refused("arm on trial", slot.ErrOnTrial, arm(slot.B, tries))
	refused("confirm by the old slot", slot.ErrNotTrial, confirm(slot.A))
	if _, err := b.Report(); !errors.Is(err, slot.ErrNoReport) {
		t.Errorf("report of an armed machine: %v; want ErrNoReport", err)
	}
	state, err := b.Read()
	if err != nil {
		t.Fatal(err)
	}
	want := state.Report(slot.StageServices)
	if err := b.WriteReport(want); err != nil {
		t.Fatal(err)
	}
	if got, err := b.Report(); err != nil || got != want {
		t.Errorf("report %v, %v; want %v", got, err, want)
	}
}

// torn are all contents that a cut leaves of a sector: every beginning of the
// new one before the rest of the old one, and the other way round, because a
// medium may write a sector from either end.
func torn(old, new []byte) [][]byte {
	rest := func(b []byte, n int) []byte { return b[min(n, len(b)):] }
	list := [][]byte{old}
	for n := range len(new) + 1 {
		list = append(list, slices.Concat(new[:n], rest(old, n)), slices.Concat(old[:min(n, len(old))], rest(new, n)))
	}
	slices.SortFunc(list, bytes.Compare)
	return slices.CompactFunc(list, bytes.Equal)
}

// powerCuts runs every upgrade once for every byte at which the power can go.
func (s Suite) powerCuts(t *testing.T) {
	cuts, boots := 0, 0
	for _, e := range endings {
		plain := s.machine(slot.A, e)
		if err := plain.run(); err != nil {
			t.Fatal(err)
		}
		for i, w := range plain.disk.writes {
			for _, content := range torn(w.old, w.new) {
				m := s.machine(slot.A, e)
				m.disk.fault = &fault{index: i, content: content}
				cuts++
				if err := judge(m); err != nil {
					t.Errorf("%s: write %d to %s cut as %q: %v", e, i, w.path, content, err)
				}
				boots += len(m.boots)
			}
		}
	}
	t.Logf("%d states after a cut, %d boots", cuts, boots)
}

// judge runs a machine to its end and tells what is not true of it that is true
// of every upgrade, whatever happened to it.
func judge(m *machine) error {
	if err := m.run(); err != nil {
		return err
	}
	state, err := m.settled()
	if err != nil || state.Phase() != slot.Settled {
		return fmt.Errorf("at the end: %v, %v\n%s", state, err, m.log.String())
	}
	if m.ending != confirms && state.Confirmed != slot.A {
		return fmt.Errorf("slot b was confirmed by nobody\n%s", m.log.String())
	}
	// A count that was cut off may be counted again, once.
	if m.tried > tries+1 {
		return fmt.Errorf("%d trial boots\n%s", m.tried, m.log.String())
	}
	for range 3 {
		if b := m.suite.Boot(m.disk, ""); b.Slot != state.Confirmed {
			return fmt.Errorf("settled on %s, and boots %s\n%s", state, b.Slot, m.log.String())
		}
	}
	return nil
}

// lostWrites is a medium that says it wrote, and did not, once.
func (s Suite) lostWrites(t *testing.T) {
	for _, e := range endings {
		plain := s.machine(slot.A, e)
		if err := plain.run(); err != nil {
			t.Fatal(err)
		}
		for i, w := range plain.disk.writes {
			m := s.machine(slot.A, e)
			m.disk.fault = &fault{index: i, goOn: true}
			if err := judge(m); err != nil {
				t.Errorf("%s: write %d to %s lost: %v", e, i, w.path, err)
			}
		}
	}
}

// damages are contents that no one of ours writes; nil is no file.
func damages() map[string][]byte {
	noise := bytes.Repeat([]byte{0x5a, 0xa7, 0x00, 0xfe, 0x3d, 0x0a, 0x22, 0x24}, slot.Size/8)
	return map[string][]byte{"missing": nil, "empty": {}, "zeros": make([]byte, slot.Size), "noise": noise, "erased": bytes.Repeat([]byte{0xff}, slot.Size)}
}

// stages are machines at which damage strikes, by what they are in.
func (s Suite) stages(t *testing.T) map[string]*machine {
	t.Helper()
	list := map[string]*machine{}
	for _, confirmed := range []slot.Slot{slot.A, slot.B} {
		list["installed to "+string(confirmed)] = s.machine(confirmed, fails)
		m := s.machine(confirmed, fails)
		if _, err := m.boot(); err != nil {
			t.Fatal(err)
		}
		list["armed from "+string(confirmed)] = m
		after := s.machine(confirmed, confirms)
		if err := after.run(); err != nil {
			t.Fatal(err)
		}
		list["upgraded from "+string(confirmed)] = after
	}
	return list
}

// damage spoils each file of CAIRN_SYS, at rest and on trial.
func (s Suite) damage(t *testing.T) {
	if s.BootDamaged != nil {
		s.Boot = s.BootDamaged
	}
	for stage, m := range s.stages(t) {
		for file := range m.disk.files[partition.System] {
			for kind, content := range damages() {
				s.spoil(t, m.clone(), fmt.Sprintf("%s: %s %s", stage, file, kind), file, content)
			}
		}
	}
}

// spoil damages one file of a machine, lets it boot and repair itself, then
// damages each of the state's copies in turn, then both.
func (s Suite) spoil(t *testing.T, m *machine, name, file string, content []byte) {
	t.Helper()
	before, err := m.settled()
	if err != nil {
		t.Fatal(err)
	}
	m.armed = true
	set(m.disk, file, content)
	if err := m.run(); err != nil {
		t.Errorf("%s: %v", name, err)
		return
	}
	after, err := m.settled()
	if err != nil || after.Phase() != slot.Settled || after.Confirmed != before.Confirmed {
		t.Errorf("%s: %v, %v; before: %v\n%s", name, after, err, before, m.log.String())
	}
	for _, copy := range []string{sysfile.State1, sysfile.State2} {
		disk := newDisk(m.disk.files)
		set(disk, copy, content)
		if b := s.Boot(disk, ""); b.Slot != before.Confirmed {
			t.Errorf("%s: repaired, then %s too: boots %s; before: %v", name, copy, b.Slot, before)
		}
	}
	// With both copies gone, a slot boots and says so from then on.
	set(m.disk, sysfile.State1, content)
	set(m.disk, sysfile.State2, content)
	m.boots = nil
	if err := m.run(); err != nil {
		t.Errorf("%s: then both copies: %v", name, err)
	}
	if state, err := m.settled(); err != nil || state.Confirmed != m.boots[len(m.boots)-1] {
		t.Errorf("%s: then both copies: %v, %v after boots %v", name, state, err, m.boots)
	}
}

func set(d *Disk, file string, content []byte) {
	if content == nil {
		delete(d.files[partition.System], file)
		return
	}
	d.files[partition.System][file] = content
}

// readOnly is a medium that wore out: nothing can be written any more.
func (s Suite) readOnly(t *testing.T) {
	for stage, m := range s.stages(t) {
		before, err := m.settled()
		if err != nil {
			t.Fatal(err)
		}
		m.disk.readOnly = true
		b := s.New(m.disk)
		for verb, call := range map[string]func() error{
			"arm":     func() error { _, err := b.Arm(before.Confirmed.Other(), tries); return err },
			"confirm": func() error { _, err := b.Confirm(before.Trial); return err },
			"rolls":   func() error { _, err := b.RollBack(); return err },
			"report":  func() error { return b.WriteReport(slot.New(slot.A).Report(slot.StageEarly)) },
		} {
			if call() == nil {
				t.Errorf("%s: %s says it wrote", stage, verb)
			}
		}
		for range 3 {
			r, err := b.Restart()
			if got := s.Boot(m.disk, r.Argument); got.Slot != before.Confirmed {
				t.Errorf("%s: restart with %q, %v boots slot %s: a try that cannot be counted", stage, r.Argument, err, got.Slot)
			}
		}
		if after, err := m.settled(); err != nil || after != before {
			t.Errorf("%s: state %v, %v; before: %v", stage, after, err, before)
		}
	}
}

// atRest holds that a machine in order is not written to at its boots.
func (s Suite) atRest(t *testing.T) {
	for stage, m := range s.stages(t) {
		m.disk.writes = nil
		before, err := m.settled()
		if err != nil {
			t.Fatal(err)
		}
		if got, err := s.New(m.disk).Repair(before.Confirmed); err != nil || got != before || len(m.disk.writes) != 0 {
			t.Errorf("%s: repair: %v, %v, writes %q; want none", stage, got, err, m.disk.writes)
		}
	}
}
