package trial

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cairn-os/cairn/pkg/bootloader"
	"github.com/cairn-os/cairn/pkg/bootloader/grubenv"
	"github.com/cairn-os/cairn/pkg/bootloader/sysfile"
	"github.com/cairn-os/cairn/pkg/sequence"
	"github.com/cairn-os/cairn/pkg/slot"
	"github.com/google/go-cmp/cmp"
)

// disk is a CAIRN_SYS in a folder that is always writable, with the given state.
func disk(t *testing.T, s slot.State) (string, Open) {
	t.Helper()
	dir := t.TempDir()
	data, err := s.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "cairn"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, sysfile.State2), data, 0o644); err != nil {
		t.Fatal(err)
	}
	return dir, func(use func(bootloader.Backend) error) error { return use(grubenv.New(sysfile.Dir{Path: dir})) }
}

// onTrial is the state that the selector leaves when it starts slot b for the first time of three.
func onTrial(t *testing.T) slot.State {
	t.Helper()
	armed, err := slot.New(slot.A).Arm(slot.B, 3)
	if err != nil {
		t.Fatal(err)
	}
	_, s, err := armed.Attempt()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestReports holds what a boot leaves at each step, for the boot after it.
func TestReports(t *testing.T) {
	state := onTrial(t)
	_, open := disk(t, state)
	tr, _, err := Begin(open, slot.B, t.Logf)
	if err != nil || tr == nil || tr.TriesLeft() != 2 {
		t.Fatalf("Begin() = %+v, %v; want a trial with 2 tries left", tr, err)
	}
	var got []string
	for _, step := range []func(){
		func() {},
		func() { tr.Reached(slot.StageEarly) },
		func() { tr.Failed("", &sequence.Error{Phase: "verity", Err: errors.New("damaged")}) },
		func() { tr.Reached(slot.StageServices) },
		func() { tr.Failed("cairnd", errors.New("exit status 2")) },
	} {
		step()
		if err := open(func(b bootloader.Backend) error {
			r, err := b.Report()
			if errors.Is(err, slot.ErrNoReport) {
				got = append(got, "none")
				return nil
			}
			if !r.Last(state) || r.BootID == "" {
				t.Errorf("report %+v is not of the last boot of %s", r, state)
			}
			got = append(got, fmt.Sprintf("%s %s %s", r.Stage, r.Phase, r.Error))
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	want := []string{"none", "early  ", "early verity damaged", "services verity damaged", "services cairnd exit status 2"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("reports (-want +got):\n%s", diff)
	}
}

// TestConfirmedWritesNothing: a slot that is confirmed leaves its boot selector's partition alone.
func TestConfirmedWritesNothing(t *testing.T) {
	for running, s := range map[slot.Slot]slot.State{slot.A: slot.New(slot.A), slot.B: slot.New(slot.A)} {
		dir, open := disk(t, s)
		tr, state, err := Begin(open, running, t.Logf)
		if tr != nil || state != s || err != nil {
			t.Fatalf("Begin(%s) = %v, %v, %v; want no trial", running, tr, state, err)
		}
		tr.Reached(slot.StageEarly)
		tr.Failed("x", errors.New("y"))
		if err := tr.RollBack(); err != nil || tr.TriesLeft() != 0 {
			t.Errorf("RollBack() = %v", err)
		}
		files, err := os.ReadDir(filepath.Join(dir, "cairn"))
		if err != nil || len(files) != 1 {
			t.Errorf("there are %v, %v; want the state alone", files, err)
		}
	}
	if tr, _, err := Begin(At(t.TempDir()), slot.A, t.Logf); tr != nil || !errors.Is(err, slot.ErrInvalid) {
		t.Errorf("Begin() without a state = %v, %v; want ErrInvalid", tr, err)
	}
}

func TestEnds(t *testing.T) {
	dir, open := disk(t, onTrial(t))
	tr, _, err := Begin(open, slot.B, t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	if there, err := tr.Confirmed(); there || err != nil {
		t.Errorf("Confirmed() = %v, %v before anybody did", there, err)
	}
	for range 2 { // the second finds that somebody has
		if err := tr.RollBack(); err != nil {
			t.Fatal(err)
		}
	}
	if s, err := grubenv.New(sysfile.Dir{Path: dir}).Read(); err != nil || s.Confirmed != slot.A || s.Trial != slot.None {
		t.Errorf("state after the roll-back: %v, %v", s, err)
	}
	if there, err := tr.Confirmed(); there || err != nil {
		t.Errorf("Confirmed() = %v, %v after a roll-back", there, err)
	}

	_, open = disk(t, onTrial(t))
	if tr, _, err = Begin(open, slot.B, t.Logf); err != nil {
		t.Fatal(err)
	}
	if err := open(func(b bootloader.Backend) error { _, err := b.Confirm(slot.B); return err }); err != nil {
		t.Fatal(err)
	}
	if there, err := tr.Confirmed(); !there || err != nil {
		t.Errorf("Confirmed() = %v, %v; want what the disk says", there, err)
	}
}

// TestSickDisk: a disk that hangs, or a bug in what writes to it, costs a line on the console and some seconds.
func TestSickDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, open := disk(t, onTrial(t))
		var console strings.Builder
		hang, end := false, make(chan struct{})
		tr, _, err := Begin(func(use func(bootloader.Backend) error) error {
			if hang {
				<-end
				return errors.New("too late")
			}
			return open(use)
		}, slot.B, func(format string, args ...any) { fmt.Fprintf(&console, format+"\n", args...) })
		if err != nil {
			t.Fatal(err)
		}
		hang = true
		begin := time.Now()
		tr.Reached(slot.StageSystem)
		if took := time.Since(begin); took != limit || !strings.Contains(console.String(), "is not kept: report of the trial: it did not end within 20s") {
			t.Errorf("after %v the console says\n%s", took, console.String())
		}
		if err := tr.RollBack(); !errors.Is(err, errUnfinished) {
			t.Errorf("RollBack() = %v; want %v", err, errUnfinished)
		}
		close(end)
		synctest.Wait()
	})
	_, open := disk(t, onTrial(t))
	tr, _, err := Begin(open, slot.B, t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	tr.open = func(func(bootloader.Backend) error) error { panic("a bug") }
	tr.Reached(slot.StageSystem)
	if err := tr.RollBack(); err == nil || !strings.Contains(err.Error(), "a bug") {
		t.Errorf("RollBack() = %v; want the bug", err)
	}
}
