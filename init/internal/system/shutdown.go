package system

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/cairn-os/cairn/init/internal/guard"
	"github.com/cairn-os/cairn/pkg/mount"
	"github.com/cairn-os/cairn/pkg/power"
	"github.com/cairn-os/cairn/pkg/sequence"
	"golang.org/x/sys/unix"
)

// podGrace is how long pods and what else still runs may take to end after SIGTERM.
const podGrace = 15 * time.Second

// killRounds is how often what is left is killed, and killWait how long each time may take.
const (
	killRounds = 3
	killWait   = 2 * time.Second
)

// shutdownLimit is longer than all steps of a shutdown with their limits. After it the watchdog is fed no more.
const shutdownLimit = 6 * time.Minute

// shutdown takes the node down: services in the reverse order of their start, then pods, then file systems. Nothing here
// may keep it from ending: every step is reported and passed over when it fails, and what hangs all the same is ended by
// the watchdog.
func (m *machine) shutdown(ctx context.Context, action power.Action) {
	m.opt.Watchdog.EndAfter(shutdownLimit)
	m.stopDeadline()
	m.log.Printf("shutting down: %v", action)
	runner := sequence.Runner{Logf: m.log.Printf}
	if _, err := runner.Run(context.WithoutCancel(ctx), m.shutdownPhases(action)); err != nil {
		m.log.Print(err)
	}
	m.log.Printf("the node is down: %v", action)
}

func (m *machine) shutdownPhases(action power.Action) []sequence.Phase {
	hardware := func() bool { return !m.opt.Container }
	return []sequence.Phase{
		{Name: "stop services", Policy: sequence.Report, Timeout: 90 * time.Second, Run: func(context.Context) error {
			if m.stopServices != nil {
				m.stopServices()
			}
			return nil
		}},
		{Name: "stop pods", Policy: sequence.Report, Timeout: podGrace + 30*time.Second, Run: func(ctx context.Context) error {
			return processes{proc: "/proc", self: os.Getpid(), kill: unix.Kill, logf: m.log.Printf, grace: podGrace}.stop(ctx)
		}},
		{Name: "stop network", Policy: sequence.Report, Timeout: 10 * time.Second, Run: func(context.Context) error {
			m.network.stop()
			return nil
		}},
		{Name: "sync", Policy: sequence.Report, Timeout: 60 * time.Second, Run: func(context.Context) error {
			unix.Sync()
			return nil
		}},
		// As late as can be, so that what the services said of their end is on the disk, too.
		{Name: "roll back", Policy: sequence.Report, Timeout: 30 * time.Second, RunWhen: m.overdueNow, Run: m.rollBack},
		{Name: "unmount", Policy: sequence.Report, Timeout: 60 * time.Second, RunWhen: hardware, Run: func(context.Context) error {
			err := mount.UnmountAll(m.log.Printf)
			unix.Sync()
			return err
		}},
		{Name: "watchdog", Policy: sequence.Report, Timeout: 10 * time.Second, RunWhen: hardware, Run: func(context.Context) error {
			if action == power.Reboot { // armed: a restart that hangs is ended, too
				m.opt.Watchdog.Stop()
				return nil
			}
			return m.opt.Watchdog.Disarm()
		}},
	}
}

// processes ends everything that still runs on the node beside PID 1 and the kernel's own threads.
type processes struct {
	proc  string // "/proc"
	self  int
	kill  func(pid int, sig unix.Signal) error
	logf  guard.Logf
	grace time.Duration
}

// process is one of them, by what the log should call it.
type process struct {
	pid  int
	name string
}

// stop sends SIGTERM to all, waits for the grace period, and then kills what is left, each with a log line.
func (p processes) stop(ctx context.Context) error {
	if err := p.signal(unix.SIGTERM, nil); err != nil {
		return err
	}
	left, err := p.wait(ctx, p.grace)
	if err != nil || len(left) == 0 {
		return err
	}
	told := map[int]bool{}
	// More than once: a process may have forked between the look and the signal.
	for range killRounds {
		if err := p.signal(unix.SIGKILL, func(q process) {
			if !told[q.pid] {
				told[q.pid] = true
				p.logf("killing %s (pid %d), which did not end within %v", q.name, q.pid, p.grace)
			}
		}); err != nil {
			return err
		}
		if left, err = p.wait(ctx, killWait); err != nil || len(left) == 0 {
			return err
		}
	}
	return fmt.Errorf("%d processes cannot be killed, the first is %s (pid %d)", len(left), left[0].name, left[0].pid)
}

func (p processes) signal(sig unix.Signal, tell func(process)) error {
	all, err := p.list()
	if err != nil {
		return err
	}
	for _, q := range all {
		if tell != nil {
			tell(q)
		}
		if err := p.kill(q.pid, sig); err != nil && !errors.Is(err, unix.ESRCH) {
			p.logf("%v to %s (pid %d): %v", sig, q.name, q.pid, err)
		}
	}
	return nil
}

// wait returns what is left when nothing is, or after the time given. There is no event for "the last process of the
// machine has ended", hence the looking again.
func (p processes) wait(ctx context.Context, atMost time.Duration) ([]process, error) {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	end := time.NewTimer(atMost)
	defer end.Stop()
	for {
		left, err := p.list()
		if err != nil || len(left) == 0 {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return left, ctx.Err()
		case <-end.C:
			return left, nil
		case <-tick.C:
		}
	}
}

// list reads the processes of user space from proc; those that ended and wait for their parent do not count.
func (p processes) list() ([]process, error) {
	entries, err := os.ReadDir(p.proc)
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var all []process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == p.self {
			continue
		}
		stat, err := os.ReadFile(filepath.Join(p.proc, e.Name(), "stat"))
		if err != nil {
			continue // ended meanwhile
		}
		if q, ok := parseStat(pid, stat); ok {
			all = append(all, q)
		}
	}
	return all, nil
}

// parseStat reads proc_pid_stat(5): "pid (name) state ppid pgrp session tty tpgid flags ...".
func parseStat(pid int, stat []byte) (process, bool) {
	const kernelThread = 0x00200000 // PF_KTHREAD
	open, shut := bytes.IndexByte(stat, '('), bytes.LastIndexByte(stat, ')')
	if open < 0 || shut < open {
		return process{}, false
	}
	fields := strings.Fields(string(stat[shut+1:]))
	if len(fields) < 7 || fields[0] == "Z" || fields[0] == "X" {
		return process{}, false
	}
	flags, err := strconv.ParseUint(fields[6], 10, 64)
	if err != nil || flags&kernelThread != 0 {
		return process{}, false
	}
	return process{pid, string(stat[open+1 : shut])}, true
}
