package crashlog

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

// What kernels wrote at the end of such boots.
const (
	// No init on the initramfs, with checksums.
	noInit = `Panic#1 Part1
<6>[    2.130341] Freeing unused kernel image (initmem) memory: 2412K
<6>[    2.139044] Run /init as init process
<3>[    2.142103] Failed to execute /init (error -2)
<0>[    2.147716] Kernel panic - not syncing: No working init found.  Try passing init= option to kernel. See Linux Documentation/admin-guide/init.rst for guidance.
<4>[    2.149301] CPU: 0 UID: 0 PID: 1 Comm: swapper/0 Not tainted 6.12.57-cairn #1
<4>[    2.150212] Hardware name: QEMU Standard PC (Q35 + ICH9, 2009), BIOS 1.16.2-debian-1.16.2-1 04/01/2014
<4>[    2.151544] Call Trace:
<4>[    2.151993]  <TASK>
<4>[    2.152402]  panic+0x10a/0x2c0
<4>[    2.152991]  kernel_init+0x187/0x1b0
<4>[    2.153640]  ret_from_fork+0x2c/0x50
<4>[    2.155302]  </TASK>

ECC: No errors detected
`
	killed = `Panic#2 Part1
<0>[   71.401773] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100
<4>[   71.402417] CPU: 1 UID: 0 PID: 1 Comm: init Tainted: G      D            6.12.57-cairn #1
`
	null = `Oops#1 Part1
<1>[   58.909947] BUG: kernel NULL pointer dereference, address: 0000000000000008
<1>[   58.911402] #PF: supervisor read access in kernel mode
<4>[   58.914402] Oops: Oops: 0000 [#1] PREEMPT SMP PTI
<4>[   58.915201] RIP: 0010:do_something+0x4/0xc
`
	softLockup = `Panic#1 Part1
<0>[  212.312001] watchdog: BUG: soft lockup - CPU#1 stuck for 26s! [kworker/1:2:118]
<0>[  212.340917] Kernel panic - not syncing: softlockup: hung tasks
<4>[  212.341500] CPU: 1 UID: 0 PID: 118 Comm: kworker/1:2 Not tainted 6.12.57-cairn #1
`
	// The end of a console that nobody ended.
	hung = "[    0.000000] Linux version 6.12.57-cairn\n[   12.402551] cairn: phase 4/21 watchdog 1ms\n" +
		"[   12.502551] cairn: phase 5/21 hotplug 98ms\n\nECC: 3 Corrected bytes, 0 unrecoverable blocks\n"
	// And of one that ended in order.
	orderly  = "[  700.512003] cairn: the node is down: reboot\n[  700.598412] reboot: Restarting system\n\nECC: No errors detected\n"
	panicked = "[    2.147716] Kernel panic - not syncing: No working init found.\n[    2.160000] Kernel Offset: 0x2a000000 from 0xffffffff81000000\n" +
		"[    2.170000] Rebooting in 10 seconds..\n"
)

// folder is a fake of pstore.
func folder(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o444); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}

func TestLines(t *testing.T) {
	for name, tt := range map[string]struct {
		file, text string
		kind       Kind
		line       string
	}{
		"no init":       {"dmesg-ramoops-0", noInit, Panic, "No working init found.  Try passing init= option to kernel. See Linux Documentation/admin-guide/init.rst for guidance."},
		"init died":     {"dmesg-ramoops-11", killed, Panic, "Attempted to kill init! exitcode=0x00000100"},
		"null":          {"dmesg-ramoops-0", null, Oops, "BUG: kernel NULL pointer dereference, address: 0000000000000008"},
		"soft lockup":   {"dmesg-erst-6120394857612349441", softLockup, Panic, "softlockup: hung tasks"},
		"hang":          {"console-ramoops-0", hung, Console, "cairn: phase 5/21 hotplug 98ms"},
		"in order":      {"console-ramoops-0", orderly, Console, "reboot: Restarting system"},
		"panic too":     {"console-ramoops-0", panicked, Console, "No working init found."},
		"no header":     {"dmesg-ramoops-0", "#1 P\xff\xfert1\n" + killed[14:], Panic, "Attempted to kill init! exitcode=0x00000100"},
		"not a crash":   {"dmesg-ramoops-0", "\x00\x01\x02\n", Oops, "???"},
		"empty":         {"dmesg-ramoops-0", "", Oops, ""},
		"endless line":  {"dmesg-ramoops-0", "Panic#1 Part1\n<0>[ 1.000000] Kernel panic - not syncing: " + strings.Repeat("x", 300), Panic, strings.Repeat("x", 200) + "…"},
		"with a thread": {"console-ramoops-0", "[    2.130341][    T1] Run /init as init process\n", Console, "Run /init as init process"},
	} {
		all, err := Read(folder(t, map[string]string{tt.file: tt.text, "pmsg-ramoops-0": "x", "dmesg-ramoops-1.enc.z": "\x78\x9c"}))
		if err != nil || len(all) != 1 || all[0].Kind != tt.kind || all[0].Line != tt.line {
			t.Errorf("%s: Read() = %+v, %v; want one %s with %q", name, all, err, tt.kind, tt.line)
			continue
		}
		if strings.Contains(all[0].Text, "ECC:") || strings.Contains(all[0].Text, "<0>") {
			t.Errorf("%s: the text has what the kernel's log does not say:\n%s", name, all[0].Text)
		}
		if got, want := all[0].InOrder(), name == "in order"; got != want {
			t.Errorf("%s: InOrder() = %v; want %v", name, got, want)
		}
	}
}

// TestParts: firmware keeps a text in parts of 1 KiB, the end of it first, and each with its own time.
func TestParts(t *testing.T) {
	all, err := Read(folder(t, map[string]string{
		"dmesg-efi_pstore-176371200003001": "Panic#1 Part3\n<6>[    1.000000] one\n",
		"dmesg-efi_pstore-176371200002001": "Panic#1 Part2\n<6>[    2.000000] two\n",
		// The second changed while it was written.
		"dmesg-efi_pstore-176371200101001": "Panic#1 Part1\n<0>[    3.000000] Kernel panic - not syncing: three\n",
		// A week before, the same count.
		"dmesg-efi_pstore-176310720001001": "Panic#1 Part1\n<0>[    9.000000] Kernel panic - not syncing: old\n",
		// The oops before the panic.
		"dmesg-efi_pstore-176371199901001": "Oops#1 Part1\n<1>[    2.500000] BUG: bad\n",
		"console-ramoops-0":                hung,
	}))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range all {
		got = append(got, fmt.Sprintf("%s: %s: %d files, %d lines", r.Kind, r.Line, len(r.Files), len(r.Tail())))
	}
	want := []string{
		"panic: old: 1 files, 1 lines", "oops: BUG: bad: 1 files, 1 lines", "panic: three: 3 files, 3 lines",
		"console: cairn: phase 5/21 hotplug 98ms: 1 files, 3 lines",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("records (-want +got):\n%s", diff)
	}
	if text := "[    1.000000] one\n[    2.000000] two\n[    3.000000] Kernel panic - not syncing: three\n"; all[2].Text != text {
		t.Errorf("text %q; want %q", all[2].Text, text)
	}
}

func TestMove(t *testing.T) {
	kept := t.TempDir()
	pstore := folder(t, map[string]string{"dmesg-ramoops-0": null, "dmesg-ramoops-1": killed, "console-ramoops-0": panicked, "pmsg-ramoops-0": "x"})
	moved, err := Move(pstore, kept)
	if err != nil || len(moved) != 3 || moved[1].Path != filepath.Join(kept, "000002-panic.txt") {
		t.Fatalf("Move() = %+v, %v; want three", moved, err)
	}
	if diff := cmp.Diff([]string{"pmsg-ramoops-0"}, names(t, pstore)); diff != "" {
		t.Errorf("pstore (-want +got):\n%s", diff)
	}
	all, err := List(kept)
	if err != nil || len(all) != 3 || all[1].Kind != Panic || all[1].Line != moved[1].Line || all[1].Number != 2 || all[1].Moved.IsZero() {
		t.Errorf("List() = %+v, %v; want what was moved", all, err)
	}
	// The power was cut between keeping and removing: the same once more. And a boot that ended in order.
	pstore = folder(t, map[string]string{"dmesg-ramoops-1": killed, "console-ramoops-0": orderly})
	if moved, err := Move(pstore, kept); err != nil || len(moved) != 0 || len(names(t, pstore)) != 0 || len(names(t, kept)) != 3 {
		t.Errorf("Move() of what is known = %+v, %v; left %q", moved, err, names(t, pstore))
	}
	if moved, err := Move(filepath.Join(pstore, "none"), kept); err != nil || moved != nil {
		t.Errorf("Move() without pstore = %v, %v; want nothing", moved, err)
	}
}

// TestMoveBounds: a machine that crashes all day fills neither the disk nor the memory.
func TestMoveBounds(t *testing.T) {
	kept := t.TempDir()
	for i := range maxKept + 5 {
		text := fmt.Sprintf("%s%s<4>[    %d.000000] x\n", killed, strings.Repeat("<4>[    9.000000] y\n", 2500), i)
		if _, err := Move(folder(t, map[string]string{"dmesg-ramoops-0": text}), kept); err != nil {
			t.Fatal(err)
		}
	}
	all, err := List(kept)
	if err != nil || len(all) != maxKept || all[0].Number != 6 {
		t.Fatalf("%d records from number %d on, %v; want the newest %d", len(all), all[0].Number, err, maxKept)
	}
	for _, e := range all {
		if len(e.Text) > maxText || !strings.HasPrefix(e.Text, "[") {
			t.Errorf("%s: %d bytes that begin with %.20q; want whole lines of at most %d", e.Path, len(e.Text), e.Text, maxText)
		}
	}
}

// TestMoveKeepsWhatItCannotSave leaves the records where they are when the disk takes nothing.
func TestMoveKeepsWhatItCannotSave(t *testing.T) {
	pstore := folder(t, map[string]string{"dmesg-ramoops-0": killed})
	moved, err := Move(pstore, filepath.Join(t.TempDir(), "none"))
	if err == nil || len(moved) != 0 || len(names(t, pstore)) != 1 {
		t.Errorf("Move() = %v, %v, left %q; want an error and the record", moved, err, names(t, pstore))
	}
}

func FuzzParse(f *testing.F) {
	for _, text := range []string{noInit, null, hung, orderly, "Panic#1 Part99999999999\n", ""} {
		f.Add("dmesg-ramoops-0", text)
		f.Add("dmesg-efi_pstore-176371200002001", text)
		f.Add("console-ramoops-0", text)
	}
	f.Fuzz(func(t *testing.T, name, text string) {
		match := fileName.FindStringSubmatch(name)
		if match == nil {
			return
		}
		p := parse(match, text)
		for _, r := range join([]part{p, p}) {
			if len(r.Text) > maxText || len(r.Line) > maxLine+len("…") || !utf8.ValidString(r.Text) || !utf8.ValidString(r.Line) {
				t.Errorf("record %+v", r)
			}
			if r.Kind != Panic && r.Kind != Oops && r.Kind != Console {
				t.Errorf("kind %q", r.Kind)
			}
			r.Tail()
			r.InOrder()
		}
	})
}
