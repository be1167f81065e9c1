package grubenv

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

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

// installed is a store as the image builder leaves it.
func installed(t *testing.T) (*Store, [2]string) {
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
	return New(dir), paths
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
	s, paths := installed(t)
	before := [2]uint64{inode(t, paths[0]), inode(t, paths[1])}
	state, err := s.Read()
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
		if err := s.Write(state); err != nil {
			t.Fatal(err)
		}
		if got, err := s.Read(); err != nil || got != state {
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
	s, _ := installed(t)
	for _, state := range []slot.State{{}, slot.New(slot.A), {Seq: 9, Confirmed: slot.B, Trial: slot.None}} {
		if err := s.Write(state); err == nil {
			t.Errorf("Write(%v) gave no error", state)
		}
	}
	if got, err := s.Read(); err != nil || got != slot.New(slot.A) {
		t.Errorf("after refused writes: %v, %v", got, err)
	}
}

func TestWriteRepairsADamagedCopy(t *testing.T) {
	next, err := slot.New(slot.A).Arm(slot.B, 3)
	if err != nil {
		t.Fatal(err)
	}
	for name, damage := range map[string]func(string) error{
		"missing":  os.Remove,
		"empty":    func(p string) error { return os.Truncate(p, 0) },
		"nonsense": func(p string) error { return os.WriteFile(p, make([]byte, 2000), 0o644) },
		"of two sectors": func(p string) error {
			return os.WriteFile(p, []byte(strings.Repeat("#", slot.Size)+"\nseq=7\ntries=1\n"), 0o644)
		},
		"directory": func(p string) error { return errors.Join(os.Remove(p), os.Mkdir(p, 0o755)) },
	} {
		s, paths := installed(t)
		if err := damage(paths[1]); err != nil {
			t.Fatal(err)
		}
		if err := s.Write(next); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if got, err := s.Read(); err != nil || got != next {
			t.Errorf("%s: Read = %v, %v; want %v", name, got, err, next)
		}
		if data, err := os.ReadFile(paths[1]); err != nil || !bytes.Equal(data, encode(t, next)) {
			t.Errorf("%s: the file then: %q, %v; want the state and nothing else", name, data, err)
		}
	}
}

func TestBothDamaged(t *testing.T) {
	s := New(t.TempDir())
	if _, err := s.Read(); !errors.Is(err, slot.ErrInvalid) {
		t.Errorf("Read of nothing: %v; want ErrInvalid", err)
	}
	if err := s.Write(slot.New(slot.A)); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Read(); err != nil || got != slot.New(slot.A) {
		t.Errorf("Read = %v, %v", got, err)
	}
}
