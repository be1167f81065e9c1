package mount

import (
	"io"
	"log"

	uroot "github.com/u-root/u-root/pkg/mount"
)

// SwitchRoot makes newRoot the root of this mount name space and executes init there as this very process: /dev,
// /proc, /sys and /run are moved along and the memory of the initramfs is freed. It returns only when it failed; the
// old root's files may be gone by then.
func SwitchRoot(newRoot, init string) error {
	// The library narrates each step through the log package, on a console that has better use.
	out := log.Writer()
	log.SetOutput(io.Discard)
	defer log.SetOutput(out)
	return uroot.SwitchRoot(newRoot, init)
}
