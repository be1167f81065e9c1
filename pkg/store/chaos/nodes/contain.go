package nodes

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
)

// containedEnv marks the program that Contain started.
const containedEnv = "CAIRN_NODES_CONTAINED"

// Contain runs this program once more, with mounts of its own: those of the
// nodes' disks then end with it, however it ends. It returns true and the exit
// code when that program has ended; false in that program itself, and where
// nodes cannot run. Call it before anything else.
func Contain() (ended bool, code int, err error) {
	if os.Getenv(containedEnv) != "" || Available() != nil {
		return false, 0, nil
	}
	self, err := os.Executable()
	if err != nil {
		return false, 0, err
	}
	cmd := exec.Command(self, os.Args[1:]...)
	cmd.Env = append(os.Environ(), containedEnv+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	err = cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return false, 0, fmt.Errorf("start %s with mounts of its own: %w", self, err)
	}
	if code = cmd.ProcessState.ExitCode(); code < 0 {
		code = 1 // A signal ended it.
	}
	return true, code, nil
}
