package health

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// lastWords is how much of a command's output is kept: the end of it, where it says what is wrong.
const lastWords = MaxText / 2

// tail keeps the end of what is written to it.
type tail struct{ data []byte }

func (t *tail) Write(p []byte) (int, error) {
	t.data = append(t.data, p[max(0, len(p)-lastWords):]...)
	t.data = t.data[max(0, len(t.data)-lastWords):]
	return len(p), nil
}

// execute runs the command in a process group of its own, all of which is killed when its time is over. What it leaves
// behind with its output open is killed as well. A program that is missing, or that is none, on a file system that cannot
// be written will be so until the next release.
func execute(ctx context.Context, argv []string, readOnly func(path string) bool) Finding {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8"}
	var out tail
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	killGroup := func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	cmd.Cancel = killGroup
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	if errors.Is(err, exec.ErrWaitDelay) {
		// It ended well, and what holds its output a second later is of its group, whose number is thus still taken. Something
		// that made a group of its own is a daemon and meant to stay.
		if kill := killGroup(); kill != nil && !errors.Is(kill, unix.ESRCH) {
			return Finding{Text: "what the command left running cannot be ended: " + kill.Error()}
		}
		err = nil
	}
	var exit *exec.ExitError
	switch {
	case err == nil:
		return Finding{OK: true, Text: said("ended with 0", out)}
	case ctx.Err() != nil:
		return Finding{Text: said("did not end in time", out)}
	case errors.As(err, &exit) && exit.Exited():
		return Finding{Text: said(fmt.Sprintf("ended with %d", exit.ExitCode()), out)}
	case errors.As(err, &exit):
		return Finding{Text: said("ended by "+exit.String(), out)}
	}
	return Finding{Text: argv[0] + " cannot be run: " + startCause(err), Permanent: lasting(err, argv[0], readOnly)}
}

func said(what string, out tail) string {
	if words := shorten(string(out.data), lastWords); words != "" {
		return what + ": " + words
	}
	return what
}

// startCause is why a program was not started, without its path a second time.
func startCause(err error) string {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err.Error()
	}
	return err.Error()
}

// lasting says whether the error of starting the program at path will be the same at every try of this boot.
func lasting(err error, path string, readOnly func(string) bool) bool {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		// When the file is there its interpreter is missing, which may be anywhere.
		if _, err := os.Lstat(path); err == nil {
			return false
		}
	case !errors.Is(err, unix.ENOEXEC) && !errors.Is(err, fs.ErrPermission):
		return false
	}
	for path != "/" {
		if _, err := os.Stat(path); err == nil {
			break
		}
		path = filepath.Dir(path)
	}
	return readOnly(path)
}

// readOnly says whether the file system of path cannot be written (statfs(2), f_flags).
func readOnly(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Flags&unix.ST_RDONLY != 0
}
