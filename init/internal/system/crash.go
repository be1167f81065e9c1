package system

import (
	"context"

	"github.com/cairn-os/cairn/pkg/crashlog"
)

// crashDir is where the last words of earlier kernels are kept.
const crashDir = crashlog.Kept

// keepCrashLogs moves what the kernel kept of an earlier crash to the data partition: the room for it is small, and the
// next crash would find none.
func (m *machine) keepCrashLogs(context.Context) error {
	moved, err := crashlog.Move(crashlog.Pstore, crashDir)
	for _, r := range moved {
		m.log.Printf("an earlier kernel left its last words in %s: %s", r.Path, r.Line)
	}
	return err
}
