package damage

import (
	"errors"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// checkIdle returns ErrRunning if dqlite holds its lock on the directory.
func (in *inspection) checkIdle() error {
	f, err := in.openFile(lockFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		in.unreadable(lockFile, err)
		return nil
	}
	defer f.Close()
	err = unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return ErrRunning
	}
	if err != nil {
		return os.NewSyscallError("flock", err)
	}
	return nil
}
