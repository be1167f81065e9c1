package snapshot

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Snapshots that are taken by schedule or on demand lie in one directory,
// named after when and of what they are: snapshot-20261121T120000Z-4711.db.
const (
	namePrefix = "snapshot-"
	nameSuffix = ".db"
	nameTime   = "20060102T150405Z"
)

// File is a snapshot in a directory, as its name describes it.
type File struct {
	Path     string    `json:"path"`
	Revision int64     `json:"revision"`
	Time     time.Time `json:"time"` // By the clock of then, in seconds.
	Size     int64     `json:"size"`
}

// fileName is the name of a snapshot.
func fileName(revision int64, at time.Time) string {
	return fmt.Sprintf("%s%s-%d%s", namePrefix, at.UTC().Format(nameTime), revision, nameSuffix)
}

// parseName reports false for names of other files.
func parseName(name string) (revision int64, at time.Time, ok bool) {
	rest, isSnapshot := strings.CutPrefix(name, namePrefix)
	rest, isDatabase := strings.CutSuffix(rest, nameSuffix)
	day, number, found := strings.Cut(rest, "-")
	if !isSnapshot || !isDatabase || !found {
		return 0, time.Time{}, false
	}
	at, err := time.Parse(nameTime, day)
	if err != nil {
		return 0, time.Time{}, false
	}
	revision, err = strconv.ParseInt(number, 10, 64)
	return revision, at, err == nil && revision >= 0 && fileName(revision, at) == name
}

// List returns the snapshots in dir, the newest first: the one with the
// greatest revision, then with the latest time. Clocks jump, revisions do not.
// It reads names only. A directory that does not exist holds none.
func List(dir string) ([]File, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list snapshots: %w", err)
	}
	var files []File
	for _, e := range entries {
		revision, at, ok := parseName(e.Name())
		if !ok || !e.Type().IsRegular() {
			continue
		}
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue // Removed meanwhile.
		}
		if err != nil {
			return nil, fmt.Errorf("list snapshots: %w", err)
		}
		files = append(files, File{Path: filepath.Join(dir, e.Name()), Revision: revision, Time: at, Size: info.Size()})
	}
	slices.SortFunc(files, func(a, b File) int {
		return cmp.Or(cmp.Compare(b.Revision, a.Revision), b.Time.Compare(a.Time))
	})
	return files, nil
}

// Newest returns the newest snapshot in dir that is whole, nil if there is
// none, and what is wrong with each newer one.
func Newest(dir string) (*Info, []error) {
	files, err := List(dir)
	if err != nil {
		return nil, []error{err}
	}
	var damaged []error
	for _, f := range files {
		info, err := Verify(f.Path)
		if err == nil && info.Revision != f.Revision {
			err = fmt.Errorf("snapshot %s: holds revision %d", f.Path, info.Revision)
		}
		if err == nil {
			return &info, damaged
		}
		damaged = append(damaged, err)
	}
	return nil, damaged
}

// surplus returns the files that are kept by neither rule: the newest keep of
// all, and the newest one of each of the newest days. Days are those of the
// names: a clock that is wrong now removes nothing. files are in List's order.
func surplus(files []File, keep, days int) []File {
	var over []File
	seen := map[string]bool{}
	for i, f := range files {
		day := f.Time.Format(time.DateOnly)
		first := !seen[day] && len(seen) < days
		if first {
			seen[day] = true
		}
		if i >= keep && !first {
			over = append(over, f)
		}
	}
	return over
}
