// Package entry holds what the boot selector says about the slot it booted, on the kernel's command line.
package entry

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/cairn-os/cairn/pkg/cmdline"
	"github.com/cairn-os/cairn/pkg/partition"
	"github.com/cairn-os/cairn/pkg/verity"
)

// Entry names the slot that boots and the root file system it must have.
type Entry struct {
	Slot     string // "a" or "b"
	BootPart string // PARTUUID of the slot's CAIRN_BOOT partition, lower case: it tells the disk
	Root     verity.Root
}

// ErrMissing says that a parameter which only the boot selector can give is not there.
var ErrMissing = errors.New("missing on the kernel command line")

var uuid = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

// Parse reads and checks the entry. Without a complete one there is nothing that could be booted.
func Parse(line cmdline.Line) (Entry, error) {
	var e Entry
	var blocks string
	for key, to := range map[string]*string{
		"cairn.slot": &e.Slot, "cairn.bootpart": &e.BootPart, "cairn.roothash": &e.Root.Hash, "cairn.rootblocks": &blocks,
	} {
		value, ok := line.Get(key)
		if !ok {
			return Entry{}, fmt.Errorf("%s: %w", key, ErrMissing)
		}
		*to = strings.ToLower(value)
	}
	if e.Slot != "a" && e.Slot != "b" {
		return Entry{}, fmt.Errorf("cairn.slot=%s: neither a nor b", e.Slot)
	}
	if !uuid.MatchString(e.BootPart) {
		return Entry{}, fmt.Errorf("cairn.bootpart=%s: no partition UUID", e.BootPart)
	}
	n, err := strconv.ParseUint(blocks, 10, 64)
	if err != nil {
		return Entry{}, fmt.Errorf("cairn.rootblocks=%s: not a number of blocks", blocks)
	}
	e.Root.Blocks = n
	if err := e.Root.Validate(); err != nil {
		return Entry{}, fmt.Errorf("cairn.roothash and cairn.rootblocks: %w", err)
	}
	return e, nil
}

// RootName is the GPT name of the slot's root partition.
func (e Entry) RootName() string {
	return map[string]string{"a": partition.RootA, "b": partition.RootB}[e.Slot]
}
