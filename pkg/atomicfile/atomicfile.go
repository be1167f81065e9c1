// Package atomicfile replaces files so that a power cut leaves the old content or the new one, whole.
//
// The order is: write a temporary file in the same directory, fsync it, rename it over the target, fsync the directory.
// Without the first fsync the name may come to point at an empty file, without the second the rename may be lost after
// the caller was told that it happened.
package atomicfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Options say what the new file is like beside its content.
type Options struct {
	// Perm holds the permission bits and setuid, setgid and sticky; the umask does not apply.
	Perm fs.FileMode
	// Chown sets the owner to UID and GID before the file gets its name.
	Chown    bool
	UID, GID int
}

// Write replaces the file at path with data. The directory must exist. On an error before the rename the old file is
// untouched and nothing is left behind; an error that wraps ErrNotDurable means that the new content is in place but
// may be lost by a power cut.
func Write(path string, data []byte, perm fs.FileMode) error {
	return WriteOptions(path, data, Options{Perm: perm})
}

// ErrNotDurable says that the file was replaced and the directory could not be flushed.
var ErrNotDurable = errors.New("written, but not flushed to the disk")

// WriteOptions is Write with an owner.
func WriteOptions(path string, data []byte, o Options) error {
	return write(steps{}, path, data, o)
}

// steps lets the test fail each step; a nil hook never fails.
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

func write(s steps, path string, data []byte, o Options) (err error) {
	dir := filepath.Dir(path)
	defer func() {
		if err != nil {
			err = fmt.Errorf("write %s: %w", path, err)
		}
	}()
	var f *os.File
	if err := s.do("create", func() (err error) { f, err = os.CreateTemp(dir, ".tmp-*"); return err }); err != nil {
		return err
	}
	err = errors.Join(fill(s, f, data, o), f.Close())
	if err == nil {
		err = s.do("rename", func() error { return os.Rename(f.Name(), path) })
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	if err := s.do("flush directory", func() error { return SyncDir(dir) }); err != nil {
		return fmt.Errorf("%w: %w", ErrNotDurable, err)
	}
	return nil
}

// fill gives the temporary file f its content and looks, and brings them to the disk.
func fill(s steps, f *os.File, data []byte, o Options) error {
	if err := s.do("write", func() error { _, err := f.Write(data); return err }); err != nil {
		return err
	}
	if o.Chown {
		if err := s.do("chown", func() error { return f.Chown(o.UID, o.GID) }); err != nil {
			return err
		}
	}
	// After chown, which clears setuid and setgid.
	if err := s.do("chmod", func() error { return f.Chmod(o.Perm) }); err != nil {
		return err
	}
	return s.do("flush", f.Sync)
}

// SyncDir brings the names in dir to the disk.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
