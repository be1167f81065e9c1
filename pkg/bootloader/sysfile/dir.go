// Package sysfile keeps the one-sector files of CAIRN_SYS: the two copies of
// the slot state, the report of a trial boot, and what firmware reads there.
//
// Such a file is one sector on a FAT file system and is only ever overwritten
// in place: a rename or a truncation would change the FAT and the folder too,
// and a power cut between those would lose the file. A new state goes to the
// copy that does not hold the present one, so a write that is cut off leaves
// the present one valid.
package sysfile

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Mount is where a node's init mounts CAIRN_SYS, read-only.
const Mount = "/run/cairn/sys"

// Paths on CAIRN_SYS.
const (
	State1 = "cairn/state1.env"
	State2 = "cairn/state2.env"
	Trial  = "cairn/trial.env"
)

const (
	// maxSize bounds what is read of a file that should be one sector long.
	maxSize = 64 << 10
	// lockTime is how long a call waits for another one to end.
	lockTime = 10 * time.Second
)

// Errors that callers tell apart.
var (
	ErrBusy     = errors.New("another process has been writing to the boot selector's files for too long")
	ErrReadBack = errors.New("the file system did not keep what was written")
)

// Disk is a mounted CAIRN_SYS. Its names are slash-separated paths. Read and
// Overwrite are called only from within Do.
type Disk interface {
	// Do calls f while nothing else reads or writes, and where change is
	// true, with the file system writable.
	Do(change bool, f func() error) error
	// Read returns a file's content; a missing file holds nothing.
	Read(name string) ([]byte, error)
	// Overwrite replaces a file's content in place and durably, and reads it
	// back. A power cut leaves what was there, the new content, or within
	// the sector a beginning of it.
	Overwrite(name string, data []byte) error
}

// Dir is the Disk below a directory.
type Dir struct {
	Path string // where CAIRN_SYS is mounted
	// Writable makes the file system writable for the time of a change; nil
	// where it always is. See bootloader.Remount.
	Writable func() (restore func() error, err error)
}

var _ Disk = Dir{}

// Do implements Disk with a lock on the directory, which processes share and
// which ends with the process that holds it.
func (d Dir) Do(change bool, f func() error) (err error) {
	unlock, err := lock(d.Path, lockTime)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	if !change || d.Writable == nil {
		return f()
	}
	restore, err := d.Writable()
	if err != nil {
		return err
	}
	return errors.Join(f(), restore())
}

// lock waits for the lock of a directory in a goroutine of its own, because
// flock(2) knows no time limit. When the time is over, that goroutine gives the
// lock back as soon as it has it.
func lock(dir string, limit time.Duration) (unlock func() error, err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	got := make(chan error, 1)
	go func() {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX)
		for errors.Is(err, unix.EINTR) {
			err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		}
		got <- err
	}()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case err := <-got:
		if err != nil {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", dir, err), f.Close())
		}
		return f.Close, nil
	case <-timer.C:
		go func() {
			<-got
			_ = f.Close()
		}()
		return nil, fmt.Errorf("lock %s: %w", dir, ErrBusy)
	}
}

// Read implements Disk. What is not a regular file holds nothing.
func (d Dir) Read(name string) ([]byte, error) {
	f, err := os.Open(filepath.Join(d.Path, name))
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

// Overwrite implements Disk. Only a file that is missing, of another length or
// not a file, so that it holds nothing that could be lost, is made anew or cut.
func (d Dir) Overwrite(name string, data []byte) (err error) {
	path := filepath.Join(d.Path, name)
	info, err := makeWay(path)
	if err != nil {
		return err
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
		return fmt.Errorf("%s: %w", path, ErrReadBack)
	}
	if info == nil || info.Size() != int64(len(data)) {
		return syncDir(filepath.Dir(path))
	}
	return nil
}

// makeWay removes what is not a file from path, and makes its folder. It
// returns what is at path now, nil for nothing.
func makeWay(path string) (fs.FileInfo, error) {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, os.MkdirAll(filepath.Dir(path), 0o755)
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, os.RemoveAll(path)
	}
	return info, nil
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
