package selector

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"regexp"
	"strconv"
	"strings"

	"github.com/cairn-os/cairn/pkg/bootloader/sysfile"
	"github.com/cairn-os/cairn/pkg/partition"
	"github.com/cairn-os/cairn/pkg/slot"
)

// maxSmall bounds what is read of files that are small; GRUB reads all.
const maxSmall = 1 << 20

// legal is the expression of grub.cfg.
var legal = regexp.MustCompile(`^1:(0|[1-9][0-9]{0,8}):(a:none:0|b:none:0|a:b:[0-9]|b:a:[0-9])$`)

// grub is one run of grub.cfg; its methods are that file's functions and its
// fields the variables.
type grub struct {
	disk Disk
	boot Boot

	cv, seq, confirmed, trial, tries, seal string

	from, cmdline string
}

// GRUB runs grub.cfg on d. That GRUB itself was found and read is taken for
// granted; its copies are not looked at.
func GRUB(d Disk) Boot {
	g := &grub{disk: d, boot: Boot{Slot: slot.None}}
	g.run()
	return g.boot
}

func (g *grub) run() {
	chosen := g.choose()
	safe, tries, trial := "a", "0", "none"
	if chosen == "" {
		g.boot.say("no valid slot state")
	} else {
		g.readState(chosen)
		safe, tries, trial = g.confirmed, g.tries, g.trial
	}
	other := "b"
	if safe == "b" {
		other = "a"
	}
	if trial != "none" && g.try(chosen, trial, tries) {
		return
	}
	if g.present(safe) {
		if g.start(safe) {
			return
		}
	} else {
		g.boot.say("slot " + safe + " is damaged")
	}
	if g.whole(other) && g.start(other) {
		return
	}
	g.boot.say("no slot can be started. Flash this disk anew. Trying again in a minute.")
}

// choose returns the file with the newer valid state; the first of equals.
func (g *grub) choose() string {
	chosen, best := "", 0
	for _, file := range []string{sysfile.State1, sysfile.State2} {
		if size, err := g.disk.Size(partition.System, file); err != nil || size == 0 {
			continue
		}
		g.readState(file)
		if !legal.MatchString(g.seal) || g.seal != strings.Join([]string{g.cv, g.seq, g.confirmed, g.trial, g.tries}, ":") {
			continue
		}
		seq, err := strconv.Atoi(g.seq)
		if err != nil {
			continue // legal has digits only, and few
		}
		if chosen == "" || seq > best {
			chosen, best = file, seq
		}
	}
	return chosen
}

func (g *grub) readState(file string) {
	vars := g.environment(partition.System, file)
	g.cv, g.seq, g.confirmed, g.trial, g.tries, g.seal = vars["cv"], vars["seq"], vars["confirmed"], vars["trial"], vars["tries"], vars["seal"]
}

// environment is load_env: what is no environment block has no variables.
func (g *grub) environment(part, path string) map[string]string {
	data, err := g.disk.Head(part, path, maxSmall)
	if err != nil {
		return nil
	}
	vars, err := slot.DecodeBlock(data)
	if err != nil {
		return nil
	}
	return vars
}

// try counts a boot of the slot on trial and starts it. It returns whether this
// boot is at its end.
func (g *grub) try(chosen, trial, tries string) bool {
	if tries == "0" {
		g.boot.say("slot " + trial + " has no tries left")
		return false
	}
	left := string(tries[0] - 1) // one digit, as legal has it
	want := strings.Join([]string{g.cv, g.seq, g.confirmed, trial, left}, ":")
	g.save(chosen, slot.Variable{Name: "tries", Value: left}, slot.Variable{Name: "seal", Value: want})
	g.readState(chosen)
	if g.seal != want || g.tries != left {
		g.boot.say("the count of tries cannot be saved: slot " + trial + " refused")
		return false
	}
	if !g.whole(trial) {
		g.boot.say("slot " + trial + " is damaged: refused")
		return false
	}
	g.boot.say("slot " + trial + " is on trial, tries left after this one: " + left)
	return g.start(trial)
}

// save is save_env: all variables, or nothing.
func (g *grub) save(file string, vars ...slot.Variable) {
	data, err := g.disk.Head(partition.System, file, maxSmall)
	if err != nil {
		return
	}
	data = bytes.Clone(data)
	for _, v := range vars {
		if !setVariable(data, v) {
			return // environment block too small
		}
	}
	g.boot.Writes = append(g.boot.Writes, Write{file, data})
	// Whether it worked is seen by reading it back.
	_ = g.disk.Write(file, data)
}

// findSlot finds a slot's partition and command line.
func (g *grub) findSlot(name string) {
	g.from = partition.BootA
	if name == "b" {
		g.from = partition.BootB
	}
	g.cmdline = g.environment(g.from, "slot.env")["cmdline"]
}

func (g *grub) present(name string) bool {
	g.findSlot(name)
	for _, file := range []string{"vmlinuz", "initramfs.img"} {
		if size, err := g.disk.Size(g.from, file); err != nil || size == 0 {
			return false
		}
	}
	return g.cmdline != ""
}

func (g *grub) whole(name string) bool {
	return g.present(name) && g.checkSums("sha256sums")
}

// checkSums is sha256sum --check, which ends at the first file that differs.
// An empty list is refused by grub.cfg.
func (g *grub) checkSums(list string) bool {
	data, err := g.disk.Head(g.from, list, maxSmall)
	if err != nil || len(data) == 0 {
		return false
	}
	data = bytes.ReplaceAll(data, []byte("\r"), nil)
	for line := range bytes.Lines(data) {
		text, _, _ := strings.Cut(strings.TrimSuffix(string(line), "\n"), "\x00")
		if len(text) < 2*32+2 || text[64:66] != "  " {
			return false
		}
		want, err := hex.DecodeString(text[:64])
		if err != nil {
			return false
		}
		sum, err := g.disk.Sum(g.from, text[66:])
		if err != nil || !bytes.Equal(sum[:], want) {
			return false
		}
	}
	return true
}

// start loads a slot. It returns whether this boot is at its end.
func (g *grub) start(name string) bool {
	g.boot.say("starting slot " + name)
	header, err := g.disk.Head(g.from, "vmlinuz", headerSize)
	if err != nil || !isKernel(header) {
		g.boot.say("slot " + name + " cannot be loaded")
		return false
	}
	if _, err := g.disk.Head(g.from, "initramfs.img", 1); err != nil {
		g.boot.say("slot " + name + " was loaded by half: starting again")
		return true
	}
	g.boot.Slot, g.boot.Cmdline = slot.Slot(name), g.cmdline
	return true
}

// headerSize is that of a Linux boot image's header, of boot protocol 2.15.
const headerSize = 0x268

// isKernel is what the command linux asks of a file (GRUB 2.12,
// grub-core/loader/i386/linux.c). It does not see a damaged rest.
func isKernel(header []byte) bool {
	return len(header) == headerSize &&
		binary.LittleEndian.Uint16(header[0x1fe:]) == 0xaa55 &&
		header[0x1f1] <= 64 && // setup sectors
		string(header[0x202:0x206]) == "HdrS" &&
		binary.LittleEndian.Uint16(header[0x206:]) >= 0x0203 &&
		header[0x211]&1 != 0 // loaded high
}
