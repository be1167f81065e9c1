// Package history keeps what a machine knows of its upgrades: the one under way, those that were tried and how they
// ended, and the versions that are not to be tried again.
//
// All of it are small JSON files in one directory:
//
//	state.json        the upgrade under way; absent when there is none
//	history/<id>.json one for each attempt, the last MaxAttempts of them
//	quarantine.json   versions that failed here
//
// Every file is replaced whole (package atomicfile), so a power cut leaves the old content or the new one. A file that
// cannot be read is renamed to <name>.damaged, told to the log and to Problems, and its content counts as absent; a lost
// quarantine is made anew from the attempts. Fields that this version does not know are passed over, because after a
// rollback an older release reads what a newer one wrote.
//
// The number of an attempt grows by one each time, so attempts sort in the order in which they began, also on a machine
// without a right clock.
package history

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/cairn-os/cairn/pkg/atomicfile"
)

const (
	// MaxAttempts is how many attempts are kept.
	MaxAttempts = 20
	// MaxQuarantine is how many versions are kept in quarantine; the oldest goes first.
	MaxQuarantine = 50
	// maxFile is the size of the largest file in bytes.
	maxFile = 128 << 10
	// maxEvidence and maxText bound what one attempt may say.
	maxEvidence = 100
	maxText     = 1000 // bytes of each text

	stateFile      = "state.json"
	quarantineFile = "quarantine.json"
	attemptsDir    = "history"
	damagedSuffix  = ".damaged"
)

// Store is the directory. It is safe for concurrent use within one process; only one process may write.
type Store struct {
	dir string
	log *slog.Logger

	mu       sync.Mutex
	problems []string // what was set aside since Open
}

// Open returns the store in dir, which it makes when it is missing.
func Open(dir string, log *slog.Logger) (*Store, error) {
	if err := os.MkdirAll(filepath.Join(dir, attemptsDir), 0o700); err != nil {
		return nil, fmt.Errorf("open upgrade history: %w", err)
	}
	return &Store{dir: dir, log: log}, nil
}

// Problems are the files that were found damaged and set aside since Open, in words.
func (s *Store) Problems() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.problems...)
}

// State returns the upgrade under way; false when there is none.
func (s *Store) State() (State, bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var st State
	found, err := s.read(stateFile, &st, func() error { return st.check() })
	if err != nil || !found {
		return State{}, false, err
	}
	return st, true, nil
}

// SetState replaces the upgrade under way.
func (s *Store) SetState(st State) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	st.Problem = short(st.Problem)
	if err := st.check(); err != nil {
		return fmt.Errorf("keep upgrade state: %w", err)
	}
	return s.write(stateFile, st)
}

// ClearState says that no upgrade is under way.
func (s *Store) ClearState() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.remove(stateFile)
}

// read decodes the file name into v. A damaged one is set aside and counts as absent.
func (s *Store) read(name string, v any, check func() error) (found bool, err error) {
	path := filepath.Join(s.dir, name)
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read upgrade history: %w", err)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err = errors.Join(err, f.Close()); err != nil {
		return false, fmt.Errorf("read upgrade history: %w", err)
	}
	err = decode(data, v)
	if err == nil {
		err = check()
	}
	if err != nil {
		return false, s.setAside(path, err)
	}
	return true, nil
}

// decode reads one JSON value and nothing after it.
func decode(data []byte, v any) error {
	if len(data) > maxFile {
		return fmt.Errorf("more than %d bytes", maxFile)
	}
	d := json.NewDecoder(bytes.NewReader(data))
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.New("more text after its end")
	}
	return nil
}

// setAside keeps a damaged file for whoever looks into it, one of each name.
func (s *Store) setAside(path string, cause error) error {
	if err := os.Rename(path, path+damagedSuffix); err != nil {
		return fmt.Errorf("set damaged file aside: %w (it is damaged: %w)", err, cause)
	}
	s.log.Warn("a file of the upgrade history is damaged and was set aside", "file", path+damagedSuffix, "cause", cause)
	s.problems = append(s.problems, fmt.Sprintf("%s was damaged (%v) and is now %s%s", filepath.Base(path), cause, filepath.Base(path), damagedSuffix))
	if err := atomicfile.SyncDir(filepath.Dir(path)); err != nil {
		return fmt.Errorf("set damaged file aside: %w", err)
	}
	return nil
}

func (s *Store) write(name string, v any) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("write upgrade history: %w", err)
	}
	if len(data) >= maxFile {
		return fmt.Errorf("write upgrade history: %s would have %d bytes; want at most %d", name, len(data), maxFile)
	}
	if err := atomicfile.Write(filepath.Join(s.dir, name), append(data, '\n'), 0o600); err != nil {
		return fmt.Errorf("write upgrade history: %w", err)
	}
	return nil
}

// remove deletes a file for good; a missing one is fine.
func (s *Store) remove(name string) error {
	path := filepath.Join(s.dir, name)
	err := os.Remove(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = atomicfile.SyncDir(filepath.Dir(path))
	}
	if err != nil {
		return fmt.Errorf("write upgrade history: %w", err)
	}
	return nil
}

// short cuts a text to maxText bytes at the end of a character.
func short(text string) string {
	if len(text) <= maxText {
		return text
	}
	return string(bytes.ToValidUTF8([]byte(text[:maxText-3]), nil)) + "..."
}

// clean makes times comparable and short in files: whole seconds, UTC.
func clean(t time.Time) time.Time { return t.Round(0).UTC().Truncate(time.Second) }
