package damage

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

	"github.com/cairn-os/cairn/pkg/atomicfile"
)

const (
	// KeepSets is how many directories set aside are kept.
	KeepSets = 2
	// reportFile is in each of them.
	reportFile = "report.txt"
)

// Set is a member's directory that was set aside.
type Set struct {
	Path   string
	Number int // Counted up; the newest set has the highest.
	Reason Kind
}

// Sets lists what was set aside in damagedDir, the oldest first.
func Sets(damagedDir string) ([]Set, error) {
	entries, err := os.ReadDir(damagedDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", damagedDir, err)
	}
	var sets []Set
	for _, e := range entries {
		number, reason, ok := strings.Cut(e.Name(), "-")
		n, err := strconv.Atoi(number)
		if !ok || err != nil || !e.IsDir() {
			continue
		}
		sets = append(sets, Set{Path: filepath.Join(damagedDir, e.Name()), Number: n, Reason: Kind(reason)})
	}
	slices.SortFunc(sets, func(a, b Set) int { return cmp.Compare(a.Number, b.Number) })
	return sets, nil
}

// SetAside moves a damaged member's directory, r.Dir, to
// damagedDir/<number>-<reason>/, by one rename on the same file system, with
// the report in it as report.txt, and removes the oldest sets beyond KeepSets.
//
// The member must not run, and must join again under a new ID: its old one
// may have voted and acknowledged what is now out of sight. A power cut leaves
// the directory where it was, or moved as a whole.
//
// It returns the new path. An error beside a path says that the directory was
// moved and something around it failed.
func SetAside(r Report, damagedDir string) (string, error) {
	if !r.Damaged() {
		return "", fmt.Errorf("set %s aside: it is not damaged", r.Dir)
	}
	wrap := func(err error) error { return fmt.Errorf("set %s aside: %w", r.Dir, err) }
	sets, err := Sets(damagedDir)
	if err != nil {
		return "", wrap(err)
	}
	number := 1
	if n := len(sets); n > 0 {
		number = sets[n-1].Number + 1
	}
	err = os.MkdirAll(damagedDir, 0o700)
	if err == nil {
		// Its own name first: where directories are not in one journal, a power cut could keep what is moved
		// into it, and lose it.
		err = atomicfile.SyncDir(filepath.Dir(damagedDir))
	}
	if err != nil {
		return "", wrap(err)
	}
	// Into the directory before it moves, so that both move at once. The disk may be full or
	// broken: that must not keep the directory here.
	text := fmt.Sprintf("set aside at %s by the machine's clock\n%s", time.Now().UTC().Format(time.RFC3339), r)
	reportErr := atomicfile.Write(filepath.Join(r.Dir, reportFile), []byte(text), 0o600)
	path := filepath.Join(damagedDir, fmt.Sprintf("%04d-%s", number, r.Reason()))
	if err := os.Rename(r.Dir, path); err != nil {
		return "", wrap(err)
	}
	_, pruneErr := Prune(damagedDir, KeepSets)
	err = errors.Join(reportErr, pruneErr, atomicfile.SyncDir(damagedDir), atomicfile.SyncDir(filepath.Dir(r.Dir)))
	if err != nil {
		return path, wrap(err)
	}
	return path, nil
}

// Prune removes sets, the oldest first, until keep are left, and returns what
// it removed. To make space on a low disk, a member of a cluster may keep 0,
// since the others have the data; a lone one keeps 1.
func Prune(damagedDir string, keep int) ([]Set, error) {
	sets, err := Sets(damagedDir)
	if err != nil {
		return nil, err
	}
	remove := sets[:max(0, len(sets)-max(keep, 0))]
	for i, s := range remove {
		if err := os.RemoveAll(s.Path); err != nil {
			return remove[:i], fmt.Errorf("remove %s: %w", s.Path, err)
		}
	}
	return remove, nil
}

// Refusal is the error of a lone member that does not start on a damaged
// directory: there is no other member with the data. snapshot is the path of
// the newest good snapshot, "" if there is none.
func Refusal(r Report, snapshot string) error {
	err := r.Err()
	if err == nil {
		return nil
	}
	way := "there is no snapshot: look for one of this store elsewhere and give it to `cairnctl store restore`"
	if snapshot != "" {
		way = fmt.Sprintf("run `cairnctl store restore %s` to go back to the newest good snapshot; it sets these data aside first", snapshot)
	}
	return fmt.Errorf("%w. The data are kept in place and nothing was changed. This is the only member, so it does not start: %s", err, way)
}
