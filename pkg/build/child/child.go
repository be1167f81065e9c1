// Package child ends the programs that a build starts together with all that
// they started themselves: go and make leave compilers and tests behind when
// only they are killed.
package child

import (
	"os/exec"
	"syscall"
	"time"
)

// patience is how long the output of a killed program is waited for.
const patience = 5 * time.Second

// Bind makes cmd, which must be of exec.CommandContext and not started yet, the
// first of a process group that is killed as a whole when the context ends. A
// process that makes itself a session of its own is not reached.
func Bind(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = patience
}
