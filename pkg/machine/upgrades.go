package machine

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"runtime"
	"slices"
	"time"

	"github.com/cairn-os/cairn/pkg/blockdev"
	"github.com/cairn-os/cairn/pkg/bootloader"
	"github.com/cairn-os/cairn/pkg/bootloader/grubenv"
	"github.com/cairn-os/cairn/pkg/bootloader/sysfile"
	"github.com/cairn-os/cairn/pkg/cgroup"
	"github.com/cairn-os/cairn/pkg/cmdline"
	"github.com/cairn-os/cairn/pkg/config"
	"github.com/cairn-os/cairn/pkg/crashlog"
	"github.com/cairn-os/cairn/pkg/health"
	"github.com/cairn-os/cairn/pkg/initctl"
	"github.com/cairn-os/cairn/pkg/machine/nodewatch"
	"github.com/cairn-os/cairn/pkg/machine/upgrade"
	"github.com/cairn-os/cairn/pkg/partition"
	"github.com/cairn-os/cairn/pkg/release"
	"github.com/cairn-os/cairn/pkg/slot"
	"github.com/cairn-os/cairn/pkg/store/admin"
	"github.com/cairn-os/cairn/pkg/update"
	"github.com/cairn-os/cairn/pkg/update/history"
	"github.com/cairn-os/cairn/pkg/update/source"
	"github.com/cairn-os/cairn/pkg/update/trust"
)

const (
	upgradeDir = "/var/lib/cairn/upgrade"
	ownServer  = "https://127.0.0.1:6443"
)

// Upgrades configure the machine's upgrades.
type Upgrades struct {
	Upgrade config.Upgrade
	Health  config.Health
	// Server: this machine runs a control plane and a store. Witness: a store, and no node.
	Server, Witness bool
}

// newUpgrades prepares the upgrades of a machine with slots; nil on one without, in container mode.
func (m *Machine) newUpgrades(ctx context.Context) (*upgrade.Manager, error) {
	st, err := m.init.Status(ctx)
	if err != nil {
		return nil, fmt.Errorf("upgrades: %w", err)
	}
	if st.Slot.Name == "" {
		return nil, nil
	}
	info, err := release.Load(release.Path)
	if err != nil {
		return nil, fmt.Errorf("upgrades: %w", err)
	}
	kept, err := history.Open(upgradeDir, m.opt.Log)
	if err != nil {
		return nil, fmt.Errorf("upgrades: %w", err)
	}
	u := &upgrades{
		Machine: m, history: kept,
		running: update.Running{Info: info, Target: runtime.GOARCH, Slot: slot.Slot(st.Slot.Name)},
		backend: grubenv.New(sysfile.Dir{Path: sysfile.Mount, Writable: bootloader.Remount(sysfile.Mount)}),
	}
	return upgrade.New(upgrade.Options{
		Running: u.running, Backend: u.backend, History: kept, Engine: u.engine, Judge: u.judge, Deadline: u.deadline,
		Confirmed: func(ctx context.Context) error { return m.init.Do(ctx, initctl.Request{Verb: initctl.VerbConfirm}) },
		Reboot:    u.reboot,
		Announce: func(ctx context.Context, line string) {
			if err := m.init.Do(ctx, initctl.Request{Verb: initctl.VerbAnnounce, Text: plain(line)}); err != nil {
				m.opt.Log.Warn("announce", "line", line, "error", err)
			}
		},
		Panic: u.panic, Watchdog: u.watchdog, Log: m.opt.Log, Now: time.Now,
	}), nil
}

// upgrades are the machine's parts that package upgrade works with.
type upgrades struct {
	*Machine
	history *history.Store
	running update.Running
	backend bootloader.Backend
}

func (u *upgrades) reboot(ctx context.Context) error {
	return u.init.Do(ctx, initctl.Request{Verb: initctl.VerbReboot})
}

// engine opens a release directory. The trust in it does not depend on where it is. Without one the engine can only do
// what needs none: go back, and cancel.
func (u *upgrades) engine(from string, progress func(update.Progress)) (upgrade.Engine, func(), error) {
	settings := u.opt.Upgrades.Upgrade
	o := update.Options{
		Trust: nowhere{}, Chunks: nowhere{}, Slots: update.Partitions(u.device), Bootloader: u.backend, History: u.history, Running: u.running,
		Callbacks: update.Callbacks{Snapshot: u.snapshot, Reboot: u.reboot}, Progress: progress, Log: u.opt.Log, Now: time.Now,
	}
	if from == "" {
		from = settings.Source
	}
	if from == "" {
		return update.New(o), func() {}, nil
	}
	src, err := source.Open(source.Options{URL: from, Rate: settings.RateLimit(), Log: u.opt.Log})
	if err != nil {
		return nil, nil, err
	}
	client, err := trust.Open(trust.Options{Dir: upgradeDir, Source: src, Built: time.Unix(u.running.BuildTime, 0), Clock: u.clockState, Log: u.opt.Log})
	if err != nil {
		src.Close()
		return nil, nil, err
	}
	o.Trust = update.Signed{Client: client, Kind: u.running.Target, Line: settings.EffectiveChannel()}
	o.Chunks = update.Files{Source: src}
	return update.New(o), src.Close, nil
}

// nowhere is the release directory of a machine that is told of none.
type nowhere struct{}

var errNowhere = errors.New("no release directory is configured: set cairn.upgrade.source, or name one with --source")

func (nowhere) Channel(context.Context) (release.Channel, error) {
	return release.Channel{}, errNowhere
}

func (nowhere) Manifest(context.Context, string) (release.Manifest, error) {
	return release.Manifest{}, errNowhere
}

func (nowhere) Target(context.Context, string, int64) ([]byte, error) { return nil, errNowhere }

func (nowhere) Get(context.Context, string, int64) ([]byte, error) { return nil, errNowhere }

// clockState is the time, and whether a server keeps it.
func (u *upgrades) clockState() (time.Time, bool) {
	return time.Now(), u.clock != nil && u.clock.Status().Synchronized
}

// device finds a slot's partition on the disk that the machine was booted from.
func (u *upgrades) device(s slot.Slot, image string) (string, error) {
	names := map[string]map[slot.Slot]string{
		release.BootImage: {slot.A: partition.BootA, slot.B: partition.BootB},
		release.RootImage: {slot.A: partition.RootA, slot.B: partition.RootB},
	}
	name, ok := names[image][s]
	if !ok {
		return "", fmt.Errorf("slot %q has no partition for the image %q", s, image)
	}
	line, err := cmdline.Read(cmdline.Path)
	if err != nil {
		return "", err
	}
	uuid, ok := line.Get("cairn.bootpart")
	if !ok {
		return "", errors.New("cairn.bootpart is missing on the kernel command line")
	}
	devices, err := blockdev.List()
	if err != nil {
		return "", err
	}
	disk, err := blockdev.DiskOf(devices, uuid)
	if err != nil {
		return "", err
	}
	d, err := blockdev.ByName(devices, disk, name)
	return d.Path(), err
}

// deadline is what is left until init goes back.
func (u *upgrades) deadline(ctx context.Context) (time.Duration, error) {
	st, err := u.init.Status(ctx)
	if err != nil {
		return 0, err
	}
	if st.Trial == nil { // init could not tell; the configured one counts from now
		return u.opt.Upgrades.Health.Deadline(), nil
	}
	return (st.Trial.DeadlineS - st.UptimeS).Duration(), nil
}

// panic is the newest crash of a kernel since a moment, in one line.
func (u *upgrades) panic(since time.Time) string {
	all, err := crashlog.List(crashlog.Kept)
	if err != nil {
		u.opt.Log.Warn("crash records not read", "error", err)
	}
	for _, e := range slices.Backward(all) {
		if e.Kind == crashlog.Panic && !e.Moved.Before(since) {
			return e.Line
		}
	}
	return ""
}

func (u *upgrades) watchdog(ctx context.Context) bool {
	st, err := u.init.Status(ctx)
	return err == nil && st.Watchdog != nil && st.Watchdog.CausedReset
}

// snapshot keeps the store's state before an upgrade, on servers.
func (u *upgrades) snapshot(ctx context.Context) (string, error) {
	if !u.opt.Upgrades.Server {
		return "", nil
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	c := admin.Open(admin.Socket)
	defer c.Close()
	s, err := c.Take(ctx)
	return s.Name, err
}

// judge looks at what this machine is.
func (u *upgrades) judge(_ context.Context, progress func(health.Progress)) (upgrade.Judge, error) {
	o := health.Options{Health: u.opt.Upgrades.Health, NodeName: u.opt.Node, Progress: progress, Uptime: func() time.Duration {
		return u.uptime(context.Background()).Duration()
	}}
	access := func(server string) health.Access {
		return func(context.Context) (*http.Client, *url.URL, error) {
			return nodewatch.Access(u.opt.Kubeconfig, server)
		}
	}
	if u.opt.Kubeconfig != "" {
		o.Node = u.nodeSeen
		o.API = access("")
		o.Containers = func() (map[string]bool, error) { return health.Containers(cgroup.Root) }
	}
	if u.opt.Upgrades.Server {
		o.ControlPlane = access(ownServer)
	}
	if u.opt.Upgrades.Server || u.opt.Upgrades.Witness {
		o.Store = storeHealth
	}
	return health.New(o)
}

func (u *upgrades) nodeSeen() health.Node {
	u.mu.Lock()
	defer u.mu.Unlock()
	return health.Node{Node: u.node, Seen: u.node.Reason != nodewatch.ReasonUnreachable && u.node.Reason != nodewatch.ReasonNoKubeconfig}
}

// storeHealth asks the store of this machine.
func storeHealth(ctx context.Context) (health.Store, error) {
	c := admin.Open(admin.Socket)
	defer c.Close()
	st, err := c.Status(ctx)
	if err != nil {
		return health.Store{}, err
	}
	s := health.Store{Leader: st.Leader != 0, Quorum: st.Quorum, Index: uint64(max(st.Revision, 0)), Message: st.Message}
	for _, member := range st.Members {
		if member.Role == "voter" {
			s.Voters++
			if member.Online {
				s.Online++
			}
		}
	}
	return s, nil
}
