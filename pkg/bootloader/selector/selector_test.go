package selector_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-os/cairn/pkg/bootloader/conformance"
	"github.com/cairn-os/cairn/pkg/bootloader/selector"
	"github.com/cairn-os/cairn/pkg/partition"
	"github.com/cairn-os/cairn/pkg/slot"
)

// files is a disk by partition and path.
type files map[string]map[string][]byte

func (f files) Size(part, path string) (int64, error) {
	data, err := f.Head(part, path, 1<<30)
	return int64(len(data)), err
}

func (f files) Head(part, path string, n int) ([]byte, error) {
	data, ok := f[part][path]
	if !ok {
		return nil, fs.ErrNotExist
	}
	return data[:min(n, len(data))], nil
}

func (f files) Sum(part, path string) ([sha256.Size]byte, error) {
	data, err := f.Head(part, path, 1<<30)
	return sha256.Sum256(data), err
}

func (f files) Write(path string, data []byte) error {
	f[partition.System][path] = data
	return nil
}

func block(t testing.TB, s slot.State) []byte {
	t.Helper()
	data, err := s.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// machine is an installed disk with its first state copy replaced.
func machine(t testing.TB, s slot.State) files {
	f := files(conformance.Installed(slot.A))
	f[partition.System]["cairn/state1.env"] = block(t, s)
	return f
}

var onTrial = slot.State{Seq: 5, Confirmed: slot.A, Trial: slot.B, Tries: 3}

// TestGRUB looks at what the table of pkg/build/grub, which real GRUB is held
// to as well, does not show: messages, the command line and what is written.
func TestGRUB(t *testing.T) {
	f := machine(t, onTrial)
	before := bytes.Clone(f[partition.System]["cairn/state1.env"])
	b := selector.GRUB(f)
	want := selector.Boot{Slot: slot.B, Cmdline: "version=b",
		Writes:   []selector.Write{{Path: "cairn/state1.env", Data: block(t, slot.State{Seq: 5, Confirmed: slot.A, Trial: slot.B, Tries: 2})}},
		Messages: []string{"slot b is on trial, tries left after this one: 2", "starting slot b"}}
	if diff := cmp.Diff(want, b); diff != "" {
		t.Errorf("boot on trial (-want +got):\n%s", diff)
	}
	changed := 0
	for i := range before {
		if before[i] != b.Writes[0].Data[i] {
			changed++
		}
	}
	if changed != 2 {
		t.Errorf("the count changes %d bytes; want 2", changed)
	}
	for _, tt := range []struct {
		name string
		do   func(files)
		want slot.Slot
		said string
	}{
		{"trial slot's sums", func(f files) { f[partition.BootB]["vmlinuz"] = bytes.Clone(f[partition.BootA]["vmlinuz"]) }, slot.A, "slot b is damaged: refused"},
		{"no kernels", func(f files) { delete(f[partition.BootA], "vmlinuz"); delete(f[partition.BootB], "vmlinuz") }, slot.None,
			"no slot can be started. Flash this disk anew. Trying again in a minute."},
		{"both slots wiped", func(f files) { delete(f, partition.BootA); delete(f, partition.BootB) }, slot.None, "slot a is damaged"},
		{"an empty list of sums", func(f files) { f[partition.BootB]["sha256sums"] = nil }, slot.A, "slot b is damaged: refused"},
		{"a short list of sums", func(f files) { f[partition.BootB]["sha256sums"] = []byte("00  x\n") }, slot.A, "slot b is damaged: refused"},
		{"a list of a file that is not there", func(f files) {
			f[partition.BootB]["sha256sums"] = fmt.Appendf(nil, "%x  x\n", sha256.Sum256(nil))
		}, slot.A, "slot b is damaged: refused"},
	} {
		f := machine(t, onTrial)
		tt.do(f)
		b := selector.GRUB(f)
		if b.Slot != tt.want || !bytes.Contains(fmt.Append(nil, b.Messages), []byte(tt.said)) {
			t.Errorf("%s: slot %s, %q; want %s, %q", tt.name, b.Slot, b.Messages, tt.want, tt.said)
		}
	}
}

// pi is a machine whose firmware boots slot a, or by the flag slot b.
func pi() files {
	f := files(conformance.Installed(slot.A))
	f[partition.System]["autoboot.txt"] = []byte("[all]\ntryboot_a_b=1\nboot_partition=2\n[tryboot]\nboot_partition=3\n")
	f[partition.BootA]["config.txt"] = []byte("kernel=vmlinuz\n")
	f[partition.BootB]["config.txt"] = []byte("kernel=vmlinuz\n")
	return f
}

func TestFirmware(t *testing.T) {
	auto := func(text string) func(files) {
		return func(f files) { f[partition.System]["autoboot.txt"] = []byte(text) }
	}
	for _, tt := range []struct {
		name, argument string
		do             func(files)
		stays, walks   slot.Slot // without and with PARTITION_WALK
	}{
		{"power-on", "", nil, slot.A, slot.A},
		{"the flag", "0 tryboot", nil, slot.B, slot.B},
		{"a partition", "3", nil, slot.B, slot.B},
		{"nonsense as argument", "tryboot", nil, slot.A, slot.A},
		{"no autoboot.txt", "", func(f files) { delete(f[partition.System], "autoboot.txt") }, slot.None, slot.A},
		{"noise", "", auto("\x00\xff[all"), slot.None, slot.A},
		{"zeros and the flag", "0 tryboot", auto(string(make([]byte, 512))), slot.None, slot.None}, // looks for tryboot.txt
		{"another filter", "", auto("[pi4]\nboot_partition=3\n[all]\nboot_partition=2\n"), slot.A, slot.A},
		{"none", "", auto("[all]\nboot_partition=2\n[none]\nboot_partition=3\n"), slot.A, slot.A},
		{"behind 512 bytes", "", auto("[all]\nboot_partition=2\n" + string(bytes.Repeat([]byte("#"), 512)) + "\nboot_partition=3\n"), slot.A, slot.A},
		{"CRLF", "0 tryboot", auto("[all]\r\ntryboot_a_b=1\r\nboot_partition=2\r\n[tryboot]\r\nboot_partition=3\r\n"), slot.B, slot.B},
		{"slot without config.txt", "", func(f files) { delete(f[partition.BootA], "config.txt") }, slot.None, slot.B},
		{"slot wiped, by the flag", "0 tryboot", func(f files) { delete(f, partition.BootB) }, slot.None, slot.A},
		{"slot without kernel", "", func(f files) { delete(f[partition.BootA], "vmlinuz") }, slot.None, slot.None},
	} {
		for walk, want := range map[bool]slot.Slot{false: tt.stays, true: tt.walks} {
			f := pi()
			if tt.do != nil {
				tt.do(f)
			}
			if b := (selector.Firmware{Walk: walk}).Boot(f, tt.argument); b.Slot != want {
				t.Errorf("%s, walk %v: slot %s, %q; want %s", tt.name, walk, b.Slot, b.Messages, want)
			}
		}
	}
}

// FuzzGRUB gives both state files any content: a machine whose slots are whole
// always boots, and slot.Choose takes the same state as the selector.
func FuzzGRUB(f *testing.F) {
	f.Add(block(f, onTrial), block(f, slot.New(slot.B)))
	f.Add([]byte("# GRUB Environment Block\n\\\n=\x00"), []byte{})
	f.Fuzz(func(t *testing.T, first, second []byte) {
		disk := files(conformance.Installed(slot.A))
		disk[partition.System]["cairn/state1.env"], disk[partition.System]["cairn/state2.env"] = first, second
		state, _, err := slot.Choose(first, second)
		b := selector.GRUB(disk)
		switch {
		case b.Slot == slot.None:
			t.Errorf("nothing was started: %q", b.Messages)
		case err != nil && b.Slot != slot.A:
			t.Errorf("slot %s without a state", b.Slot)
		case err == nil && b.Slot != state.Confirmed && (state.Phase() != slot.OnTrial || b.Slot != state.Trial):
			t.Errorf("slot %s with state %v", b.Slot, state)
		}
		if b.Slot == state.Trial && err == nil {
			after, _, err := slot.Choose(disk[partition.System]["cairn/state1.env"], disk[partition.System]["cairn/state2.env"])
			if _, want, _ := state.Attempt(); err != nil || after != want {
				t.Errorf("state after a try: %v, %v; want %v", after, err, want)
			}
		}
	})
}

func BenchmarkGRUB(b *testing.B) {
	f := machine(b, slot.New(slot.A))
	for b.Loop() {
		if boot := selector.GRUB(f); boot.Slot != slot.A {
			b.Fatal(boot)
		}
	}
}

func BenchmarkGRUBOnTrial(b *testing.B) {
	state := block(b, onTrial)
	f := machine(b, onTrial)
	for b.Loop() {
		f[partition.System]["cairn/state1.env"] = state
		if boot := selector.GRUB(f); boot.Slot != slot.B {
			b.Fatal(boot)
		}
	}
}

func BenchmarkFirmware(b *testing.B) {
	f := pi()
	for b.Loop() {
		if boot := (selector.Firmware{}).Boot(f, ""); boot.Slot != slot.A {
			b.Fatal(boot)
		}
	}
}
