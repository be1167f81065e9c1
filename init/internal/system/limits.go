package system

import (
	"fmt"
	"syscall"
)

// Limits of open files for what init starts, and by inheritance for pods. The kernel's own hard limit of 4096 is too
// little for databases and web servers; the soft one stays at 1024, which select(2) needs, and programs raise it.
const (
	softFiles = 1024
	hardFiles = 512 << 10
)

// setFileLimits sets the limits for all processes started from now on; the hard one is never lowered.
func setFileLimits(soft, hard uint64) error {
	var now syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &now); err != nil {
		return fmt.Errorf("limit of open files: %w", err)
	}
	// By package syscall: it then hands on this limit and not the one that the process began with.
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: soft, Max: max(now.Max, hard)}); err != nil {
		return fmt.Errorf("limit of open files: %w", err)
	}
	return nil
}
