// Package system is init's second stage: on the verified root it brings the machine up phase by phase, keeps its
// processes running, and takes it down in order.
//
// phases.go is the boot, read from top to bottom; machine (below) is what the phases hand on to each other.
package system

import (
	"context"
	"log"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/cairn-os/cairn/init/internal/bootlog"
	"github.com/cairn-os/cairn/init/internal/feeder"
	"github.com/cairn-os/cairn/init/internal/trial"
	"github.com/cairn-os/cairn/pkg/blockdev"
	"github.com/cairn-os/cairn/pkg/cmdline"
	"github.com/cairn-os/cairn/pkg/config"
	"github.com/cairn-os/cairn/pkg/module"
	"github.com/cairn-os/cairn/pkg/power"
	"github.com/cairn-os/cairn/pkg/reaper"
	"github.com/cairn-os/cairn/pkg/release"
	"github.com/cairn-os/cairn/pkg/sequence"
	"github.com/cairn-os/cairn/pkg/slot"
	"github.com/cairn-os/cairn/pkg/status"
	"github.com/cairn-os/cairn/pkg/supervise"
)

// Options say where the stage runs.
type Options struct {
	// Container: in name spaces that someone prepared. The machine's hardware, its disks and its kernel are not ours.
	Container bool
	Line      cmdline.Line
	// Since is the time since power-on, or since a container started.
	Since func() time.Duration
	Log   *log.Logger
	// Signals are what asks the node to stop.
	Signals <-chan os.Signal
	// Watchdog is the machine's, armed when there is one; nil in a container.
	Watchdog *feeder.Feeder
}

// machine is the state of the stage. Phases run one after the other and own it until the services start; what is used
// from elsewhere after that has a lock of its own or is listed below mu.
type machine struct {
	opt      Options
	log      *log.Logger
	reaper   *reaper.Reaper
	release  release.Info
	disk     string // the boot disk: "vda"; empty in a container
	data     blockdev.Device
	modules  *module.Loader // nil: nothing to load
	seedErr  error          // why CAIRN_SYS could not be read
	config   *config.Config
	hostname string
	requests chan power.Action
	abort    context.CancelCauseFunc // ends the boot; nothing once it is over

	mu         sync.Mutex // guards what follows
	phases     []status.Phase
	supervisor *supervise.Supervisor // nil until its phase
	network    *keeper               // nil until its phase
	marks      []status.Mark
	slot       status.Slot
	trial      *trial.Trial  // nil: the slot is not on trial, or was confirmed since
	deadline   time.Duration // of the trial, since power-on
	timer      *time.Timer   // for it; nil until there is a trial
	expired    bool          // it passed: the slot state is to be rolled back

	stopServices func() // ends the supervisor and waits for it; nil until its phase
}

// Run boots, runs and stops the node. It returns what the machine shall do next. An error is a failed phase: then the
// services were never started, and the machine waits for the emergency screen.
func Run(ctx context.Context, opt Options) (power.Action, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r, err := reaper.New()
	if err != nil {
		return power.None, err
	}
	m := &machine{opt: opt, log: opt.Log, reaper: r, requests: make(chan power.Action, 4)}
	m.background("reaper", func() error { r.Serve(ctx); return nil })
	opt.Watchdog.Ask(m.alive)
	booting, abort := context.WithCancelCause(ctx)
	defer abort(nil)
	m.abort = abort
	if err := m.boot(booting); err != nil {
		m.stopDeadline()
		if !m.overdueNow() {
			return power.None, m.failed(err)
		}
		m.log.Print(m.failed(overdue(err))) // and no screen: the old version shall be back soon
	}
	action := m.wait()
	m.shutdown(ctx, action)
	return action, nil
}

// boot runs the phases.
func (m *machine) boot(ctx context.Context) error {
	early, err := bootlog.Load("/")
	if err != nil {
		m.log.Print(err)
	}
	m.phases = early
	runner := sequence.Runner{Logf: m.log.Printf, Since: m.opt.Since, Done: func(p status.Phase) {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.phases = append(m.phases, p)
	}}
	if _, err := runner.Run(ctx, m.bootPhases()); err != nil {
		return err
	}
	m.current().Reached(slot.StageServices)
	m.banner()
	return nil
}

// banner is the last the boot says; the node's state follows from cairnd.
func (m *machine) banner() {
	var where []string
	for _, a := range m.network.addresses() {
		where = append(where, a.Prefix)
	}
	if len(where) == 0 {
		where = []string{"no address yet"}
	}
	m.mu.Lock()
	running := m.slot
	m.mu.Unlock()
	m.log.Printf("Cairn %s, node %s, slot %s (%s), %s: services started %v after power-on", m.release.Version, m.hostname,
		orNone(running.Name), running.State, strings.Join(where, ", "), m.opt.Since().Round(10*time.Millisecond))
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

func baseEnv() []string {
	return []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8"}
}

// ownerEnv is cairn.environment: proxies, mostly.
func (m *machine) ownerEnv() []string {
	if m.config == nil {
		return nil
	}
	var env []string
	for key, value := range m.config.Cairn.Environment {
		env = append(env, key+"="+value)
	}
	return env
}
