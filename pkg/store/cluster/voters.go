package cluster

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cairn-os/cairn/pkg/atomicfile"
)

// votersFile holds how many members vote, as far as this one knows. A member
// that may be the only one begins a raft term when it starts (see
// member.Options.NewTerm); in a cluster of several, that would cost the leader
// its office.
const votersFile = "voters"

// memberDir is where the member's own files are.
func memberDir(dir string) string { return filepath.Join(dir, "member") }

// saveVoters notes the number of voters; it writes only when that changed.
// Before a change that leaves one voter it is noted as made, after any other:
// a power cut in between leaves a member that begins a term without need.
func saveVoters(dir string, n int) error {
	path := filepath.Join(dir, votersFile)
	text := strconv.Itoa(n) + "\n"
	if old, err := os.ReadFile(path); err == nil && string(old) == text {
		return nil
	}
	if err := atomicfile.Write(path, []byte(text), 0o600); err != nil {
		return fmt.Errorf("note the number of voters: %w", err)
	}
	return nil
}

// soleVoter says whether the member may be the only voter. Where nothing is
// noted, that is one which does not join others.
func soleVoter(c Config) (bool, error) {
	data, err := os.ReadFile(filepath.Join(c.Dir, votersFile))
	if errors.Is(err, fs.ErrNotExist) {
		return c.Network == nil || len(c.Join) == 0, nil
	}
	if err != nil {
		return false, fmt.Errorf("number of voters: %w", err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(data)))
	return err != nil || n <= 1, nil // A damaged note: a term too many harms less than one too few.
}
