package tryboot

import (
	"testing"

	"github.com/cairn-os/cairn/pkg/bootloader"
	"github.com/cairn-os/cairn/pkg/bootloader/conformance"
	"github.com/cairn-os/cairn/pkg/bootloader/selector"
	"github.com/cairn-os/cairn/pkg/bootloader/sysfile"
	"github.com/cairn-os/cairn/pkg/partition"
	"github.com/cairn-os/cairn/pkg/slot"
)

// transcripts are upgrades of a Raspberry Pi: each try begins in slot a, also
// when the one before ended by a fault.
var transcripts = map[string]string{
	"fails": `boot a: #1: slot a confirmed
armed: #2: slot a confirmed, slot b on trial with 3 tries left
boot b: #3: slot a confirmed, slot b on trial with 2 tries left
failed
boot a: #3: slot a confirmed, slot b on trial with 2 tries left
boot b: #4: slot a confirmed, slot b on trial with 1 tries left
failed
boot a: #4: slot a confirmed, slot b on trial with 1 tries left
boot b: #5: slot a confirmed, slot b on trial with 0 tries left
failed
boot a: #5: slot a confirmed, slot b on trial with 0 tries left
report: slot b, with 0 tries left, reached its own root; phase data failed: no such device
closed: #6: slot a confirmed
boot a: #6: slot a confirmed
`,
	"confirms": `boot a: #1: slot a confirmed
armed: #2: slot a confirmed, slot b on trial with 3 tries left
boot b: #3: slot a confirmed, slot b on trial with 2 tries left
confirms: #4: slot b confirmed
boot b: #4: slot b confirmed
`,
	"rolls back": `boot a: #1: slot a confirmed
armed: #2: slot a confirmed, slot b on trial with 3 tries left
boot b: #3: slot a confirmed, slot b on trial with 2 tries left
rolls back: #4: slot a confirmed
boot a: #4: slot a confirmed
`,
	"restarts": `boot a: #1: slot a confirmed
armed: #2: slot a confirmed, slot b on trial with 3 tries left
boot b: #3: slot a confirmed, slot b on trial with 2 tries left
restart
boot b: #4: slot a confirmed, slot b on trial with 1 tries left
restart
boot b: #5: slot a confirmed, slot b on trial with 0 tries left
restart
boot a: #5: slot a confirmed, slot b on trial with 0 tries left
report: slot b, with 0 tries left, reached its own root; phase data failed: no such device
closed: #6: slot a confirmed
boot a: #6: slot a confirmed
`,
}

func TestConformance(t *testing.T) {
	conformance.Test(t, conformance.Suite{
		New: func(d sysfile.Disk) bootloader.Backend { return New(d) },
		Boot: func(d *conformance.Disk, argument string) selector.Boot {
			return selector.Firmware{}.Boot(d, argument)
		},
		BootDamaged: func(d *conformance.Disk, argument string) selector.Boot {
			return selector.Firmware{Walk: true}.Boot(d, argument)
		},
		Files: func(confirmed slot.Slot) map[string]map[string][]byte {
			files := conformance.Installed(confirmed)
			auto, err := EncodeAutoboot(confirmed)
			if err != nil {
				t.Fatal(err)
			}
			files[partition.System][Autoboot] = auto
			for _, part := range []string{partition.BootA, partition.BootB} {
				for _, config := range []string{"config.txt", "tryboot.txt"} {
					files[part][config] = []byte("kernel=vmlinuz\n")
				}
			}
			return files
		},
		Transcripts: transcripts,
	})
}
