package conformance

import (
	"testing"

	"github.com/cairn-os/cairn/pkg/bootloader"
	"github.com/cairn-os/cairn/pkg/bootloader/grubenv"
	"github.com/cairn-os/cairn/pkg/bootloader/selector"
	"github.com/cairn-os/cairn/pkg/bootloader/sysfile"
	"github.com/cairn-os/cairn/pkg/bootloader/tryboot"
	"github.com/cairn-os/cairn/pkg/partition"
	"github.com/cairn-os/cairn/pkg/slot"
)

// The tests below hold that the suite sees wrong backends: each is a right one
// with one mistake.

func piFiles(t *testing.T) func(slot.Slot) map[string]map[string][]byte {
	return func(confirmed slot.Slot) map[string]map[string][]byte {
		files := Installed(confirmed)
		auto, err := tryboot.EncodeAutoboot(confirmed)
		if err != nil {
			t.Fatal(err)
		}
		files[partition.System][tryboot.Autoboot] = auto
		files[partition.BootA]["config.txt"] = []byte("x")
		files[partition.BootB]["config.txt"] = []byte("x")
		return files
	}
}

func pi(t *testing.T) Suite {
	return Suite{
		New:   func(d sysfile.Disk) bootloader.Backend { return tryboot.New(d) },
		Boot:  func(d *Disk, argument string) selector.Boot { return selector.Firmware{}.Boot(d, argument) },
		Files: piFiles(t),
	}
}

// caught counts the machines that judge finds fault with, of one for each cut.
func caught(t *testing.T, s Suite, e ending, contents func(old, new []byte) [][]byte) (bad, all int) {
	t.Helper()
	plain := s.machine(slot.A, e)
	if err := plain.run(); err != nil {
		t.Fatal(err)
	}
	for i, w := range plain.disk.writes {
		for _, content := range contents(w.old, w.new) {
			m := s.machine(slot.A, e)
			m.disk.fault = &fault{index: i, content: content}
			all++
			if judge(m) != nil {
				bad++
			}
		}
	}
	return bad, all
}

// TestCatchesTruncation writes autoboot.txt as os.WriteFile would: cut to
// nothing first.
func TestCatchesTruncation(t *testing.T) {
	truncated := func(_, new []byte) (list [][]byte) {
		for n := range len(new) {
			list = append(list, new[:n:n])
		}
		return list
	}
	bad, all := caught(t, pi(t), confirms, truncated)
	if bad == 0 {
		t.Errorf("none of %d cuts of truncating writes is caught", all)
	}
	t.Logf("truncating writes: %d of %d cuts caught", bad, all)
	if bad, all := caught(t, pi(t), confirms, torn); bad != 0 {
		t.Errorf("writes in place: %d of %d cuts caught", bad, all)
	}
}

// uncounted restarts for a try that it does not count.
type uncounted struct{ bootloader.Backend }

func (u uncounted) Restart() (bootloader.Restart, error) {
	if s, err := u.Read(); err != nil || s.Phase() != slot.OnTrial {
		return bootloader.Restart{}, err
	}
	return bootloader.Restart{Argument: "0 tryboot"}, nil
}

func TestCatchesTriesThatAreNotCounted(t *testing.T) {
	s := pi(t)
	s.New = func(d sysfile.Disk) bootloader.Backend { return uncounted{tryboot.New(d)} }
	if err := judge(s.machine(slot.A, fails)); err == nil {
		t.Error("a machine that tries for ever is not caught")
	}
}

// hasty confirms what it arms.
type hasty struct{ bootloader.Backend }

func (h hasty) Arm(trial slot.Slot, tries int) (slot.State, error) {
	if _, err := h.Backend.Arm(trial, tries); err != nil {
		return slot.State{}, err
	}
	return h.Confirm(trial)
}

func TestCatchesAConfirmationByNobody(t *testing.T) {
	s := Suite{
		New:   func(d sysfile.Disk) bootloader.Backend { return hasty{grubenv.New(d)} },
		Boot:  func(d *Disk, _ string) selector.Boot { return selector.GRUB(d) },
		Files: Installed,
	}
	if err := judge(s.machine(slot.A, fails)); err == nil {
		t.Error("a slot that is confirmed before it ran is not caught")
	}
}

// sameCopy writes both copies of the state to one file.
type sameCopy struct{ sysfile.Disk }

func (d sameCopy) Read(name string) ([]byte, error) {
	if name == sysfile.State2 {
		return nil, nil
	}
	return d.Disk.Read(name)
}

func (d sameCopy) Overwrite(name string, data []byte) error {
	if name == sysfile.State2 {
		name = sysfile.State1
	}
	return d.Disk.Overwrite(name, data)
}

// TestCatchesOneCopy confirms slot b, then upgrades from it with one copy only:
// a write that is cut off loses which slot is confirmed.
func TestCatchesOneCopy(t *testing.T) {
	s := Suite{
		New:  func(d sysfile.Disk) bootloader.Backend { return grubenv.New(sameCopy{d}) },
		Boot: func(d *Disk, _ string) selector.Boot { return selector.GRUB(d) },
		Files: func(slot.Slot) map[string]map[string][]byte {
			files := Installed(slot.B)
			delete(files[partition.System], sysfile.State2)
			return files
		},
	}
	d := newDisk(s.Files(slot.B))
	d.fault = &fault{index: 1, content: []byte("half")} // the first write clears the report
	if _, err := s.New(d).Arm(slot.A, tries); err == nil {
		t.Fatal("not cut off")
	}
	d.dead = false
	if b := s.Boot(d, ""); b.Slot != slot.A {
		t.Errorf("boots slot %s; the suite would not see a lost state", b.Slot)
	}
	good := newDisk(Installed(slot.B))
	good.fault = d.fault
	if _, err := grubenv.New(good).Arm(slot.A, tries); err == nil {
		t.Fatal("not cut off")
	}
	good.dead = false
	if b := s.Boot(good, ""); b.Slot != slot.B {
		t.Errorf("with two copies slot %s boots; want b", b.Slot)
	}
}
