package selector

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/cairn-os/cairn/pkg/partition"
	"github.com/cairn-os/cairn/pkg/slot"
)

// Firmware is the Raspberry Pi's, of the boards whose boot loader is in an
// EEPROM (Pi 4 and newer), as their documentation describes it ("autoboot.txt",
// "Fail-safe OS updates", "PARTITION_WALK"). It was not run.
type Firmware struct {
	// Walk is the EEPROM's PARTITION_WALK: look for another partition when
	// the wanted one cannot be booted.
	Walk bool
}

const (
	// maxAutoboot is what the firmware reads of autoboot.txt, in bytes.
	maxAutoboot = 512
	// lastWalked is the last partition that a walk looks at.
	lastWalked = 8
)

// Boot starts a machine whose last restart carried argument; "" for a power-on
// and for an ordinary restart.
func (f Firmware) Boot(d Disk, argument string) Boot {
	b := Boot{Slot: slot.None}
	number, tryboot := parseArgument(argument)
	auto := autoboot{}
	if data, err := d.Head(partition.System, "autoboot.txt", maxAutoboot); err == nil {
		auto = parseAutoboot(data, tryboot)
	}
	if number == 0 {
		number = auto.partition
	}
	config := "config.txt"
	if tryboot && !auto.both {
		config = "tryboot.txt"
	}
	candidates := []int{number}
	for i := 1; f.Walk && i <= lastWalked; i++ {
		candidates = append(candidates, (number+i)%(lastWalked+1))
	}
	for _, n := range candidates {
		name, known := partitionNames[n]
		if !known {
			continue // without a file system that it knows, or the table's end
		}
		if _, err := d.Size(name, config); err != nil {
			b.say(fmt.Sprintf("partition %d cannot be booted", n))
			continue
		}
		if size, err := d.Size(name, "vmlinuz"); err != nil || size == 0 {
			b.say(fmt.Sprintf("partition %d has no kernel", n))
			return b // the firmware stops here
		}
		b.say(fmt.Sprintf("starting partition %d", n))
		b.Slot = slotNames[n]
		return b
	}
	b.say("no partition can be booted")
	return b
}

var (
	partitionNames = map[int]string{
		partition.SystemNumber: partition.System, partition.BootANumber: partition.BootA, partition.BootBNumber: partition.BootB,
	}
	slotNames = map[int]slot.Slot{partition.BootANumber: slot.A, partition.BootBNumber: slot.B}
)

// parseArgument reads the argument of a restart: a partition's number, and
// perhaps the word tryboot.
func parseArgument(argument string) (number int, tryboot bool) {
	words := strings.Fields(argument)
	if len(words) == 0 {
		return 0, false
	}
	number, err := strconv.Atoi(words[0])
	if err != nil {
		return 0, false
	}
	return number, slices.Contains(words[1:], "tryboot")
}

// autoboot is what autoboot.txt says for one boot.
type autoboot struct {
	partition int
	both      bool // tryboot_a_b: partitions are tried, not files
}

func parseAutoboot(data []byte, tryboot bool) autoboot {
	a, passes := autoboot{}, true
	for line := range bytes.Lines(data) {
		text := strings.TrimSpace(string(line))
		if strings.HasPrefix(text, "[") {
			passes = text == "[all]" || text == "[tryboot]" && tryboot
			continue
		}
		name, value, _ := strings.Cut(text, "=")
		number, err := strconv.Atoi(value)
		if !passes || err != nil {
			continue
		}
		switch name {
		case "boot_partition":
			a.partition = number
		case "tryboot_a_b":
			a.both = number == 1
		}
	}
	return a
}
