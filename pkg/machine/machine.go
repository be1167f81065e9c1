// Package machine composes the machine daemon, cairnd: the administration interface, the clock, and the watch over
// the Kubernetes node, whose readiness it announces on the console through init.
package machine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"

	"github.com/cairn-os/cairn/pkg/initctl"
	"github.com/cairn-os/cairn/pkg/machine/adminapi"
	"github.com/cairn-os/cairn/pkg/machine/clock"
	"github.com/cairn-os/cairn/pkg/machine/nodewatch"
	"github.com/cairn-os/cairn/pkg/machine/stamp"
	"github.com/cairn-os/cairn/pkg/membership"
	"github.com/cairn-os/cairn/pkg/status"
)

// Options configure a Machine. All but Kubeconfig, Membership and NTPServers are required.
type Options struct {
	Node string // name of the Kubernetes node
	// Kubeconfig is the path of the kubelet's. Empty: this machine is no Kubernetes node, as a witness is none.
	Kubeconfig string
	Membership string // path of what the machine knows of its cluster: see package membership
	Socket     string // path of the administration socket
	InitSocket string // path of init's control socket
	LogDir     string // of the supervised processes
	NTPServers []string
	KeepTime   bool   // false where the clock is another's: in container mode
	TimeStamp  string // path of the file that keeps the time for the next boot; needed with KeepTime
	Upgrades   Upgrades
	Log        *slog.Logger
}

// Machine is a running daemon.
type Machine struct {
	opt   Options
	init  initctl.Client
	clock *clock.Clock // nil without KeepTime
	boot  boot
	// synced is told by clock when the time becomes right.
	synced chan struct{}

	mu        sync.Mutex // guards all below
	node      status.Node
	readiness readiness
}

// New prepares the daemon.
func New(opt Options) (*Machine, error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, fmt.Errorf("read boot id: %w", err)
	}
	since, err := initStarted(time.Now())
	if err != nil {
		return nil, err
	}
	m := &Machine{
		opt: opt, init: initctl.Client{Path: opt.InitSocket},
		boot: boot{id: strings.TrimSpace(string(id)), shared: !opt.KeepTime, since: since},
		node: status.Node{Name: opt.Node, Reason: nodewatch.ReasonNoKubeconfig}, synced: make(chan struct{}, 1),
	}
	if opt.KeepTime {
		m.clock = clock.New(clock.Options{Servers: opt.NTPServers, Log: opt.Log, Synced: m.synced})
	}
	return m, nil
}

// Run serves until ctx ends. Readiness is notified once the administration socket answers.
func (m *Machine) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ln, err := adminapi.Listen(m.opt.Socket)
	if err != nil {
		return err
	}
	m.readiness = m.recall(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	if m.clock != nil {
		wg.Go(func() { m.clock.Run(ctx) })
		wg.Go(func() { stamp.Keep(ctx, m.opt.TimeStamp, stamp.Interval, m.synced, m.opt.Log) })
	}
	if m.opt.Kubeconfig != "" {
		wg.Go(func() {
			nodewatch.Watch(ctx, nodewatch.Options{
				Kubeconfig: m.opt.Kubeconfig, Node: m.opt.Node,
				Update: func(o nodewatch.Observation) { m.observe(ctx, o) },
			})
		})
	}
	api := &adminapi.Server{Init: m.init, Status: m.Status, LogDir: m.opt.LogDir, Log: m.opt.Log}
	manager, err := m.newUpgrades(ctx)
	if err != nil {
		m.opt.Log.Error("this machine cannot be upgraded", "error", err)
	}
	if manager != nil {
		api.Upgrades = manager
		wg.Go(func() { manager.Run(ctx, m.opt.Upgrades.Upgrade) })
	}
	if _, err := daemon.SdNotify(false, daemon.SdNotifyReady); err != nil {
		m.opt.Log.Warn("notify readiness", "error", err)
	}
	return api.Serve(ctx, ln)
}

// initStarted returns when PID 1 of this PID namespace was started, from field 22 of /proc/1/stat (proc_pid_stat(5)).
func initStarted(now time.Time) (time.Time, error) {
	stat, err := os.ReadFile("/proc/1/stat")
	if err != nil {
		return time.Time{}, fmt.Errorf("start of init: %w", err)
	}
	_, after, _ := strings.Cut(string(stat), ") ") // init's name holds no parenthesis
	fields := strings.Fields(after)                // from field 3 on
	if len(fields) < 20 {
		return time.Time{}, fmt.Errorf("start of init: /proc/1/stat has %d fields", len(fields)+2)
	}
	ticks, err := strconv.ParseInt(fields[19], 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("start of init: %w", err)
	}
	up, err := kernelUptime()
	if err != nil {
		return time.Time{}, fmt.Errorf("start of init: %w", err)
	}
	const tick = 10 * time.Millisecond // USER_HZ is 100 everywhere
	return now.Add(time.Duration(ticks)*tick - up), nil
}

func kernelUptime() (time.Duration, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0, fmt.Errorf("uptime: %w", err)
	}
	return time.Duration(ts.Nano()), nil
}

// readyMark is the name under which init keeps, for a restarted cairnd, when the node became Ready.
const readyMark = "node ready"

// recall returns what an earlier cairnd of this boot has announced.
func (m *Machine) recall(ctx context.Context) readiness {
	st, err := m.init.Status(ctx)
	if err != nil {
		return readiness{}
	}
	for _, mark := range st.Timeline {
		if mark.Name == readyMark {
			return readiness{ready: true, readyAt: mark.AtS}
		}
	}
	return readiness{}
}

// observe keeps what was seen of the node and announces changes.
func (m *Machine) observe(ctx context.Context, o nodewatch.Observation) {
	at := m.uptime(ctx)
	m.mu.Lock()
	next, node, line := m.readiness.observe(o, m.boot, at)
	first := next.readyAt != 0 && m.readiness.readyAt == 0
	m.readiness, m.node = next, node
	m.mu.Unlock()
	if line == "" {
		return
	}
	m.opt.Log.Info("node condition changed", "node", node.Name, "ready", node.Ready, "reason", node.Reason, "uptime", at)
	req := initctl.Request{Verb: initctl.VerbAnnounce, Text: plain(line)}
	if first {
		req.Mark = readyMark
	}
	if err := m.init.Do(ctx, req); err != nil {
		m.opt.Log.Warn("announce", "error", err)
	}
}

// plain makes text of the API server fit for a console line.
func plain(s string) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, s)
	const most = 400
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}

// uptime is the time since power-on: init's word, because in container mode the kernel's own counts another machine's;
// the kernel's where init does not answer.
func (m *Machine) uptime(ctx context.Context) status.Seconds {
	if st, err := m.init.Status(ctx); err == nil {
		return st.UptimeS
	}
	up, err := kernelUptime()
	if err != nil {
		m.opt.Log.Warn("uptime", "error", err)
	}
	return status.InSeconds(up)
}

// Status is init's status with what the daemon knows: node, clock, addresses, and the boot's timeline.
func (m *Machine) Status(ctx context.Context) (status.Status, error) {
	st, err := m.init.Status(ctx)
	if err != nil {
		return st, err
	}
	m.mu.Lock()
	node := m.node
	m.mu.Unlock()
	if m.opt.Kubeconfig != "" {
		st.Node = &node
	}
	if m.clock != nil {
		c := m.clock.Status()
		st.Clock = &c
	}
	addrs, addrErr := addresses(m.podNetworks())
	if addrErr != nil {
		m.opt.Log.Warn("list addresses", "error", addrErr)
	}
	st.Addresses = addrs
	st.Timeline = timeline(st)
	return st, nil
}

// timeline joins init's marks with the end of the boot phases, and with the readiness of processes of which init has no
// mark (init keeps the first, a process's status the last).
func timeline(st status.Status) []status.Mark {
	marks := slices.Clone(st.Timeline)
	add := func(name string, at status.Seconds) {
		if !slices.ContainsFunc(marks, func(m status.Mark) bool { return m.Name == name }) {
			marks = append(marks, status.Mark{Name: name, AtS: at})
		}
	}
	if n := len(st.Phases); n > 0 {
		last := st.Phases[n-1]
		add("phases done", last.StartS+last.DurationS)
	}
	for _, p := range st.Processes {
		if p.ReadyS > 0 {
			word := " ready"
			if p.State == "done" { // as init calls the end of a process that has one
				word = " done"
			}
			add(p.Name+word, p.ReadyS)
		}
	}
	slices.SortStableFunc(marks, func(a, b status.Mark) int {
		switch {
		case a.AtS < b.AtS:
			return -1
		case a.AtS > b.AtS:
			return 1
		}
		return 0
	})
	return marks
}

// podNetworks are where the cluster's pods get their addresses; until the machine belongs to one, where they would.
func (m *Machine) podNetworks() []netip.Prefix {
	own, err := membership.Load(m.opt.Membership)
	if err == nil {
		return own.Settings.PodCIDRs
	}
	if m.opt.Membership != "" && !errors.Is(err, fs.ErrNotExist) {
		m.opt.Log.Warn("membership", "error", err)
	}
	return membership.DefaultSettings().PodCIDRs
}

// addresses lists the machine's global addresses, without loopback. Those inside the pods' networks are the pods'
// bridges' and none of the machine.
func addresses(pods []netip.Prefix) ([]status.Address, error) {
	links, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	var out []status.Address
	var errs []error
	for _, l := range links {
		if l.Flags&net.FlagUp == 0 || l.Flags&net.FlagLoopback != 0 {
			continue
		}
		addrs, err := l.Addrs()
		errs = append(errs, err)
		for _, a := range addrs {
			p, err := netip.ParsePrefix(a.String())
			podsOwn := func(q netip.Prefix) bool { return q.Contains(p.Addr()) }
			if err == nil && p.Addr().IsGlobalUnicast() && !slices.ContainsFunc(pods, podsOwn) {
				out = append(out, status.Address{Link: l.Name, Prefix: p.String()})
			}
		}
	}
	return out, errors.Join(errs...)
}
