package grubenv

import (
	"testing"

	"github.com/cairn-os/cairn/pkg/bootloader"
	"github.com/cairn-os/cairn/pkg/bootloader/conformance"
	"github.com/cairn-os/cairn/pkg/bootloader/selector"
	"github.com/cairn-os/cairn/pkg/bootloader/sysfile"
)

// transcripts are upgrades of a machine that GRUB starts.
var transcripts = map[string]string{
	"fails": `boot a: #1: slot a confirmed
armed: #2: slot a confirmed, slot b on trial with 3 tries left
boot b: #2: slot a confirmed, slot b on trial with 2 tries left
failed
boot b: #2: slot a confirmed, slot b on trial with 1 tries left
failed
boot b: #2: slot a confirmed, slot b on trial with 0 tries left
failed
boot a: #2: slot a confirmed, slot b on trial with 0 tries left
report: slot b, with 0 tries left, reached its own root; phase data failed: no such device
closed: #3: slot a confirmed
boot a: #3: slot a confirmed
`,
	"confirms": `boot a: #1: slot a confirmed
armed: #2: slot a confirmed, slot b on trial with 3 tries left
boot b: #2: slot a confirmed, slot b on trial with 2 tries left
confirms: #3: slot b confirmed
boot b: #3: slot b confirmed
`,
	"rolls back": `boot a: #1: slot a confirmed
armed: #2: slot a confirmed, slot b on trial with 3 tries left
boot b: #2: slot a confirmed, slot b on trial with 2 tries left
rolls back: #3: slot a confirmed
boot a: #3: slot a confirmed
`,
	"restarts": `boot a: #1: slot a confirmed
armed: #2: slot a confirmed, slot b on trial with 3 tries left
boot b: #2: slot a confirmed, slot b on trial with 2 tries left
restart
boot b: #2: slot a confirmed, slot b on trial with 1 tries left
restart
boot b: #2: slot a confirmed, slot b on trial with 0 tries left
restart
boot a: #2: slot a confirmed, slot b on trial with 0 tries left
report: slot b, with 0 tries left, reached its own root; phase data failed: no such device
closed: #3: slot a confirmed
boot a: #3: slot a confirmed
`,
}

func TestConformance(t *testing.T) {
	conformance.Test(t, conformance.Suite{
		New:         func(d sysfile.Disk) bootloader.Backend { return New(d) },
		Boot:        func(d *conformance.Disk, _ string) selector.Boot { return selector.GRUB(d) },
		Files:       conformance.Installed,
		Transcripts: transcripts,
	})
}
