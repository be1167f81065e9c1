package damage

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/cairn-os/cairn/pkg/atomicfile"
)

// repair is what mends a finding.
type repair int

const (
	noRepair   repair = iota
	removeFile        // Remove the file.
	cutFile           // Cut the file at the offset.
)

// Repair mends what is Repairable in the directory of a member that does not
// run, durably. It does nothing to a directory that is damaged.
func Repair(r Report) error {
	if r.Damaged() {
		return fmt.Errorf("repair: %w", r.Err())
	}
	for _, f := range r.Findings {
		path := filepath.Join(r.Dir, f.File)
		var err error
		switch f.repair {
		case noRepair:
		case removeFile:
			err = os.Remove(path)
		case cutFile:
			err = cut(path, f.Offset)
		}
		if err != nil {
			return fmt.Errorf("repair: %w", err)
		}
	}
	if r.Severity() != Repairable {
		return nil
	}
	return atomicfile.SyncDir(r.Dir)
}

func cut(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		return err
	}
	return f.Sync()
}
