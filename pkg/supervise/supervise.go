// Package supervise keeps a fixed set of processes running: it starts them in dependency order, learns from their
// notifications when they serve, restarts what ends, and stops all in reverse order.
//
// Each service is a state machine (machine.go). Machines decide and never act: an event returns the actions to carry
// out, so that the whole behaviour is tested as transcripts without processes or clocks. Supervisor owns the machines
// under one mutex, delivers events and carries the actions out.
//
//	                                 exit 0 of a one-shot service
//	                                ┌────────────────────────► done ◄─┐
//	          dependencies ready    │  READY=1, or at once            │
//	waiting ─────────────────────► starting ────────────────────────► ready
//	   │                            │  ▲  │ too slow to be ready        │ │
//	   │ stop                  exit │  │  └───────────────┐    exit     │ │ stop, restart
//	   ▼                            ▼  │ delay over       ▼  ┌─────────┘ ▼
//	stopped ◄──────── stop ──────── backoff ◄── exit ── stopping ◄───────┘
//	   ▲  └── start ──► starting                           │
//	   └───────────────────── exit, was told to stop ──────┘
//
// From done, start and restart lead to starting, and stop to stopped.
//
// Dependencies gate the first start only: when one crashes later, what depends on it stays up and reconnects. No state
// means "given up": a machine without an administrator near it must go on trying, at most a minute apart.
package supervise

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/cairn-os/cairn/pkg/cgroup"
	"github.com/cairn-os/cairn/pkg/reaper"
	"github.com/cairn-os/cairn/pkg/status"
)

// Service describes one process to keep running.
type Service struct {
	Name string   // of the log file, the cgroup and the notify socket; a plain file name
	Argv []string // Argv[0] is searched in the supervisor's PATH
	Env  []string // added to Options.Env
	Dir  string   // working directory; "" is /
	// After names the services that must be ready before this one's first start.
	After []string
	// Notify: the service is ready when its main process sends READY=1 (sd_notify). Without it, when it was started.
	Notify bool
	// Oneshot: the service is done, and what comes After it may start, when its main process ends with status 0; it is
	// not started again. With Notify it may say READY=1 before, and go on. Any other end is a failure like everybody's.
	Oneshot bool
	// ReadyTimeout is how long a Notify or Oneshot service may take; it is stopped and started again after that.
	// 0: 5 minutes; less: for ever, for what waits for a person or for another machine and says so.
	ReadyTimeout time.Duration
	OOMScore     int           // oom_score_adj, -1000 to 1000
	MemoryLimit  int64         // bytes, given as GOMEMLIMIT; 0: none. A hint to Go's collector, no hard limit
	GOGC         int           // percent; 0: unset
	StopGrace    time.Duration // from SIGTERM to SIGKILL; 0: 10 s
	// MainOnly confines SIGKILL to the main process. containerd needs it: its shims live in its cgroup, and they and
	// their pods outlive its restart.
	MainOnly bool
}

const (
	defaultReadyTimeout = 5 * time.Minute
	defaultStopGrace    = 10 * time.Second
	defaultLogSize      = 512 << 10
)

// Options are what all services share. Reaper, LogDir, NotifyDir and Logf are required.
type Options struct {
	Reaper    *reaper.Reaper // its Serve must be running
	Cgroup    *cgroup.Tree   // nil: no cgroups
	LogDir    string         // output goes to <LogDir>/<name>.log and, older, <name>.log.1
	LogSize   int64          // bytes at which a log is rotated; 0: 512 KiB
	NotifyDir string         // of the notify sockets
	Env       []string       // the environment of all services; nothing is inherited
	// Logf prints one line to the console log: starts, crashes, stops. It must not block for long.
	Logf func(format string, args ...any)
	// Since is the time since power-on, by which all moments in a status are given. nil: since New.
	Since func() time.Duration
	// OnChange, if set, is told every change of a service's state, in order, from the supervisor's loop. It must not
	// block: the watchdog is fed from the same loop.
	OnChange func(status.Process)
}

// New checks the services and prepares their sockets, logs and cgroups. Nothing is started before Run.
func New(opt Options, services []Service) (*Supervisor, error) {
	if opt.Reaper == nil || opt.Logf == nil || opt.LogDir == "" || opt.NotifyDir == "" {
		return nil, errors.New("supervise: Reaper, Logf, LogDir and NotifyDir are required")
	}
	if opt.LogSize == 0 {
		opt.LogSize = defaultLogSize
	}
	if opt.Since == nil {
		begin := time.Now()
		opt.Since = func() time.Duration { return time.Since(begin) }
	}
	if err := check(services); err != nil {
		return nil, err
	}
	for _, dir := range []string{opt.LogDir, opt.NotifyDir} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("supervise: %w", err)
		}
	}
	s := &Supervisor{opt: opt, wake: make(chan struct{}, 1)}
	for _, svc := range services {
		u, err := newUnit(opt, withDefaults(svc))
		if err != nil {
			s.closeUnits()
			return nil, fmt.Errorf("service %s: %w", svc.Name, err)
		}
		s.units = append(s.units, u)
	}
	s.beat.Store(int64(opt.Since()))
	return s, nil
}

func withDefaults(svc Service) Service {
	if svc.ReadyTimeout == 0 {
		svc.ReadyTimeout = defaultReadyTimeout
	}
	if svc.StopGrace == 0 {
		svc.StopGrace = defaultStopGrace
	}
	if svc.Dir == "" {
		svc.Dir = "/"
	}
	return svc
}

// check refuses services that could never start: bad names, unknown or circular dependencies.
func check(services []Service) error {
	byName := make(map[string]Service)
	for _, svc := range services {
		switch {
		case svc.Name == "" || svc.Name != filepath.Base(svc.Name) || svc.Name[0] == '.':
			return fmt.Errorf("service name %q: not a plain file name", svc.Name)
		case len(svc.Argv) == 0 || svc.Argv[0] == "":
			return fmt.Errorf("service %s: no command", svc.Name)
		case svc.OOMScore < -1000 || svc.OOMScore > 1000:
			return fmt.Errorf("service %s: oom score %d is not within -1000 to 1000", svc.Name, svc.OOMScore)
		}
		if _, ok := byName[svc.Name]; ok {
			return fmt.Errorf("service %s: named twice", svc.Name)
		}
		byName[svc.Name] = svc
	}
	var visit func(name string, path []string) error
	visit = func(name string, path []string) error {
		if slices.Contains(path, name) {
			return fmt.Errorf("service %s: waits for itself through %v", name, path)
		}
		for _, dep := range byName[name].After {
			if _, ok := byName[dep]; !ok {
				return fmt.Errorf("service %s: After names unknown service %q", name, dep)
			}
			if err := visit(dep, append(slices.Clone(path), name)); err != nil {
				return err
			}
		}
		return nil
	}
	for _, svc := range services {
		if err := visit(svc.Name, nil); err != nil {
			return err
		}
	}
	return nil
}
