package tryboot

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"

	"github.com/cairn-os/cairn/pkg/partition"
	"github.com/cairn-os/cairn/pkg/slot"
)

// Autoboot is the path on CAIRN_SYS of the file that the firmware reads to
// learn which partition to boot.
const Autoboot = "autoboot.txt"

// maxAutoboot is all that the firmware reads of it.
const maxAutoboot = 512

// EncodeAutoboot is the file by which the firmware boots slot by default, and
// the other one when the tryboot flag is set. Two such files differ in two
// digits and have the same length.
func EncodeAutoboot(byDefault slot.Slot) ([]byte, error) {
	number, ok := numbers[byDefault]
	if !ok {
		return nil, fmt.Errorf("%s: slot %q", Autoboot, byDefault)
	}
	return fmt.Appendf(nil, "[all]\ntryboot_a_b=1\nboot_partition=%d\n[tryboot]\nboot_partition=%d\n", number, numbers[byDefault.Other()]), nil
}

var numbers = map[slot.Slot]int{slot.A: partition.BootANumber, slot.B: partition.BootBNumber}

// slotOf is the slot whose boot partition has the number, or slot.None.
func slotOf(number int) slot.Slot {
	for s, n := range numbers {
		if n == number {
			return s
		}
	}
	return slot.None
}

// DecodeAutoboot returns the slot that the firmware boots by default, and
// slot.None when the file does not say: it is missing, damaged, or not ours.
func DecodeAutoboot(data []byte) slot.Slot {
	found, both := slot.None, false
	all := true
	for line := range bytes.Lines(data[:min(len(data), maxAutoboot)]) {
		text := strings.TrimSpace(string(line))
		if strings.HasPrefix(text, "[") {
			all = text == "[all]"
			continue
		}
		name, value, _ := strings.Cut(text, "=")
		number, err := strconv.Atoi(value)
		if !all || err != nil {
			continue
		}
		switch name {
		case "boot_partition":
			found = slotOf(number)
		case "tryboot_a_b":
			both = number == 1
		}
	}
	if !both {
		return slot.None
	}
	return found
}
