package sweep

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/cairn-os/cairn/pkg/bootloader/selector"
	"github.com/cairn-os/cairn/pkg/bootloader/sysfile"
	"github.com/cairn-os/cairn/pkg/partition"
	"github.com/cairn-os/cairn/pkg/slot"
	"github.com/cairn-os/cairn/pkg/sweep/fat"
)

// Selector is what starts a machine, as a function of its disk: selector.GRUB,
// or a firmware's Boot.
type Selector func(selector.Disk) selector.Boot

// Release is a version as a whole slot holds it.
type Release struct {
	Version string
	// Files are the SHA-256 sums of what boots, by path on the slot's boot
	// partition.
	Files  map[string]sum
	Loader sum         // of its copy of GRUB for UEFI; zero for none
	Root   io.ReaderAt // the root image with its hash tree
	Size   int64       // of Root in bytes
}

// bootFiles are what a boot reads of a slot's boot partition.
var bootFiles = [...]string{"vmlinuz", "initramfs.img", "slot.env"}

// ReadRelease returns the release whose images are boot, a FAT file system of
// bootSize bytes, and root, of rootSize bytes. A partition will do for either.
func ReadRelease(version string, boot io.ReaderAt, bootSize int64, root io.ReaderAt, rootSize int64) (Release, error) {
	r := Release{Version: version, Files: map[string]sum{}, Root: root, Size: rootSize}
	f, err := fat.Open(boot, bootSize)
	if err != nil {
		return r, fmt.Errorf("release %s: %w", version, err)
	}
	for _, name := range bootFiles {
		s := sumFile(f, boot, name)
		if s.err != nil {
			return r, fmt.Errorf("release %s: %w", version, s.err)
		}
		r.Files[name] = s.sum
	}
	if s := sumFile(f, boot, loaderPath); s.err == nil {
		r.Loader = s.sum
	}
	return r, nil
}

// Machine is a machine that has started a slot after a power cut, as the
// system that runs in the slot finds it.
type Machine struct {
	selector.Disk
	Running slot.Slot
}

// Resume says whether the running system can go on from what it finds: an
// error means that an owner would have to help.
type Resume func(Machine) error

// LegalState is the least that a running system needs: a slot state that
// counts, the running slot in it, and transitions that lead out of it.
func LegalState(m Machine) error {
	var copies [2][]byte
	for i, path := range [...]string{sysfile.State1, sysfile.State2} {
		// What cannot be read is no copy.
		copies[i], _ = m.Head(partition.System, path, 2*slot.Size)
	}
	s, _, err := slot.Choose(copies[0], copies[1])
	if err != nil {
		return err
	}
	switch m.Running {
	case s.Confirmed:
		if s.Trial != slot.None {
			s, err = s.RollBack()
		}
		if err == nil {
			_, err = s.Arm(s.Confirmed.Other(), slot.DefaultTries)
		}
		return err
	case s.Trial:
		_, err1 := s.Confirm(m.Running)
		_, err2 := s.RollBack()
		return errors.Join(err1, err2)
	}
	return fmt.Errorf("slot %s runs, which is not in the state: %s", m.Running, s)
}

// Verdict is what becomes of a machine after a power cut.
type Verdict struct {
	Version string    // that boots; empty for none
	Slot    slot.Slot // it boots from
	Stuck   bool      // it boots and cannot go on
	Why     string    // it does not boot, or cannot go on
	// Tries are the power cuts after the selector's own writes that were
	// followed from here.
	Tries int
}

// Bad reports whether someone would have to help.
func (v Verdict) Bad() bool { return v.Version == "" || v.Stuck }

func (v Verdict) String() string {
	switch {
	case v.Version == "":
		return "boots NEITHER: " + v.Why
	case v.Stuck:
		return fmt.Sprintf("boots %s from slot %s and is STUCK: %s", v.Version, v.Slot, v.Why)
	}
	return fmt.Sprintf("boots %s from slot %s", v.Version, v.Slot)
}

// judge decides about states. It remembers what it decided, so it is not safe
// for concurrent use.
type judge struct {
	o       Options
	g       *regions
	base    table
	hash    hasher
	targets map[slot.Slot][][]digest // by slot and release: the pieces of a whole root
	loaders map[sum]bool

	verdicts map[digest]*Verdict
	starts   map[digest]*start
	files    map[fileKey]fileSum
}

// start is what a boot selector does in a state, the roots left aside.
type start struct {
	slot    slot.Slot
	release int // whose boot files the slot holds
	why     string
	writes  []sectorWrite
	stuck   error // what Resume says, when nothing is to be written first
}

type sectorWrite struct {
	sector int64
	data   []byte
}

// sum is a SHA-256 sum.
type sum = [sha256.Size]byte

type fileKey struct {
	partition string
	content   digest
	path      string
}

type fileSum struct {
	sum sum
	err error
}

// judge returns the verdict about a state, whose regions have the key k.
func (j *judge) judge(v *view, k key, depth int) (*Verdict, error) {
	id := k.fold(j.g.count)
	if known, ok := j.verdicts[id]; ok {
		return known, nil
	}
	verdict, err := j.decide(v, k, depth)
	if err != nil {
		return nil, err
	}
	j.verdicts[id] = verdict
	return verdict, nil
}

func (j *judge) decide(v *view, k key, depth int) (*Verdict, error) {
	id := k.fold(int(rootArea))
	s, ok := j.starts[id]
	if !ok {
		var err error
		if s, err = j.start(v, k); err != nil {
			return nil, err
		}
		j.starts[id] = s
	}
	if s.why != "" {
		return &Verdict{Why: s.why}, nil
	}
	release := j.o.Releases[s.release]
	if !j.whole(k, s.slot, s.release) {
		return &Verdict{Why: fmt.Sprintf("slot %s starts with the kernel of %s and another root", s.slot, release.Version)}, nil
	}
	verdict := &Verdict{Version: release.Version, Slot: s.slot}
	if len(s.writes) == 0 && s.stuck != nil {
		verdict.Stuck, verdict.Why = true, s.stuck.Error()
	}
	return verdict, j.follow(v, k, s, verdict, depth)
}

// follow judges the states after each of the selector's own writes: the power
// goes again before the system that it starts gets to anything.
func (j *judge) follow(v *view, k key, s *start, verdict *Verdict, depth int) error {
	if len(s.writes) > 0 && depth > slot.MaxTries+1 {
		verdict.Version, verdict.Why = "", "the selector never stops counting tries"
		return nil
	}
	buf := make([]byte, SectorSize)
	for _, w := range s.writes {
		if err := readFull(v, buf, w.sector*SectorSize); err != nil {
			return err
		}
		v, k = j.written(v, k, w.sector, buf, w.data)
		next, err := j.judge(v, k, depth+1)
		if err != nil {
			return err
		}
		verdict.Tries += 1 + next.Tries
		if next.Bad() {
			verdict.Version, verdict.Stuck, verdict.Why = next.Version, next.Stuck, fmt.Sprintf("after the selector wrote sector %d: %s", w.sector, next.Why)
			return nil
		}
	}
	if len(s.writes) > 0 {
		if err := j.resume(v, k, s.slot); err != nil {
			verdict.Stuck, verdict.Why = true, err.Error()
		}
	}
	return nil
}

// whole reports whether a slot's root is that of a release.
func (j *judge) whole(k key, s slot.Slot, release int) bool {
	in := rootArea
	if s == slot.B {
		in += region(len(j.g.pieces[0]))
	}
	for i, want := range j.targets[s][release] {
		if k[int(in)+i] != want {
			return false
		}
	}
	return true
}

// start runs the selector.
func (j *judge) start(v *view, k key) (*start, error) {
	if why, err := j.damage(v, k); why != "" || err != nil {
		return &start{why: why}, err
	}
	d := &diskView{j: j, v: v, k: k}
	boot := j.o.Selector(d)
	if d.err != nil {
		return nil, fmt.Errorf("selector: %w", d.err)
	}
	said := strings.Join(boot.Messages, "; ")
	if boot.Slot != slot.A && boot.Slot != slot.B {
		return &start{why: "the selector says: " + said}, nil
	}
	s := &start{slot: boot.Slot, release: -1, writes: d.writes}
	for i, r := range j.o.Releases {
		if d.holds(s.slot, r) {
			s.release = i
		}
	}
	if s.release < 0 {
		s.why = "a slot starts whose boot files are of no release; the selector says: " + said
	}
	if len(s.writes) == 0 {
		s.stuck = j.resume(v, k, s.slot)
	}
	return s, nil
}

func (j *judge) resume(v *view, k key, running slot.Slot) error {
	return j.o.Resume(Machine{Disk: &diskView{j: j, v: v, k: k}, Running: running})
}

// damage reports why the selector itself would not be reached.
func (j *judge) damage(v *view, k key) (string, error) {
	if k[coreArea] != (digest{}) {
		return "GRUB's core image is another one", nil
	}
	if k[tableArea] != (digest{}) {
		t, err := readTable(v, v.d.rec.Size)
		if err != nil {
			return err.Error(), nil
		}
		for number, x := range j.base {
			now, ok := t[number]
			if number == partition.DataNumber {
				now.to = x.to // it grows
			}
			if !ok || now != x {
				return fmt.Sprintf("partition %d is missing or moved", number), nil
			}
		}
		const code = 0x1b8 // bytes of boot code; the rest is the disk's own
		was, is := make([]byte, code), make([]byte, code)
		if err := errors.Join(readFull(v.d.rec.Base, was, 0), readFull(v, is, 0)); err != nil {
			return "", err
		}
		if !bytes.Equal(was, is) {
			return "the boot sector is another one", nil
		}
	}
	return j.loader(&diskView{j: j, v: v, k: k}), nil
}

// loader reports why UEFI would not reach GRUB: it takes the first copy that
// it finds.
func (j *judge) loader(d *diskView) string {
	if len(j.loaders) == 0 {
		return ""
	}
	for _, name := range loaderPartitions {
		sum, err := d.Sum(name, loaderPath)
		if errors.Is(err, fat.ErrNotExist) || errors.Is(err, fat.ErrDamaged) {
			continue
		}
		if err != nil || !j.loaders[sum] {
			return fmt.Sprintf("UEFI would run a damaged %s of %s", loaderPath, name)
		}
		return ""
	}
	return "UEFI finds no " + loaderPath
}

const loaderPath = "EFI/BOOT/BOOTX64.EFI"

var loaderPartitions = [...]string{partition.System, partition.BootA, partition.BootB}
