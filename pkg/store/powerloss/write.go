package powerloss

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// zeros is a block that need not be written.
var zeros [4096]byte

// Write puts the state into dir, which must be empty or missing.
func (s State) Write(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("write state: %w", err)
	}
	d := s.disk()
	if err := d.write(root, dir, map[uint64]string{}); err != nil {
		return fmt.Errorf("write state %s: %w", s, err)
	}
	return nil
}

func (d *disk) write(dir uint64, to string, written map[uint64]string) error {
	for _, name := range sortedKeys(d.names[dir]) {
		id, full := d.names[dir][name], filepath.Join(to, name)
		mode := fs.FileMode(d.modes[id])
		var err error
		switch first, again := written[id]; {
		case d.names[id] != nil:
			if err = os.Mkdir(full, mode); err == nil {
				err = d.write(id, full, written)
			}
		case again:
			err = os.Link(first, full)
		default:
			err = writeSparse(full, d.content(id), mode)
			written[id] = full
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// writeSparse writes a file without its blocks of zeros.
func writeSparse(name string, data []byte, mode fs.FileMode) (err error) {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := f.Truncate(int64(len(data))); err != nil {
		return err
	}
	for from := 0; from < len(data); {
		to := from
		for to < len(data) && !bytes.Equal(data[to:min(to+len(zeros), len(data))], zeros[:min(len(zeros), len(data)-to)]) {
			to = min(to+len(zeros), len(data))
		}
		if _, err := f.WriteAt(data[from:to], int64(from)); err != nil {
			return err
		}
		from = to + len(zeros)
	}
	return nil
}

// File returns what the state holds at a slash-separated path.
func (s State) File(name string) ([]byte, error) {
	d := s.disk()
	id := uint64(root)
	for part := range strings.SplitSeq(path.Clean(name), "/") {
		next, ok := d.names[id][part]
		if !ok {
			return nil, fmt.Errorf("%s of state %s: %w", name, s, fs.ErrNotExist)
		}
		id = next
	}
	return d.content(id), nil
}

func sortedKeys(m map[string]uint64) []string {
	return slices.Sorted(maps.Keys(m))
}
