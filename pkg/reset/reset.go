// Package reset returns a machine to its factory state: at the next boot everything on the data partition is removed.
//
// Whoever wants a reset writes a Request to Marker and reboots; the boot calls Run as soon as the data partition is
// mounted, before anything reads it. The marker is removed last, after everything else is gone from the disk. A power
// cut therefore leaves either the marker, with some of the rest removed, and the next boot goes on; or no marker and
// nothing else. Removing a file twice does no harm, so the order of the rest does not matter.
//
// Files are removed and not overwritten: flash keeps old blocks where no program can reach them. Who must be sure that a
// secret is gone, revokes it.
package reset

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cairn-os/cairn/pkg/atomicfile"
)

// Marker is the file that asks for a reset.
const Marker = "/var/lib/cairn/reset"

// ErrMarker says that the marker holds something that is no Request. Nothing was removed.
var ErrMarker = errors.New("the request for a factory reset cannot be read")

// Request is what the marker holds. An empty file asks for everything to be removed.
type Request struct {
	// KeepConfig spares the owner's configuration: config.yaml and config.d.
	KeepConfig bool `json:"keepConfig"`
}

// Write asks for a reset at the next boot of the machine whose root is at root: "/" but in tests. It is on the disk when
// Write returns.
func (r Request) Write(root string) error {
	data, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("ask for a factory reset: %w", err)
	}
	if err := atomicfile.Write(filepath.Join(root, Marker), append(data, '\n'), 0o600); err != nil {
		return fmt.Errorf("ask for a factory reset: %w", err)
	}
	return nil
}

// Logf prints a line of progress.
type Logf func(format string, args ...any)

// Run does what the marker below root asks for; without a marker it does nothing. On an error the marker stays, and the
// machine must not go on with what is left.
func Run(root string, logf Logf) (err error) { return run(root, logf, steps{}) }

// steps lets the test cut the power at each step; a nil hook never does.
type steps struct {
	before func(step string) error
}

func (s steps) do(step string, f func() error) error {
	if s.before != nil {
		if err := s.before(step); err != nil {
			return err
		}
	}
	return f()
}

func run(root string, logf Logf, s steps) error {
	marker := filepath.Join(root, Marker)
	data, err := os.ReadFile(marker)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("factory reset: %w", err)
	}
	var r Request
	if text := strings.TrimSpace(string(data)); text != "" {
		if err := json.Unmarshal(data, &r); err != nil {
			return fmt.Errorf("%w: %s: %w", ErrMarker, marker, err)
		}
	}
	keep := []string{"lost+found", "lib/cairn/reset"}
	what := "everything on the data partition is removed"
	if r.KeepConfig {
		keep = append(keep, "lib/cairn/config.yaml", "lib/cairn/config.d")
		what += ", but the configuration"
	}
	logf("FACTORY RESET: %s", what)
	e := eraser{dir: filepath.Join(root, "var"), keep: keep, logf: logf, steps: s}
	if err := e.erase("."); err != nil {
		return fmt.Errorf("factory reset: %w", err)
	}
	// The marker must not be gone from the disk before the rest is.
	if err := s.do("flush", func() error { return flush(e.dir) }); err != nil {
		return fmt.Errorf("factory reset: flush %s: %w", e.dir, err)
	}
	if err := s.do("marker", func() error { return os.Remove(marker) }); err != nil {
		return fmt.Errorf("factory reset: %w", err)
	}
	if err := s.do("flush marker", func() error { return atomicfile.SyncDir(filepath.Dir(marker)) }); err != nil {
		return fmt.Errorf("factory reset: %w", err)
	}
	logf("factory reset: done")
	return nil
}

// eraser empties a directory but for what is kept.
type eraser struct {
	dir  string
	keep []string // paths below dir, slash-separated
	logf Logf
	steps
}

// erase removes what is below the path at, all that can be: one file that resists must not spare the secrets behind it.
func (e eraser) erase(at string) error {
	entries, err := os.ReadDir(filepath.Join(e.dir, at))
	if err != nil {
		return err
	}
	var errs []error
	for _, entry := range entries {
		below := path.Join(at, entry.Name())
		switch {
		case slices.Contains(e.keep, below):
			continue
		case entry.IsDir() && slices.ContainsFunc(e.keep, func(k string) bool { return strings.HasPrefix(k, below+"/") }):
			errs = append(errs, e.erase(below))
			continue
		}
		full := filepath.Join(e.dir, below)
		if entry.IsDir() {
			e.logf("factory reset: removing %s", full)
		}
		err := e.do(below, func() error { return os.RemoveAll(full) })
		if errors.Is(err, unix.EBUSY) {
			// Something is mounted there, as it may be in a container. It is empty now.
			e.logf("factory reset: %v; its content is removed", err)
			continue
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// flush brings all of the file system that dir is on to the disk.
func flush(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(unix.Syncfs(int(f.Fd())), f.Close())
}
