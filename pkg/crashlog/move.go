package crashlog

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"time"

	"github.com/cairn-os/cairn/pkg/atomicfile"
)

// Kept is where init moves records to.
const Kept = "/var/lib/cairn/crash"

// maxKept is how many records are kept, the newest: with maxText half a megabyte at most.
const maxKept = 16

// keptName is a kept record's file name: its number, which only grows, and its kind.
var keptName = regexp.MustCompile(`^([0-9]{6,9})-(panic|oops|console)\.txt$`)

// Entry is a kept record.
type Entry struct {
	Record
	Number int
	// Moved is when it was taken over, at the first boot after the crash that came so far. The clock may have been wrong.
	Moved time.Time
}

// Move takes the records of the folder pstore over into the folder kept, and returns those that were new, with their
// Path. What was removed from pstore is on the disk of kept; a power cut between the two leaves both, and the next Move
// removes the one. The console of a boot that ended in order is not kept. An error comes with what was moved.
func Move(pstore, kept string) ([]Record, error) {
	all, err := Read(pstore)
	errs := []error{err}
	if len(all) == 0 {
		return nil, err
	}
	old, err := List(kept)
	if err != nil {
		return nil, errors.Join(append(errs, err)...)
	}
	next := 1
	if len(old) > 0 {
		next = old[len(old)-1].Number + 1
	}
	var moved []Record
	for _, r := range all {
		known := slices.ContainsFunc(old, func(e Entry) bool { return e.Kind == r.Kind && e.Text == r.Text })
		if !known && !r.InOrder() && r.Text != "" {
			r.Path = filepath.Join(kept, fmt.Sprintf("%06d-%s.txt", next, r.Kind))
			if err := atomicfile.Write(r.Path, []byte(r.Text), 0o600); err != nil {
				errs = append(errs, fmt.Errorf("keep crash record: %w", err))
				continue // and leave it in pstore
			}
			next++
			moved = append(moved, r)
		}
		for _, name := range r.Files {
			if err := os.Remove(filepath.Join(pstore, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, fmt.Errorf("remove crash record: %w", err))
			}
		}
	}
	errs = append(errs, prune(kept))
	return moved, errors.Join(errs...)
}

// prune removes the oldest records that are too many.
func prune(kept string) error {
	all, err := list(kept)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range all[:max(0, len(all)-maxKept)] {
		if err := os.Remove(e.Path); err != nil {
			errs = append(errs, fmt.Errorf("remove old crash record: %w", err))
		}
	}
	return errors.Join(errs...)
}

// List returns the records that Move keeps in the folder kept, the oldest first. A folder that is not there holds none.
func List(kept string) ([]Entry, error) {
	all, err := list(kept)
	if err != nil {
		return nil, err
	}
	for i := range all {
		text, err := readEnd(all[i].Path, maxText)
		if err != nil {
			return nil, fmt.Errorf("read kept crash record: %w", err)
		}
		all[i].Text = text
		all[i].Line = line(text)
	}
	return all, nil
}

// list finds the kept records and does not read them.
func list(kept string) ([]Entry, error) {
	files, err := os.ReadDir(kept)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list kept crash records: %w", err)
	}
	var all []Entry
	for _, f := range files {
		match := keptName.FindStringSubmatch(f.Name())
		if match == nil {
			continue
		}
		info, err := f.Info()
		if err != nil {
			return nil, fmt.Errorf("list kept crash records: %w", err)
		}
		number, err := strconv.Atoi(match[1])
		if err != nil {
			return nil, fmt.Errorf("list kept crash records: %w", err)
		}
		all = append(all, Entry{
			Record: Record{Kind: Kind(match[2]), Path: filepath.Join(kept, f.Name())},
			Number: number, Moved: info.ModTime(),
		})
	}
	slices.SortFunc(all, func(a, b Entry) int { return cmp.Compare(a.Number, b.Number) })
	return all, nil
}
