package sysfile

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cairn-os/cairn/pkg/slot"
)

func encode(t *testing.T, s slot.State) []byte {
	t.Helper()
	b, err := s.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// installed are the files as the image builder leaves them.
func installed(t *testing.T) (Copies, [2]string) {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "cairn"), 0o755); err != nil {
		t.Fatal(err)
	}
	var paths [2]string
	for i, s := range []slot.State{slot.New(slot.A), {Seq: 0, Confirmed: slot.A, Trial: slot.None}} {
		paths[i] = filepath.Join(dir, files[i])
		if err := os.WriteFile(paths[i], encode(t, s), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return Copies{Dir{Path: dir}}, paths
}

func inode(t *testing.T, path string) uint64 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Sys().(*syscall.Stat_t).Ino
}

func TestWriteAlternatesInPlace(t *testing.T) {
	c, paths := installed(t)
	before := [2]uint64{inode(t, paths[0]), inode(t, paths[1])}
	state, err := c.Read()
	if err != nil || state != slot.New(slot.A) {
		t.Fatalf("Read = %v, %v", state, err)
	}
	steps := []func(slot.State) (slot.State, error){
		func(s slot.State) (slot.State, error) { return s.Arm(slot.B, 3) },
		func(s slot.State) (slot.State, error) { return s.Confirm(slot.B) },
		func(s slot.State) (slot.State, error) { return s.Arm(slot.A, 1) },
		slot.State.RollBack,
	}
	for i, step := range steps {
		keep, err := os.ReadFile(paths[i%2])
		if err != nil {
			t.Fatal(err)
		}
		if state, err = step(state); err != nil {
			t.Fatal(err)
		}
		if err := c.Write(state); err != nil {
			t.Fatal(err)
		}
		if got, err := c.Read(); err != nil || got != state {
			t.Errorf("step %d: Read = %v, %v; want %v", i, got, err, state)
		}
		if now, err := os.ReadFile(paths[i%2]); err != nil || string(now) != string(keep) {
			t.Errorf("step %d touched the copy that held the state before", i)
		}
	}
	for i, path := range paths {
		if info, err := os.Stat(path); err != nil || info.Size() != slot.Size || inode(t, path) != before[i] {
			t.Errorf("%s is not the same sector as before", path)
		}
	}
}

func TestWriteRefusesWhatDoesNotFollow(t *testing.T) {
	c, _ := installed(t)
	for _, state := range []slot.State{{}, slot.New(slot.A), {Seq: 9, Confirmed: slot.B, Trial: slot.None}} {
		if err := c.Write(state); err == nil {
			t.Errorf("Write(%v) gave no error", state)
		}
	}
	if got, err := c.Read(); err != nil || got != slot.New(slot.A) {
		t.Errorf("after refused writes: %v, %v", got, err)
	}
}

// spoilt are ways in which a file can be damaged.
var spoilt = map[string]func(string) error{
	"missing":  os.Remove,
	"empty":    func(p string) error { return os.Truncate(p, 0) },
	"nonsense": func(p string) error { return os.WriteFile(p, make([]byte, 2000), 0o644) },
	"of two sectors": func(p string) error {
		return os.WriteFile(p, []byte(strings.Repeat("#", slot.Size)+"\nseq=7\ntries=1\n"), 0o644)
	},
	"directory": func(p string) error { return errors.Join(os.Remove(p), os.Mkdir(p, 0o755)) },
	"folder with something in it": func(p string) error {
		return errors.Join(os.Remove(p), os.MkdirAll(filepath.Join(p, "x"), 0o755))
	},
}

func TestWriteRepairsADamagedCopy(t *testing.T) {
	next, err := slot.New(slot.A).Arm(slot.B, 3)
	if err != nil {
		t.Fatal(err)
	}
	for name, damage := range spoilt {
		c, paths := installed(t)
		if err := damage(paths[1]); err != nil {
			t.Fatal(err)
		}
		if err := c.Write(next); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if got, err := c.Read(); err != nil || got != next {
			t.Errorf("%s: Read = %v, %v; want %v", name, got, err, next)
		}
		if data, err := os.ReadFile(paths[1]); err != nil || !bytes.Equal(data, encode(t, next)) {
			t.Errorf("%s: the file then: %q, %v; want the state and nothing else", name, data, err)
		}
	}
}

func TestHeal(t *testing.T) {
	for name, damage := range spoilt {
		for broken := range 4 { // a bit for each copy
			c, paths := installed(t)
			for i, path := range paths {
				if broken>>i&1 == 1 {
					if err := damage(path); err != nil {
						t.Fatal(err)
					}
				}
			}
			if damaged, err := c.Damaged(); err != nil || damaged != (broken != 0) {
				t.Errorf("%s, copies %b: Damaged = %v, %v", name, broken, damaged, err)
			}
			if err := c.Heal(slot.A); err != nil {
				t.Errorf("%s, copies %b: %v", name, broken, err)
			}
			for i := range paths {
				data, err := c.Disk.Read(files[i])
				if s, err2 := slot.Decode(data); err != nil || err2 != nil || s.Confirmed != slot.A || s.Trial != slot.None {
					t.Errorf("%s, copies %b: copy %d then %v, %v, %v", name, broken, i+1, s, err, err2)
				}
			}
		}
	}
}

func TestBothDamaged(t *testing.T) {
	c := Copies{Dir{Path: t.TempDir()}}
	if _, err := c.Read(); !errors.Is(err, slot.ErrInvalid) {
		t.Errorf("Read of nothing: %v; want ErrInvalid", err)
	}
	if err := c.Write(slot.New(slot.A)); err != nil {
		t.Fatal(err)
	}
	if got, err := c.Read(); err != nil || got != slot.New(slot.A) {
		t.Errorf("Read = %v, %v", got, err)
	}
}

func TestReport(t *testing.T) {
	c, paths := installed(t)
	path := filepath.Join(filepath.Dir(paths[0]), "trial.env")
	if _, err := c.Report(); !errors.Is(err, slot.ErrNoReport) {
		t.Errorf("Report of nothing: %v; want ErrNoReport", err)
	}
	if err := c.ClearReport(); err != nil {
		t.Fatal(err)
	}
	first := inode(t, path)
	want := slot.Report{Seq: 2, Slot: slot.B, Tries: 2, Stage: slot.StageEarly, Phase: "verity", Error: "corrupt"}
	if err := c.WriteReport(want); err != nil {
		t.Fatal(err)
	}
	if got, err := c.Report(); err != nil || got != want {
		t.Errorf("Report = %v, %v; want %v", got, err, want)
	}
	if info, err := os.Stat(path); err != nil || info.Size() != slot.Size || inode(t, path) != first {
		t.Errorf("the report is not the same sector as before")
	}
	if err := c.ClearReport(); err != nil {
		t.Fatal(err)
	}
	if got, err := c.Report(); !errors.Is(err, slot.ErrNoReport) {
		t.Errorf("cleared: %v, %v; want ErrNoReport", got, err)
	}
}

// TestDo holds that a change makes the file system writable and read-only
// again, whatever comes of it, and a look does not.
func TestDo(t *testing.T) {
	var log []string
	failed, restoreFailed := errors.New("failed"), errors.New("busy")
	d := Dir{Path: t.TempDir(), Writable: func() (func() error, error) {
		log = append(log, "rw")
		return func() error { log = append(log, "ro"); return restoreFailed }, nil
	}}
	if err := d.Do(false, func() error { log = append(log, "look"); return nil }); err != nil {
		t.Error(err)
	}
	err := d.Do(true, func() error { log = append(log, "change"); return failed })
	if !errors.Is(err, failed) || !errors.Is(err, restoreFailed) {
		t.Errorf("Do = %v; want both errors", err)
	}
	if got := strings.Join(log, " "); got != "look rw change ro" {
		t.Errorf("%s", got)
	}
	d.Writable = func() (func() error, error) { return nil, failed }
	if err := d.Do(true, func() error { t.Error("ran"); return nil }); !errors.Is(err, failed) {
		t.Errorf("Do on a medium that stays read-only: %v", err)
	}
	if err := (Dir{Path: filepath.Join(t.TempDir(), "no")}).Do(false, nil); err == nil {
		t.Error("Do without a directory gave no error")
	}
}

// TestLock lets many change one number in a file, each by its own open
// directory.
func TestLock(t *testing.T) {
	d := Dir{Path: t.TempDir()}
	const many = 20
	done := make(chan error, many)
	for range many {
		go func() {
			done <- d.Do(true, func() error {
				was, err := d.Read("x")
				if err != nil {
					return err
				}
				return d.Overwrite("x", append(was, '.'))
			})
		}()
	}
	for range many {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if got, err := d.Read("x"); err != nil || len(got) != many {
		t.Errorf("%d of %d changes are left, %v", len(got), many, err)
	}
}

// TestLockGivesUp holds that a process that hangs with the lock keeps others
// waiting for a time only, and that the lock is free when it ends.
func TestLockGivesUp(t *testing.T) {
	dir := t.TempDir()
	unlock, err := lock(dir, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lock(dir, 20*time.Millisecond); !errors.Is(err, ErrBusy) {
		t.Errorf("lock of a locked directory: %v; want ErrBusy", err)
	}
	if err := unlock(); err != nil {
		t.Error(err)
	}
	again, err := lock(dir, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if err := again(); err != nil {
		t.Error(err)
	}
}
