// Package reaper is the one door through which a process waits for its children.
//
// PID 1 must wait for every orphan of the machine with wait4(-1), and that call also takes the exit status of children
// that os/exec started: a bare cmd.Wait beside it loses the race now and then. So init starts every child here. Start
// forks and registers under the same lock that the reaping loop holds, hence no exit can be seen before its owner is
// known, and no signal can reach a process whose pid was already freed.
package reaper

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Reaper waits for all children of this process. Nothing else in the process may call wait4 or exec.Cmd.Wait.
type Reaper struct {
	mu       sync.Mutex
	children map[int]*Process // started and not yet reaped
	orphans  uint64
}

// New returns a Reaper. When the process is not PID 1 it becomes the subreaper of its descendants, so that orphans
// come here as they do to PID 1.
func New() (*Reaper, error) {
	if os.Getpid() != 1 {
		if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
			return nil, fmt.Errorf("become subreaper: %w", err)
		}
	}
	return &Reaper{children: make(map[int]*Process)}, nil
}

// Serve reaps until ctx ends. Call it once, in a goroutine of its own; children that end while it does not run are
// reaped when it starts.
func (r *Reaper) Serve(ctx context.Context) {
	sig := make(chan os.Signal, 1) // one is enough: each signal makes one sweep over all that ended
	signal.Notify(sig, unix.SIGCHLD)
	defer signal.Stop(sig)
	for {
		r.sweep()
		select {
		case <-sig:
		case <-ctx.Done():
			return
		}
	}
}

// Orphans is the number of reaped processes that nobody here had started.
func (r *Reaper) Orphans() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.orphans
}

func (r *Reaper) sweep() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, unix.WNOHANG, nil)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil || pid == 0: // ECHILD: no children at all
			return
		}
		p, ok := r.children[pid]
		if !ok {
			r.orphans++
			continue
		}
		delete(r.children, pid)
		p.exit = exitOf(ws)
		close(p.done)
	}
}

// Process is a started child.
type Process struct {
	r       *Reaper
	pid     int
	done    chan struct{}
	exit    Exit // written before done is closed
	copied  chan struct{}
	copyErr error // written before copied is closed
}

// Start starts cmd and returns a handle to wait on; cmd.Wait must not be called. A context of exec.CommandContext is
// ignored here (Run takes one). Output to an io.Writer that is no *os.File is copied until the pipe closes.
func (r *Reaper) Start(cmd *exec.Cmd) (*Process, error) {
	pipes, err := redirect(cmd)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	// os/exec would otherwise start a goroutine that waits for a Wait which never comes.
	cmd.Cancel, cmd.WaitDelay = nil, 0

	r.mu.Lock()
	err = cmd.Start()
	var p *Process
	if err == nil {
		p = &Process{r: r, pid: cmd.Process.Pid, done: make(chan struct{}), copied: make(chan struct{})}
		r.children[p.pid] = p
	}
	r.mu.Unlock()

	pipes.closeWriters()
	if err != nil {
		pipes.closeReaders()
		return nil, fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	if err := cmd.Process.Release(); err != nil { // closes os's pidfd; the pid is ours until sweep
		pipes.closeReaders()
		return nil, fmt.Errorf("release %s: %w", cmd.Path, err)
	}
	go func() {
		p.copyErr = pipes.copy()
		close(p.copied)
	}()
	return p, nil
}

// PID is the child's process id. It may be of another process once Done is closed.
func (p *Process) PID() int { return p.pid }

// Done is closed when the child was reaped.
func (p *Process) Done() <-chan struct{} { return p.done }

// Copied is closed when all redirected output was written. Grandchildren that keep the pipe open delay it.
func (p *Process) Copied() <-chan struct{} { return p.copied }

// Exit says how the child ended. It is valid once Done is closed.
func (p *Process) Exit() Exit { return p.exit }

// Signal sends sig to the child. os.ErrProcessDone means that it ended before.
func (p *Process) Signal(sig syscall.Signal) error {
	p.r.mu.Lock()
	defer p.r.mu.Unlock()
	if p.r.children[p.pid] != p {
		return os.ErrProcessDone
	}
	return kill(p.pid, sig)
}

// SignalGroup sends sig to the process group that the child leads (SysProcAttr.Setpgid or Setsid). It works after the
// child's end too, while members of the group are left: so long the kernel gives the number to nobody else. Use it
// right after Done, because an empty group's number can be reused. os.ErrProcessDone means that the group is empty.
func (p *Process) SignalGroup(sig syscall.Signal) error {
	p.r.mu.Lock()
	defer p.r.mu.Unlock()
	return kill(-p.pid, sig)
}

func kill(target int, sig syscall.Signal) error {
	switch err := unix.Kill(target, sig); {
	case errors.Is(err, unix.ESRCH):
		return os.ErrProcessDone
	case err != nil:
		return fmt.Errorf("signal %d with %s: %w", target, unix.SignalName(sig), err)
	}
	return nil
}

// copyGrace is how long Run waits, after the child's end, for output that a grandchild may still hold open.
const copyGrace = 2 * time.Second

// Run starts cmd and waits for it. When ctx ends first the child is killed, with its process group if it leads one
// (SysProcAttr.Setpgid or Setsid), and the error wraps ctx's. A child that did not exit with 0 gives an *ExitError.
// Serve must be running.
func (r *Reaper) Run(ctx context.Context, cmd *exec.Cmd) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("run %s: %w", cmd.Path, err)
	}
	p, err := r.Start(cmd)
	if err != nil {
		return err
	}
	var ctxErr error
	select {
	case <-p.Done():
	case <-ctx.Done():
		ctxErr = ctx.Err()
		end := p.Signal
		if a := cmd.SysProcAttr; a != nil && (a.Setsid || a.Setpgid && a.Pgid == 0) {
			end = p.SignalGroup
		}
		if err := end(unix.SIGKILL); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return fmt.Errorf("run %s: %w", cmd.Path, errors.Join(ctxErr, err))
		}
		<-p.Done()
	}
	grace := time.NewTimer(copyGrace)
	defer grace.Stop()
	select {
	case <-p.Copied():
		err = p.copyErr
	case <-grace.C:
	}
	switch {
	case ctxErr != nil:
		return fmt.Errorf("run %s: %w", cmd.Path, ctxErr)
	case !p.Exit().Success():
		return &ExitError{Path: cmd.Path, Exit: p.Exit()}
	case err != nil:
		return fmt.Errorf("run %s: copy output: %w", cmd.Path, err)
	}
	return nil
}

// ExitError is the end of a program that did not succeed.
type ExitError struct {
	Path string
	Exit Exit
}

func (e *ExitError) Error() string { return fmt.Sprintf("%s: %s", e.Path, e.Exit) }

// Exit is how a process ended: by exit code, or by a signal when Signal is not 0.
type Exit struct {
	Code   int
	Signal syscall.Signal
	Core   bool
}

func exitOf(ws unix.WaitStatus) Exit {
	if ws.Signaled() {
		return Exit{Code: -1, Signal: ws.Signal(), Core: ws.CoreDump()}
	}
	return Exit{Code: ws.ExitStatus()}
}

// Success reports an exit with code 0.
func (e Exit) Success() bool { return e.Signal == 0 && e.Code == 0 }

func (e Exit) String() string {
	if e.Signal == 0 {
		return fmt.Sprintf("exit status %d", e.Code)
	}
	name := unix.SignalName(e.Signal)
	if name == "" {
		name = fmt.Sprintf("signal %d", int(e.Signal))
	}
	if e.Core {
		return "killed by " + name + " (core dumped)"
	}
	return "killed by " + name
}

// pipe carries one redirected output.
type pipe struct {
	r, w *os.File
	to   io.Writer
}

type pipes []pipe

// redirect replaces writers that are no files by pipes, one for both outputs when they are the same writer.
func redirect(cmd *exec.Cmd) (pipes, error) {
	if _, ok := cmd.Stdin.(*os.File); cmd.Stdin != nil && !ok {
		return nil, errors.New("stdin must be nil or a file")
	}
	var ps pipes
	through := func(to io.Writer) (io.Writer, error) {
		if _, ok := to.(*os.File); to == nil || ok {
			return to, nil
		}
		r, w, err := os.Pipe()
		if err != nil {
			return nil, fmt.Errorf("pipe: %w", err)
		}
		ps = append(ps, pipe{r: r, w: w, to: to})
		return w, nil
	}
	same := cmd.Stderr != nil && sameWriter(cmd.Stdout, cmd.Stderr)
	var err error
	if cmd.Stdout, err = through(cmd.Stdout); err != nil {
		return nil, err
	}
	if same {
		cmd.Stderr = cmd.Stdout
		return ps, nil
	}
	if cmd.Stderr, err = through(cmd.Stderr); err != nil {
		ps.closeWriters()
		ps.closeReaders()
		return nil, err
	}
	return ps, nil
}

// sameWriter compares two writers, and calls writers of types that cannot be compared different.
func sameWriter(a, b io.Writer) (same bool) {
	defer func() {
		if recover() != nil {
			same = false
		}
	}()
	return a == b
}

func (ps pipes) closeWriters() {
	for _, p := range ps {
		p.w.Close()
	}
}

func (ps pipes) closeReaders() {
	for _, p := range ps {
		p.r.Close()
	}
}

func (ps pipes) copy() error {
	errs := make([]error, len(ps))
	var wg sync.WaitGroup
	for i, p := range ps {
		wg.Go(func() {
			defer p.r.Close()
			defer func() {
				if v := recover(); v != nil { // a bug in a writer must not end PID 1
					errs[i] = fmt.Errorf("panic: %v\n%s", v, debug.Stack())
				}
			}()
			_, errs[i] = io.Copy(p.to, p.r)
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}
