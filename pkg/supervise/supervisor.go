package supervise

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cairn-os/cairn/pkg/notify"
	"github.com/cairn-os/cairn/pkg/reaper"
	"github.com/cairn-os/cairn/pkg/status"
)

// Supervisor runs services. Its methods may be called from any goroutine.
type Supervisor struct {
	opt   Options
	units []*unit       // in the order given to New
	wake  chan struct{} // deadlines or gates may have changed
	beat  atomic.Int64  // time since power-on of the loop's last turn, in ns

	mu      sync.Mutex // guards all below, and the machines in units
	stopped bool       // Run has begun to stop
	changes []status.Process
}

// maxNap bounds the sleep of an idle loop, so that its heartbeat means something.
const maxNap = 2 * time.Second

// Healthy reports whether the loop has turned within the last patience: what a watchdog is fed by. A deadlock or an
// endless loop in the supervisor makes it false.
func (s *Supervisor) Healthy(patience time.Duration) bool {
	return s.opt.Since()-time.Duration(s.beat.Load()) <= patience
}

// Run supervises until ctx ends, then stops all services, dependents first, and returns when none is left. Call once.
func (s *Supervisor) Run(ctx context.Context) error {
	for _, u := range s.units {
		go func() {
			defer s.recovered("notifications of " + u.m.svc.Name)
			u.sock.Serve(func(m notify.Message) { s.notified(u, m) },
				func(err error) { s.opt.Logf("supervise: %s: notification: %v", u.m.svc.Name, err) })
		}()
	}
	defer s.closeUnits()
	timer := time.NewTimer(0)
	defer timer.Stop()
	done := ctx.Done()
	for {
		next, finished := s.turn(ctx.Err() != nil)
		s.beat.Store(int64(s.opt.Since()))
		if finished {
			return nil
		}
		timer.Reset(next)
		select {
		case <-done:
			done = nil // from now on each turn stops what can stop
		case <-s.wake:
		case <-timer.C:
		}
	}
}

// turn delivers what is due and returns how long to sleep, and whether all have stopped after a shutdown.
func (s *Supervisor) turn(stop bool) (nap time.Duration, finished bool) {
	nap = time.Second // after a panic: no spinning
	defer s.tellChanges()
	defer s.recovered("loop")
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopped = s.stopped || stop
	for _, u := range s.units {
		switch {
		case s.stopped && !u.m.down && s.dependentsStopped(u):
			s.do(u, func(now time.Duration) ([]action, error) { return u.m.request(now, reqShutdown) })
		case !s.stopped && u.m.state == Waiting && s.dependenciesReady(u):
			s.do(u, func(time.Duration) ([]action, error) { return u.m.dependenciesReady() })
		}
		s.do(u, u.m.tick)
	}
	now := s.opt.Since()
	nap, finished = maxNap, s.stopped
	for _, u := range s.units {
		finished = finished && u.m.down && u.m.state == Stopped
		if u.m.deadline != 0 {
			nap = min(nap, max(u.m.deadline-now, time.Millisecond))
		}
	}
	return nap, finished
}

func (s *Supervisor) dependenciesReady(u *unit) bool {
	for _, o := range s.units {
		if slices.Contains(u.m.svc.After, o.m.svc.Name) && !o.m.satisfied() {
			return false
		}
	}
	return true
}

func (s *Supervisor) dependentsStopped(u *unit) bool {
	for _, o := range s.units {
		if slices.Contains(o.m.svc.After, u.m.svc.Name) && !(o.m.down && o.m.state == Stopped) {
			return false
		}
	}
	return true
}

// do delivers one event and carries its actions out. s.mu is held.
func (s *Supervisor) do(u *unit, event func(now time.Duration) ([]action, error)) error {
	before := u.m.state
	acts, err := event(s.opt.Since())
	for len(acts) > 0 {
		a := acts[0]
		acts = append(acts[1:], s.act(u, a)...)
	}
	err = errors.Join(err, u.m.invariant())
	if err != nil {
		s.opt.Logf("supervise: %v", err)
	}
	if u.m.state != before {
		s.changes = append(s.changes, u.describe())
		s.nudge()
	}
	return err
}

// act carries out one action and returns those that follow from it.
func (s *Supervisor) act(u *unit, a action) []action {
	switch a.kind {
	case actStart:
		return s.spawn(u)
	case actTerm:
		s.warn(u, "SIGTERM", u.proc.Signal(unix.SIGTERM))
	case actKill:
		s.warn(u, "SIGKILL", u.kill())
	case actSweep:
		s.warn(u, "clean up", u.sweep())
	case actLog:
		s.opt.Logf("supervise: %s", a.text)
	case actTail:
		for _, line := range u.stream.last(crashLines) {
			s.opt.Logf("supervise: %s | %s", u.m.svc.Name, consoleLine(line))
		}
	}
	return nil
}

// crashLines is how much of a crashed service's output goes to the console.
const crashLines = 5

func (s *Supervisor) warn(u *unit, what string, err error) {
	if err != nil && !errors.Is(err, os.ErrProcessDone) {
		s.opt.Logf("supervise: %s: %s: %v", u.m.svc.Name, what, err)
	}
}

// spawn starts the process and feeds the outcome back to the machine.
func (s *Supervisor) spawn(u *unit) []action {
	proc, err := u.start(s.opt)
	now := s.opt.Since()
	var acts []action
	if err != nil {
		acts, err = u.m.spawnFailed(now, err)
	} else {
		u.proc = proc
		acts, err = u.m.spawned(now, proc.PID())
		go s.watch(u, proc, u.stream)
	}
	if err != nil {
		s.opt.Logf("supervise: %v", err)
	}
	if u.oomErr != nil && !u.oomSaid {
		u.oomSaid = true
		acts = append(acts, logf("%s: oom score %d not set: %v", u.m.svc.Name, u.m.svc.OOMScore, u.oomErr))
	}
	return acts
}

// drainTime is how long a dead process's last words are waited for, when a grandchild holds the pipe open.
const drainTime = 100 * time.Millisecond

// watch delivers the end of one process.
func (s *Supervisor) watch(u *unit, proc *reaper.Process, out *stream) {
	defer s.recovered("exit of " + u.m.svc.Name)
	<-proc.Done()
	timer := time.NewTimer(drainTime)
	defer timer.Stop()
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		defer s.recovered("last output of " + u.m.svc.Name)
		<-proc.Copied()
		out.Close()
	}()
	select {
	case <-drained:
	case <-timer.C:
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if u.proc != proc {
		return // abandoned
	}
	s.do(u, func(now time.Duration) ([]action, error) { return u.m.exited(now, proc.Exit()) })
}

// notified takes a message of sd_notify. Only the main process is listened to.
func (s *Supervisor) notified(u *unit, msg notify.Message) {
	defer s.recovered("notification of " + u.m.svc.Name)
	s.mu.Lock()
	defer s.mu.Unlock()
	if u.m.pid == 0 && u.proc != nil && msg.PID == u.proc.PID() {
		// Last words, which the end overtook: a process says why it gives up, and does.
		if msg.HasStatus && u.m.state == Backoff {
			s.do(u, func(now time.Duration) ([]action, error) { return u.m.said(now, msg.Status), nil })
		}
		return
	}
	if u.m.pid == 0 || msg.PID != u.m.pid {
		s.opt.Logf("supervise: %s: notification of pid %d ignored, the main process is %d", u.m.svc.Name, msg.PID, u.m.pid)
		return
	}
	if msg.HasStatus {
		s.do(u, func(now time.Duration) ([]action, error) { return u.m.said(now, msg.Status), nil })
	}
	if msg.Ready && u.m.svc.Notify {
		s.do(u, u.m.notified)
	}
}

// ErrUnknown says that no service has the name.
var ErrUnknown = errors.New("no such process")

// Start starts a stopped service, or one that waits for its back-off.
func (s *Supervisor) Start(name string) error { return s.request(name, reqStart) }

// Stop stops a service until Start or Restart.
func (s *Supervisor) Stop(name string) error { return s.request(name, reqStop) }

// Restart stops a service, if it runs, and starts it at once.
func (s *Supervisor) Restart(name string) error { return s.request(name, reqRestart) }

func (s *Supervisor) request(name string, req request) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	u, err := s.unit(name)
	if err != nil {
		return err
	}
	return s.do(u, func(now time.Duration) ([]action, error) { return u.m.request(now, req) })
}

func (s *Supervisor) unit(name string) (*unit, error) {
	for _, u := range s.units {
		if u.m.svc.Name == name {
			return u, nil
		}
	}
	return nil, fmt.Errorf("%w: %q", ErrUnknown, name)
}

// Status describes all services, in the order given to New.
func (s *Supervisor) Status() []status.Process {
	s.mu.Lock()
	out := make([]status.Process, 0, len(s.units))
	for _, u := range s.units {
		out = append(out, u.describe())
	}
	s.mu.Unlock()
	for i := range out { // reads files: not under the lock
		if out[i].PID != 0 {
			s.units[i].measure(&out[i])
		}
	}
	return out
}

// Tail returns the last lines (at most 20) that a service's newest run has printed.
func (s *Supervisor) Tail(name string) ([]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	u, err := s.unit(name)
	if err != nil {
		return nil, err
	}
	return u.stream.last(tailLines), nil
}

// tellChanges calls OnChange outside the lock.
func (s *Supervisor) tellChanges() {
	s.mu.Lock()
	changes := s.changes
	s.changes = nil
	s.mu.Unlock()
	if s.opt.OnChange == nil {
		return
	}
	defer s.recovered("hook")
	for _, c := range changes {
		s.opt.OnChange(c)
	}
}

// nudge makes the loop turn.
func (s *Supervisor) nudge() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// recovered keeps a panic of ours or of a hook from ending PID 1.
func (s *Supervisor) recovered(where string) {
	if v := recover(); v != nil {
		s.opt.Logf("supervise: panic in %s: %v\n%s", where, v, debug.Stack())
	}
}

func (s *Supervisor) closeUnits() {
	for _, u := range s.units {
		if err := u.close(); err != nil {
			s.opt.Logf("supervise: %s: %v", u.m.svc.Name, err)
		}
	}
}
