package system

import (
	"errors"
	"os"
	"slices"
	"time"

	"github.com/cairn-os/cairn/pkg/power"
	"github.com/cairn-os/cairn/pkg/status"
	"github.com/cairn-os/cairn/pkg/supervise"
	"golang.org/x/sys/unix"
)

// handler answers the control socket's clients; it is called from any goroutine.
type handler struct{ m *machine }

func (h handler) Status() status.Status {
	m := h.m
	m.mu.Lock()
	s := status.Status{
		Hostname: m.hostname, Slot: m.slot, Trial: m.trialStatus(), Release: status.Release(m.release), UptimeS: status.InSeconds(m.opt.Since()),
		Phases: slices.Clone(m.phases), Timeline: slices.Clone(m.marks),
	}
	if m.config != nil { // set before the socket listens
		s.Role, s.Server = m.role(), m.config.Cairn.Server()
	}
	supervisor, net := m.supervisor, m.network
	m.mu.Unlock()
	s.Watchdog = m.opt.Watchdog.Status()
	s.Addresses = net.addresses()
	if supervisor != nil {
		s.Processes = supervisor.Status()
	}
	return s
}

var errStarting = errors.New("the services are not started yet")

// supervised calls do with the supervisor once there is one.
func (h handler) supervised(do func(*supervise.Supervisor) error) error {
	h.m.mu.Lock()
	s := h.m.supervisor
	h.m.mu.Unlock()
	if s == nil {
		return errStarting
	}
	return do(s)
}

func (h handler) Start(name string) error {
	return h.supervised(func(s *supervise.Supervisor) error { return s.Start(name) })
}

func (h handler) Stop(name string) error {
	return h.supervised(func(s *supervise.Supervisor) error { return s.Stop(name) })
}

func (h handler) Restart(name string) error {
	return h.supervised(func(s *supervise.Supervisor) error { return s.Restart(name) })
}

func (h handler) Reboot() error {
	h.m.request(power.Reboot)
	return nil
}

func (h handler) PowerOff() error {
	h.m.request(power.PowerOff)
	return nil
}

func (h handler) Confirm() error { return h.m.confirm() }

func (h handler) Announce(text, mark string) {
	h.m.log.Print(text)
	if mark == "" {
		return
	}
	h.m.mu.Lock()
	defer h.m.mu.Unlock()
	h.m.addMark(mark, h.m.opt.Since())
}

// addMark adds a moment to the timeline, once per name. mu is held.
func (m *machine) addMark(name string, at time.Duration) {
	if slices.ContainsFunc(m.marks, func(k status.Mark) bool { return k.Name == name }) {
		return
	}
	m.marks = append(m.marks, status.Mark{Name: name, AtS: status.InSeconds(at)})
}

// request asks the main loop to stop the node. Requests beyond the first few say nothing new and are dropped.
func (m *machine) request(a power.Action) {
	select {
	case m.requests <- a:
	default:
	}
}

// wait is the main loop: it returns what the node was asked for.
func (m *machine) wait() power.Action {
	for {
		select {
		case a := <-m.requests:
			m.log.Printf("%v was requested", a)
			return a
		case sig := <-m.opt.Signals:
			if a := signalAction(sig, m.opt.Container); a != power.None {
				m.log.Printf("%v: %v", sig, a)
				return a
			}
		}
	}
}

// signalAction says what a signal to PID 1 asks for. Ctrl-Alt-Del comes as SIGINT, a failing power supply as SIGPWR;
// SIGTERM is how a container is stopped, and on a machine how busybox's reboot asks.
func signalAction(sig os.Signal, container bool) power.Action {
	switch sig {
	case unix.SIGINT:
		return power.Reboot
	case unix.SIGTERM:
		if container {
			return power.PowerOff
		}
		return power.Reboot
	case unix.SIGUSR2, unix.SIGPWR:
		return power.PowerOff
	}
	return power.None
}
