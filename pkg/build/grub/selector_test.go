package grub_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/diskfs/go-diskfs/filesystem/fat32"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/cairn-os/cairn/pkg/bootloader/selector"
	"github.com/cairn-os/cairn/pkg/build/cache"
	"github.com/cairn-os/cairn/pkg/build/debian"
	"github.com/cairn-os/cairn/pkg/build/disk"
	"github.com/cairn-os/cairn/pkg/build/grub"
	"github.com/cairn-os/cairn/pkg/build/lane"
	"github.com/cairn-os/cairn/pkg/partition"
	"github.com/cairn-os/cairn/pkg/slot"
	"github.com/cairn-os/cairn/pkg/vm"
)

const target = "../../../images/amd64/"

var tree = sync.OnceValues(func() (string, error) {
	c, err := cache.Open("")
	if err != nil {
		return "", err
	}
	ctx := context.Background()
	archive, err := debian.Open(ctx, c, "amd64")
	if err != nil {
		return "", err
	}
	dir, _, err := archive.Tree(ctx, append(grub.Packages, disk.ToolPackages...)...)
	return dir, err
})

func images(t *testing.T) grub.Images {
	t.Helper()
	dir, err := tree()
	if err != nil {
		t.Fatal(err)
	}
	config, err := os.ReadFile(target + "grub.cfg")
	if err != nil {
		t.Fatal(err)
	}
	i, err := grub.Build(t.Context(), dir, config)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func TestBuildIsReproducible(t *testing.T) {
	a, b := images(t), images(t)
	if !bytes.Equal(a.Boot, b.Boot) || !bytes.Equal(a.Core, b.Core) || !bytes.Equal(a.EFI, b.EFI) {
		t.Error("two builds differ")
	}
	t.Logf("core.img %d bytes, BOOTX64.EFI %d bytes", len(a.Core), len(a.EFI))
}

// kernel is the header of a Linux boot image (boot protocol 2.15) around no
// code: GRUB loads it, and running it is the end of the test.
func kernel() []byte {
	k := make([]byte, 64<<10)
	k[0x1f1] = 4 // setup sectors
	k[0x1fe], k[0x1ff] = 0x55, 0xaa
	k[0x200], k[0x201] = 0xeb, 0x66
	copy(k[0x202:], "HdrS")
	k[0x206], k[0x207] = 0x0f, 0x02
	k[0x211] = 1                                         // loaded high
	copy(k[0x22c:], []byte{0xff, 0xff, 0xff, 0x7f})      // highest address of an initrd
	copy(k[0x230:], []byte{0, 0, 0x20, 0})               // alignment
	k[0x234], k[0x235], k[0x236], k[0x237] = 1, 21, 1, 0 // relocatable; 64-bit entry
	copy(k[0x238:], []byte{0xff, 0x07, 0, 0})            // command line's length
	copy(k[0x258:], []byte{0, 0, 0, 1, 0, 0, 0, 0})      // preferred address
	copy(k[0x260:], []byte{0, 0, 0x10, 0})               // memory it needs
	for i := 5 * 512; i < len(k); i++ {
		k[i] = 0xf4 // hlt
	}
	return k
}

// base builds an image with both slots filled and slot b on trial, 3 tries.
func base(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	write := func(name string, data []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	tools, err := tree()
	if err != nil {
		t.Fatal(err)
	}
	recipe, err := disk.ReadRecipe(target + "disk.yaml")
	if err != nil {
		t.Fatal(err)
	}
	image := filepath.Join(dir, "base.img")
	err = disk.Build(t.Context(), disk.Spec{
		Recipe: recipe, GRUB: images(t), Kernel: write("vmlinuz", kernel()), Initramfs: write("initramfs.img", bytes.Repeat([]byte("initramfs"), 7000)),
		RootImage: write("root", nil), RootHash: strings.Repeat("0", 64), Version: "test", Epoch: time.Unix(1_700_000_000, 0), Tools: tools,
	}, image)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{}
	for _, name := range []string{"vmlinuz", "initramfs.img", "slot.env", "sha256sums", "EFI/BOOT/BOOTX64.EFI"} {
		if files[name], err = disk.ReadFile(image, partition.BootA, name); err != nil {
			t.Fatal(err)
		}
	}
	if err := disk.Put(image, partition.BootB, files); err != nil {
		t.Fatal(err)
	}
	return image
}

var (
	confirmedA = slot.State{Seq: 1, Confirmed: slot.A, Trial: slot.None}
	confirmedB = slot.State{Seq: 4, Confirmed: slot.B, Trial: slot.None}
	trialB     = slot.State{Seq: 5, Confirmed: slot.A, Trial: slot.B, Tries: 3}
)

func block(s slot.State) string {
	b, err := s.Encode()
	if err != nil {
		return ""
	}
	return string(b)
}

func sealed(values string) string {
	v := strings.Split(values, ":")
	return pad(fmt.Sprintf("# GRUB Environment Block\ncv=%s\nseq=%s\nconfirmed=%s\ntrial=%s\ntries=%s\nseal=%s\n", v[0], v[1], v[2], v[3], v[4], values))
}

func pad(s string) string { return s + strings.Repeat("#", max(0, slot.Size-len(s))) }

// damaged is a row of the table: what is done to a good image, and which slot
// must start.
type damaged struct {
	name   string
	first  string // content of state1.env; "-" means no file, "/" a folder
	second string
	do     func(image string) error
	want   string
	after  *slot.State // what the files must say then
	uefi   bool        // also under UEFI
	ro     bool
}

func put(name, file string, data []byte) func(string) error {
	return func(image string) error { return disk.Put(image, name, map[string][]byte{file: data}) }
}

func remove(name, file string) func(string) error {
	return func(image string) error {
		return disk.EditFAT(image, name, func(fs *fat32.FileSystem) error { return fs.Remove("/" + file) })
	}
}

// shortenSums leaves slot b's list of sums with its first line.
func shortenSums(image string) error {
	sums, err := disk.ReadFile(image, partition.BootB, "sha256sums")
	if err != nil {
		return err
	}
	first, _, _ := bytes.Cut(sums, []byte("\n"))
	return put(partition.BootB, "sha256sums", append(first, '\n'))(image)
}

func wipe(name string) func(string) error {
	return func(image string) error { return disk.WriteAt(image, name, make([]byte, 8<<20), 0) }
}

func table() []damaged {
	good, header := block(trialB), "# GRUB Environment Block\n"
	noise := string(bytes.Repeat([]byte{0x5a, 0xa7, 0x00, 0xfe, 0x3d, 0x0a, 0x22, 0x24}, slot.Size/8))
	counted := trialB
	counted.Tries = 2
	spent := trialB
	spent.Tries = 0
	k := kernel()
	corrupt := bytes.Clone(k)
	copy(corrupt[32<<10:], bytes.Repeat([]byte{0x5a}, 4096))
	rows := []damaged{
		{name: "confirmed a", first: block(confirmedA), second: "-", want: "a"},
		{name: "confirmed b", first: block(confirmedB), second: block(confirmedA), want: "b", uefi: true},
		{name: "second newer", first: block(confirmedA), second: block(confirmedB), want: "b"},
		{name: "numbers compare as numbers", first: block(slot.State{Seq: 9, Confirmed: slot.A, Trial: slot.None}),
			second: block(slot.State{Seq: 10, Confirmed: slot.B, Trial: slot.None}), want: "b"},
		{name: "trial counts down", first: good, second: block(confirmedA), want: "b", after: &counted, uefi: true},
		{name: "trial in the second copy", first: block(confirmedA), second: good, want: "b", after: &counted},
		{name: "no tries left", first: block(spent), second: "-", want: "a", after: &spent},
		{name: "first bad, second on trial", first: noise, second: good, want: "b", after: &counted},
		{name: "first cut, second on trial", first: good[:90], second: good, want: "b", after: &counted},
		{name: "both bad", first: noise, second: noise, want: "a", uefi: true},
		{name: "trial without padding", first: strings.TrimRight(good, "#"), second: block(confirmedA), want: "b", after: &counted},
		{name: "variables in the first of two sectors", first: good + strings.Repeat("#", 512), second: "-", want: "b"},
		{name: "newer torn, older counts", first: block(confirmedB), second: strings.Replace(good, "tries=3", "tries=4", 1), want: "b"},
		{name: "read-only disk", first: good, second: block(confirmedA), want: "a", ro: true},
		{name: "trial kernel missing", first: good, do: remove(partition.BootB, "vmlinuz"), want: "a", after: &counted},
		{name: "trial kernel zeroed", first: good, do: put(partition.BootB, "vmlinuz", make([]byte, len(k))), want: "a", after: &counted},
		{name: "trial kernel truncated", first: good, do: put(partition.BootB, "vmlinuz", k[:40<<10]), want: "a", after: &counted},
		{name: "trial kernel corrupted", first: good, do: put(partition.BootB, "vmlinuz", corrupt), want: "a", after: &counted, uefi: true},
		{name: "trial initramfs missing", first: good, do: remove(partition.BootB, "initramfs.img"), want: "a", after: &counted},
		{name: "trial sums missing", first: good, do: remove(partition.BootB, "sha256sums"), want: "a"},
		{name: "trial sums of the kernel only", first: good, do: shortenSums, want: "b", after: &counted},
		{name: "trial sums empty", first: good, do: put(partition.BootB, "sha256sums", nil), want: "a"},
		{name: "trial command line damaged", first: good, do: put(partition.BootB, "slot.env", make([]byte, 512)), want: "a"},
		{name: "trial partition wiped", first: good, do: wipe(partition.BootB), want: "a", after: &counted},
		{name: "confirmed kernel missing", first: block(confirmedA), do: remove(partition.BootA, "vmlinuz"), want: "b"},
		{name: "confirmed kernel zeroed", first: block(confirmedA), do: put(partition.BootA, "vmlinuz", make([]byte, len(k))), want: "b"},
		{name: "confirmed partition wiped", first: block(confirmedA), do: wipe(partition.BootA), want: "b"},
		{name: "CAIRN_SYS wiped", first: block(confirmedA), do: wipe(partition.System), want: "a", uefi: true},
	}
	// What is a variable, is for GRUB to say.
	values := good[len(header):]
	rows = append(rows,
		damaged{name: "a line of text before the state", first: pad(header + "text\n" + strings.TrimRight(values, "#")), second: "-", want: "a"},
		damaged{name: "a zero byte behind the seal", first: strings.Replace(good, "seal=1:5:a:b:3\n##", "seal=1:5:a:b:3\x00#\n", 1), second: "-", want: "b", after: &counted},
		damaged{name: "an escape in the state", first: strings.Replace(good, "confirmed=a\n", "confirmed=\\a\n", 1)[:slot.Size], second: "-", want: "b", after: &counted},
		damaged{name: "the count twice", first: pad(header + "tries=9\n" + strings.TrimRight(values, "#")), second: "-", want: "a"},
		damaged{name: "no newline before the padding", first: strings.Replace(good, "3\n##", "3\n#\\", 1), second: "-", want: "a"},
	)
	// Nothing but the state's own variables is taken from a file.
	rows = append(rows, damaged{name: "hostile variables beside a good state", second: "-", want: "b", after: &counted,
		first: pad(header + "root=(hd9)\nprefix=(hd9)/x\ndisk=hd9\nsafe=b\nchosen=x\n" + strings.TrimRight(good[len(header):], "#"))})
	for name, content := range map[string]string{
		"missing": "-", "directory": "/", "empty": "", "zeros": strings.Repeat("\x00", slot.Size), "random": noise,
		"header only": header, "header, random": (header + noise)[:slot.Size], "header, zeros": header + strings.Repeat("\x00", slot.Size-len(header)),
		"cut in the seal":   good[:strings.Index(good, "seal=")+8],
		"hostile variables": pad(header + "root=(hd9)\nprefix=(hd9)/x\ndisk=hd9\nsafe=b\nother=b\nchosen=x\nok=yes\n"),
		"quotes":            pad(header + "cv=1\"; start b; \"\nseq='$(reboot)'\nconfirmed=\"\ntrial=\\\"\ntries=${x}\nseal=\"'\n"),
		"an operator":       pad(header + "cv=1\nseq=-o\nconfirmed=(\ntrial=)\ntries=!\nseal=(\n"),
		"confirmed c":       sealed("1:1:c:none:0"), "trial is confirmed": sealed("1:1:b:b:3"), "tries of two digits": sealed("1:1:a:b:33"),
		"negative number": sealed("1:-1:b:none:0"), "octal number": sealed("1:010:b:none:0"), "huge number": sealed("1:99999999999999999999:b:none:0"),
		"another version": sealed("2:1:b:none:0"), "tries without a trial": sealed("1:1:b:none:3"),
	} {
		rows = append(rows, damaged{name: "state " + name, first: content, second: "-", want: "a"})
	}
	return rows
}

// prepare makes the image of a row.
func (d damaged) prepare(base, image string) error {
	if err := disk.Copy(base, image); err != nil {
		return err
	}
	for i, content := range []string{d.first, d.second} {
		name := disk.StateFiles[i]
		var err error
		switch content {
		case "-", "/":
			err = disk.EditFAT(image, partition.System, func(fs *fat32.FileSystem) error {
				err := fs.Remove("/" + name)
				if content == "/" {
					err = errors.Join(err, fs.Mkdir("/"+name))
				}
				return err
			})
		default:
			err = put(partition.System, name, []byte(content))(image)
		}
		if err != nil {
			return err
		}
	}
	if d.do == nil {
		return nil
	}
	return d.do(image)
}

// boot starts the machine and returns the slot whose kernel was loaded.
func boot(t *testing.T, image string, firmware vm.Firmware, readOnly bool) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	m, err := vm.Start(ctx, vm.Config{Disk: image, Firmware: firmware, MemoryMiB: 256, CPUs: 1, ReadOnly: readOnly, NoReboot: true})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Kill()
	line := regexp.MustCompile(`cairn: (?:starting slot ([ab])|slot [ab] cannot be loaded|no slot can be started)`)
	last := ""
	for {
		wait, stop := ctx, context.CancelFunc(func() {})
		if last != "" { // nothing more is said once the kernel runs
			wait, stop = context.WithTimeout(ctx, time.Second)
		}
		match, err := m.WaitConsole(wait, line)
		stop()
		switch {
		case err != nil && last != "" && ctx.Err() == nil:
			return last
		case err != nil:
			t.Fatalf("%v; console:\n%q", err, m.Transcript())
		case match.Groups[0] == "":
			last = ""
			if strings.Contains(match.Text, "no slot") {
				return "none"
			}
		default:
			last = match.Groups[0]
		}
		if strings.Contains(m.Transcript(), "grub>") {
			t.Fatalf("a prompt; console:\n%q", m.Transcript())
		}
	}
}

// state reads what the selector would find next time.
func state(t *testing.T, image string) slot.State {
	t.Helper()
	var copies [2][]byte
	for i, name := range disk.StateFiles {
		copies[i], _ = disk.ReadFile(image, partition.System, name)
	}
	s, _, err := slot.Choose(copies[0], copies[1])
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// files are those of an image that a selector looks at, by partition and path:
// the selector.Disk of the model.
type files struct {
	held     map[string]map[string][]byte
	readOnly bool
}

func read(image string, readOnly bool) files {
	held := map[string]map[string][]byte{}
	for name, paths := range map[string][]string{
		partition.System: disk.StateFiles[:],
		partition.BootA:  {"vmlinuz", "initramfs.img", "slot.env", "sha256sums"},
		partition.BootB:  {"vmlinuz", "initramfs.img", "slot.env", "sha256sums"},
	} {
		held[name] = map[string][]byte{}
		for _, path := range paths {
			if data, err := disk.ReadFile(image, name, path); err == nil {
				held[name][path] = data
			}
		}
	}
	return files{held, readOnly}
}

// setStates does to the files what prepare does to an image.
func (f files) setStates(contents ...string) {
	for i, content := range contents {
		delete(f.held[partition.System], disk.StateFiles[i])
		if content != "-" && content != "/" {
			f.held[partition.System][disk.StateFiles[i]] = []byte(content)
		}
	}
}

func (f files) Size(part, path string) (int64, error) {
	data, err := f.Head(part, path, 1<<30)
	return int64(len(data)), err
}

func (f files) Head(part, path string, n int) ([]byte, error) {
	data, ok := f.held[part][path]
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
	if f.readOnly {
		return unix.EROFS
	}
	f.held[partition.System][path] = data
	return nil
}

// TestModel holds the model of the selector to the table that real GRUB is held
// to.
func TestModel(t *testing.T) {
	image := base(t)
	own := filepath.Join(t.TempDir(), "disk.img")
	for _, d := range table() {
		f := read(image, d.ro)
		if d.do != nil {
			if err := d.prepare(image, own); err != nil {
				t.Fatalf("%s: %v", d.name, err)
			}
			f = read(own, d.ro)
		} else {
			f.setStates(d.first, d.second)
		}
		if b := selector.GRUB(f); string(b.Slot) != d.want {
			t.Errorf("%s: slot %s; want %s; messages %q", d.name, b.Slot, d.want, b.Messages)
		}
		if d.after == nil {
			continue
		}
		s, _, err := slot.Choose(f.held[partition.System][disk.StateFiles[0]], f.held[partition.System][disk.StateFiles[1]])
		if err != nil || s != *d.after {
			t.Errorf("%s: state then: %v, %v; want %v", d.name, s, err, *d.after)
		}
	}
}

// agree starts the model on the files of an image as they were before real GRUB
// ran, and compares what both did.
func agree(t *testing.T, before files, image, started string) {
	t.Helper()
	b := selector.GRUB(before)
	if string(b.Slot) != started {
		t.Errorf("the model starts slot %s, GRUB %s; the model says %q", b.Slot, started, b.Messages)
	}
	if diff := cmp.Diff(read(image, false).held[partition.System], before.held[partition.System]); diff != "" {
		t.Errorf("state files (-GRUB +model):\n%s", diff)
	}
}

// TestDamagedStates boots every row under BIOS, and a sample under UEFI, and
// compares real GRUB with the model.
func TestDamagedStates(t *testing.T) {
	lane.Require(t, "vm")
	image := base(t)
	for _, firmware := range []vm.Firmware{vm.BIOS, vm.UEFI} {
		for _, d := range table() {
			if firmware == vm.UEFI && !d.uefi {
				continue
			}
			t.Run(string(firmware)+"/"+d.name, func(t *testing.T) {
				t.Parallel()
				own := filepath.Join(t.TempDir(), "disk.img")
				if err := d.prepare(image, own); err != nil {
					t.Fatal(err)
				}
				before := read(own, d.ro)
				got := boot(t, own, firmware, d.ro)
				if got != d.want {
					t.Errorf("slot %s started; want %s", got, d.want)
				}
				agree(t, before, own, got)
				if d.after != nil {
					if got := state(t, own); got != *d.after {
						t.Errorf("state then: %v; want %v", got, *d.after)
					}
				}
			})
		}
	}
}

// TestCountdown lets a trial slot fail until the confirmed one comes back.
func TestCountdown(t *testing.T) {
	lane.Require(t, "vm")
	image := base(t)
	if err := put(partition.System, disk.StateFiles[1], []byte(block(trialB)))(image); err != nil {
		t.Fatal(err)
	}
	want := trialB
	for i := range 5 {
		expected, next, err := want.Attempt()
		if err != nil {
			t.Fatal(err)
		}
		before := read(image, false)
		got := boot(t, image, vm.BIOS, false)
		if got != string(expected) {
			t.Errorf("boot %d: slot %s; want %s", i+1, got, expected)
		}
		agree(t, before, image, got)
		if got := state(t, image); got != next {
			t.Errorf("boot %d: state %v; want %v", i+1, got, next)
		}
		want = next
	}
}
