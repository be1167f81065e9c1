package supervise

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/cairn-os/cairn/pkg/cgroup"
	"github.com/cairn-os/cairn/pkg/notify"
	"github.com/cairn-os/cairn/pkg/reaper"
	"github.com/cairn-os/cairn/pkg/status"
)

// unit is a service with its resources. Supervisor.mu guards m, proc, stream and the oom fields; the rest never changes.
type unit struct {
	m       *machine
	proc    *reaper.Process
	stream  *stream // of proc
	oomErr  error
	oomSaid bool

	sock  *notify.Socket
	group *cgroup.Group
	out   *output
}

func newUnit(opt Options, svc Service) (*unit, error) {
	group, err := opt.Cgroup.Create(svc.Name)
	if err != nil {
		return nil, err
	}
	sock, err := notify.Listen(opt.NotifyDir, svc.Name)
	if err != nil {
		return nil, err
	}
	out, err := openOutput(filepath.Join(opt.LogDir, svc.Name+".log"), opt.LogSize, opt.Logf)
	if err != nil {
		return nil, errors.Join(err, sock.Close())
	}
	return &unit{m: newMachine(svc), sock: sock, group: group, out: out}, nil
}

func (u *unit) close() error { return errors.Join(u.sock.Close(), u.out.Close()) }

// start forks the service: in its own session, cgroup and log.
func (u *unit) start(opt Options) (*reaper.Process, error) {
	svc := u.m.svc
	cmd := exec.Command(svc.Argv[0], svc.Argv[1:]...)
	cmd.Dir = svc.Dir
	cmd.Env = u.env(opt)
	u.stream = u.out.stream()
	cmd.Stdout, cmd.Stderr = u.stream, u.stream
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	dir, err := u.group.Open()
	if err != nil {
		return nil, err
	}
	if dir != nil {
		defer dir.Close()
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(dir.Fd())
	}
	proc, err := opt.Reaper.Start(cmd)
	if err != nil {
		return nil, err
	}
	if svc.OOMScore != 0 {
		path := fmt.Sprintf("/proc/%d/oom_score_adj", proc.PID())
		u.oomErr = os.WriteFile(path, []byte(strconv.Itoa(svc.OOMScore)), 0)
	}
	return proc, nil
}

func (u *unit) env(opt Options) []string {
	env := append([]string{}, opt.Env...)
	if u.m.svc.Notify {
		env = append(env, "NOTIFY_SOCKET="+u.sock.Path())
	}
	if u.m.svc.MemoryLimit > 0 {
		env = append(env, fmt.Sprintf("GOMEMLIMIT=%dB", u.m.svc.MemoryLimit))
	}
	if u.m.svc.GOGC > 0 {
		env = append(env, fmt.Sprintf("GOGC=%d", u.m.svc.GOGC))
	}
	return append(env, u.m.svc.Env...) // last: exec takes the last of equal names
}

// kill ends the service by force.
func (u *unit) kill() error {
	if u.m.svc.MainOnly {
		return u.proc.Signal(unix.SIGKILL)
	}
	return errors.Join(u.proc.SignalGroup(unix.SIGKILL), u.group.Kill())
}

// sweep kills what the main process left, so that the next instance finds no sockets or locks held.
func (u *unit) sweep() error {
	if u.m.svc.MainOnly {
		return nil
	}
	if err := u.proc.SignalGroup(unix.SIGKILL); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	if !u.group.Populated() {
		return nil
	}
	return u.group.Kill()
}

// describe is the machine as a value. Supervisor.mu is held.
func (u *unit) describe() status.Process {
	m := u.m
	p := status.Process{
		Name: m.svc.Name, State: string(m.state), PID: m.pid, Restarts: max(0, m.starts-1),
		LastExit: m.lastExit, Message: m.message, Log: u.out.path,
	}
	if m.pid != 0 || m.state == Done {
		p.StartedS, p.ReadyS = status.InSeconds(m.started), status.InSeconds(m.ready)
	}
	return p
}

// measure adds the memory figures of a running process.
func (u *unit) measure(p *status.Process) {
	p.RSSBytes = rss(p.PID)
	p.GroupBytes, p.GroupPeakBytes = u.group.Memory()
}

// rss reads VmRSS; 0 if the process is gone.
func rss(pid int) int64 {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	for line := range strings.SplitSeq(string(data), "\n") {
		if v, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(v), " kB"), 10, 64)
			if err != nil {
				return 0
			}
			return kib << 10
		}
	}
	return 0
}
