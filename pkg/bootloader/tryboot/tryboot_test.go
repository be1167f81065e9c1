package tryboot

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/cairn-os/cairn/pkg/bootloader/sysfile"
	"github.com/cairn-os/cairn/pkg/slot"
)

func TestAutoboot(t *testing.T) {
	want := "[all]\ntryboot_a_b=1\nboot_partition=2\n[tryboot]\nboot_partition=3\n"
	a, err := EncodeAutoboot(slot.A)
	if err != nil || string(a) != want {
		t.Errorf("autoboot.txt of slot a: %q, %v; want %q", a, err, want)
	}
	b, err := EncodeAutoboot(slot.B)
	if err != nil || len(b) != len(a) {
		t.Fatalf("autoboot.txt of slot b: %q, %v", b, err)
	}
	different := 0
	for i := range a {
		if a[i] != b[i] {
			different++
		}
	}
	if different != 2 {
		t.Errorf("the two differ in %d bytes; want 2", different)
	}
	if data, err := EncodeAutoboot(slot.None); err == nil {
		t.Errorf("autoboot.txt of no slot: %q", data)
	}
	for _, tt := range []struct {
		name, text string
		want       slot.Slot
	}{
		{"a", string(a), slot.A},
		{"b", string(b), slot.B},
		{"the first digit written", "[all]\ntryboot_a_b=1\nboot_partition=3\n[tryboot]\nboot_partition=3\n", slot.B},
		{"by an owner's editor", "# mine\r\n[all]\r\ntryboot_a_b=1\r\nboot_partition=3\r\n", slot.B},
		{"empty", "", slot.None},
		{"no A/B", "[all]\nboot_partition=2\n", slot.None},
		{"another partition", "[all]\ntryboot_a_b=1\nboot_partition=1\n", slot.None},
		{"no number", "[all]\ntryboot_a_b=1\nboot_partition=x\n", slot.None},
		{"for tryboot only", "[tryboot]\ntryboot_a_b=1\nboot_partition=2\n", slot.None},
		{"behind the sector", string(make([]byte, 512)) + want, slot.None},
	} {
		if got := DecodeAutoboot([]byte(tt.text)); got != tt.want {
			t.Errorf("%s: slot %s; want %s", tt.name, got, tt.want)
		}
	}
}

func FuzzDecodeAutoboot(f *testing.F) {
	f.Add([]byte("[all]\ntryboot_a_b=1\nboot_partition=2\n[tryboot]\nboot_partition=3\n"))
	f.Add([]byte("[none]\nboot_partition=2"))
	f.Fuzz(func(t *testing.T, data []byte) {
		switch got := DecodeAutoboot(data); got {
		case slot.A, slot.B, slot.None:
		default:
			t.Errorf("slot %q", got)
		}
	})
}

// TestOnFiles does an upgrade on real files: they stay the same sectors.
func TestOnFiles(t *testing.T) {
	dir := t.TempDir()
	s := New(sysfile.Dir{Path: dir})
	// Nothing is there: the running slot becomes the confirmed one.
	if state, err := s.Repair(slot.B); err != nil || state.Confirmed != slot.B || state.Phase() != slot.Settled {
		t.Fatalf("repair: %v, %v", state, err)
	}
	path := filepath.Join(dir, Autoboot)
	inode := func() uint64 {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return info.Sys().(*syscall.Stat_t).Ino
	}
	before := inode()
	if _, err := s.Arm(slot.A, 1); err != nil {
		t.Fatal(err)
	}
	if r, err := s.Restart(); err != nil || r.Argument != "0 tryboot" {
		t.Fatalf("restart with %q, %v", r.Argument, err)
	}
	if r, err := s.Restart(); err != nil || r.Argument != "" {
		t.Errorf("restart without tries: %q, %v", r.Argument, err)
	}
	state, err := s.Confirm(slot.A)
	if err != nil {
		t.Fatal(err)
	}
	want, err := EncodeAutoboot(slot.A)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != string(want) || inode() != before {
		t.Errorf("autoboot.txt: %q, %v; want %q in the same place", got, err, want)
	}
	if read, err := s.Read(); err != nil || read != state {
		t.Errorf("Read = %v, %v; want %v", read, err, state)
	}
}

// TestStateFilesLost keeps the confirmed slot by autoboot.txt alone.
func TestStateFilesLost(t *testing.T) {
	dir := t.TempDir()
	s := New(sysfile.Dir{Path: dir})
	if _, err := s.Read(); !errors.Is(err, slot.ErrInvalid) {
		t.Errorf("Read of nothing: %v; want ErrInvalid", err)
	}
	if _, err := s.Repair(slot.B); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(dir, "cairn")); err != nil {
		t.Fatal(err)
	}
	if state, err := s.Read(); err != nil || state.Confirmed != slot.B {
		t.Errorf("Read = %v, %v; want slot b", state, err)
	}
	if state, err := s.Repair(slot.B); err != nil || state.Confirmed != slot.B {
		t.Errorf("Repair = %v, %v; want slot b", state, err)
	}
}

func TestRunning(t *testing.T) {
	for _, tt := range []struct {
		name               string
		partition, tryboot []byte
		want               slot.Slot
		tried              bool
	}{
		{"default", []byte{0, 0, 0, 2}, []byte{0, 0, 0, 0}, slot.A, false},
		{"by the flag", []byte{0, 0, 0, 3}, []byte{0, 0, 0, 1}, slot.B, true},
		{"another partition", []byte{0, 0, 0, 1}, []byte{0, 0, 0, 0}, slot.None, false},
		{"no cell", []byte{2}, []byte{0, 0, 0, 0}, slot.None, false},
		{"older firmware", []byte{0, 0, 0, 2}, nil, slot.None, false},
	} {
		dir := t.TempDir()
		for name, data := range map[string][]byte{"partition": tt.partition, "tryboot": tt.tryboot} {
			if data == nil {
				continue
			}
			if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		got, tried, err := Running(dir)
		if got != tt.want || tried != tt.tried || (err == nil) != (tt.want != slot.None) {
			t.Errorf("%s: %v, %v, %v; want %v, %v", tt.name, got, tried, err, tt.want, tt.tried)
		}
	}
}
