// Package grubenv keeps the slot state in the two files that GRUB reads.
//
// A state file is one sector on a FAT file system and is only ever
// overwritten in place: a rename or a truncation would change the FAT and the
// folder too, and a power cut between those would lose the file. The new state
// goes to the copy that does not hold the present one, so a write that is cut
// off leaves the present one valid.
package grubenv

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cairn-os/cairn/pkg/slot"
)

// files are the paths of the two copies on CAIRN_SYS.
var files = [2]string{"cairn/state1.env", "cairn/state2.env"}

// maxSize bounds what is read of a file that should be slot.Size long.
const maxSize = 64 << 10

// Store is the pair of state files below a mounted CAIRN_SYS. It must not be
// used concurrently, nor by two processes.
type Store struct {
	dir string
}

// New returns the store below dir, where CAIRN_SYS is mounted.
func New(dir string) *Store { return &Store{dir: dir} }

// Read returns the state that the boot selector would use. Its error is
// slot.ErrInvalid when neither copy holds one; the selector then boots slot a.
func (s *Store) Read() (slot.State, error) {
	state, _, err := s.read()
	return state, err
}

func (s *Store) read() (state slot.State, index int, err error) {
	var copies [2][]byte
	for i := range files {
		if copies[i], err = s.content(i); err != nil {
			return slot.State{}, 0, fmt.Errorf("read slot state: %w", err)
		}
	}
	if state, index, err = slot.Choose(copies[0], copies[1]); err != nil {
		return slot.State{}, 0, fmt.Errorf("read slot state: %w", err)
	}
	return state, index, nil
}

// content is what a copy holds; a missing or unreadable file holds nothing.
func (s *Store) content(i int) ([]byte, error) {
	f, err := os.Open(filepath.Join(s.dir, files[i]))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(f, maxSize))
}

// Write makes state the one that counts, durably, and reads it back. state must
// be a successor of what Read returned: its sequence number is one higher.
func (s *Store) Write(state slot.State) error {
	data, err := state.Encode()
	if err != nil {
		return fmt.Errorf("write slot state: %w", err)
	}
	present, index, err := s.read()
	switch {
	case errors.Is(err, slot.ErrInvalid):
		index = 1 // neither copy counts
	case err != nil:
		return fmt.Errorf("write slot state: %w", err)
	case state.Seq != present.Seq+1:
		return fmt.Errorf("write slot state %s: it does not follow %s", state, present)
	}
	path := filepath.Join(s.dir, files[1-index])
	if err := overwrite(path, data); err != nil {
		return fmt.Errorf("write slot state: %w", err)
	}
	if now, err := s.Read(); err != nil || now != state {
		return fmt.Errorf("write slot state %s: read back %s: %w", state, now, errors.Join(err, errReadBack))
	}
	return nil
}

var errReadBack = errors.New("the file system did not keep what was written")

// overwrite writes data over the file in place. Only a file that is missing,
// of another length or not a file, so that it holds nothing that could be lost,
// is made anew or cut.
func overwrite(path string, data []byte) (err error) {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
	} else if err != nil {
		return err
	} else if !info.Mode().IsRegular() {
		if err := os.RemoveAll(path); err != nil {
			return err
		}
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := f.WriteAt(data, 0); err != nil {
		return err
	}
	// A rest behind the state would count as variables, and GRUB does not
	// write to a file that does not end in padding.
	if info != nil && info.Size() > int64(len(data)) {
		if err := f.Truncate(int64(len(data))); err != nil {
			return err
		}
	}
	if err := f.Sync(); err != nil {
		return err
	}
	back := make([]byte, len(data))
	if _, err := f.ReadAt(back, 0); err != nil {
		return err
	}
	if !bytes.Equal(back, data) {
		return fmt.Errorf("%s: %w", path, errReadBack)
	}
	if info == nil || info.Size() != int64(len(data)) {
		return syncDir(filepath.Dir(path))
	}
	return nil
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
