package system

import (
	"context"
	"errors"
	"time"

	"github.com/cairn-os/cairn/init/internal/feeder"
	"github.com/cairn-os/cairn/init/internal/guard"
	"github.com/cairn-os/cairn/pkg/kmsg"
	"github.com/cairn-os/cairn/pkg/mount"
	"github.com/cairn-os/cairn/pkg/power"
	"github.com/cairn-os/cairn/pkg/provision"
	"github.com/cairn-os/cairn/pkg/release"
	"github.com/cairn-os/cairn/pkg/reset"
	"github.com/cairn-os/cairn/pkg/sequence"
	"github.com/cairn-os/cairn/pkg/sysctl"
)

const (
	// commandTimeout bounds run_cmd as a whole: a command that hangs must not keep a shop closed.
	commandTimeout = 10 * time.Minute
	networkTimeout = 30 * time.Second
	// checkTimeout is for e2fsck on the largest and slowest disk that makes sense.
	checkTimeout = 4 * time.Hour
	// resetTimeout is for removing the images and volumes of a large disk that is slow.
	resetTimeout = time.Hour
)

// bootPhases is the boot, in order. Stop phases end on the emergency screen; the others are reported and passed over.
// Each has a limit, generous for slow cards: the watchdog is fed meanwhile, so that a driver or a disk that hangs would
// otherwise hold the machine for ever.
func (m *machine) bootPhases() []sequence.Phase {
	hardware := func() bool { return !m.opt.Container }
	return []sequence.Phase{
		{Name: "file systems", Run: m.mountPseudo, Timeout: time.Minute, RunWhen: hardware},
		{Name: "console", Run: m.setUpConsole, Timeout: 30 * time.Second, Policy: sequence.Report, RunWhen: hardware},
		{Name: "release", Run: m.loadRelease, Timeout: 30 * time.Second, Policy: sequence.Report},
		{Name: "watchdog", Run: m.armWatchdog, Timeout: 30 * time.Second, Policy: sequence.Report, RunWhen: hardware},
		{Name: "hotplug", Run: m.hotplug, Timeout: 2 * time.Minute, Policy: sequence.Report, RunWhen: hardware},
		{Name: "boot disk", Run: m.findBootDisk, Timeout: time.Minute, RunWhen: hardware},
		{Name: "data", Run: m.mountData, Timeout: checkTimeout, RunWhen: hardware},
		{Name: "reset", Run: m.reset, Timeout: resetTimeout},
		{Name: "clock", Run: m.setClock, Timeout: 30 * time.Second, Policy: sequence.Report, RunWhen: hardware},
		{Name: "directories", Run: m.makeDirectories, Timeout: time.Minute},
		{Name: "crash logs", Run: m.keepCrashLogs, Timeout: time.Minute, Policy: sequence.Report, RunWhen: hardware},
		{Name: "etc", Run: m.mountEtc, Timeout: 30 * time.Second, RunWhen: hardware},
		{Name: "config", Run: m.loadConfig, Timeout: time.Minute},
		{Name: "modules", Run: m.loadModules, Timeout: 2 * time.Minute, Policy: sequence.Report, RunWhen: hardware},
		{Name: "hostname", Run: m.setHostname, Timeout: time.Minute, Policy: sequence.Report},
		{Name: "sysctls", Run: m.setSysctls, Timeout: time.Minute, Policy: sequence.Report},
		{Name: "files", Run: m.writeFiles, Timeout: 2 * time.Minute, Policy: sequence.Report},
		{Name: "ssh keys", Run: m.setUpSSH, Timeout: 2 * time.Minute, Policy: sequence.Report},
		{Name: "network", Run: m.startNetwork, Timeout: networkTimeout + 30*time.Second, Policy: sequence.Report},
		{Name: "commands", Run: m.runCommands, Policy: sequence.Report, Timeout: commandTimeout},
		{Name: "services", Run: m.startServices, Timeout: time.Minute},
	}
}

func (m *machine) mountPseudo(context.Context) error { return mount.ApplyAll("/", pseudoFileSystems()) }

func (m *machine) setUpConsole(context.Context) error {
	return errors.Join(kmsg.Unlimit("/proc"), power.CtrlAltDelAsSignal())
}

// loadRelease reads what was booted, and moves the clock forward to when it was built: what runs before the data
// partition can tell more should not write 1970 into it.
func (m *machine) loadRelease(context.Context) error {
	info, err := release.Load(release.Path)
	if err != nil {
		return err
	}
	m.release = info
	return m.advanceClock(floor{time.Unix(info.BuildTime, 0), "this release was built"})
}

// reset does what `cairnctl reset` asked for. A request that cannot be read is told of and leaves the machine as it is;
// a reset that cannot be ended stops the boot, for half a machine must not join anything.
func (m *machine) reset(context.Context) error {
	err := reset.Run("/", m.log.Printf)
	if errors.Is(err, reset.ErrMarker) {
		m.log.Printf("%v; nothing is removed", err)
		return nil
	}
	return err
}

// armWatchdog says what became of the watchdog that the early stage armed, and tries once more when there was none: its
// driver may have been slow. From here to the supervisor only a stuck kernel or PID 1 stops the feeding; after that the
// supervisor must be alive, too.
func (m *machine) armWatchdog(context.Context) error {
	found, err := m.opt.Watchdog.Arm()
	switch {
	case err != nil:
		return err
	case !found:
		m.log.Print("no hardware watchdog: a hang will need a person")
	default:
		m.log.Printf("%v is fed", m.opt.Watchdog)
	}
	return nil
}

func (m *machine) alive() error {
	m.mu.Lock()
	s := m.supervisor
	m.mu.Unlock()
	if s != nil && !s.Healthy(feeder.Timeout/2) {
		return errors.New("the supervisor is stuck")
	}
	return nil
}

func (m *machine) loadModules(context.Context) error {
	if m.modules == nil && len(m.config.Cairn.Modules) > 0 {
		return errors.New("cairn.modules: this release has no kernel modules")
	}
	var errs []error
	for _, spec := range m.config.Cairn.Modules {
		errs = append(errs, m.modules.Load(spec))
	}
	return errors.Join(errs...)
}

// setSysctls applies the defaults, then the owner's. In a container many are not ours to set, which is said and no
// failure.
func (m *machine) setSysctls(context.Context) error {
	if !m.opt.Container {
		if err := setFileLimits(softFiles, hardFiles); err != nil {
			m.log.Print(err)
		}
	}
	settings := sysctl.Defaults()
	for key, value := range m.config.Cairn.Sysctls {
		settings = append(settings, sysctl.Setting{Key: key, Value: value})
	}
	err := sysctl.SetAll("/proc/sys", settings)
	if err != nil && m.opt.Container {
		m.log.Print("some kernel parameters are the host's and stay as they are")
		return nil
	}
	return err
}

func (m *machine) writeFiles(context.Context) error {
	return errors.Join(
		provision.Environment("/", m.config.Cairn.Environment),
		provision.WriteFiles("/", m.config.WriteFiles),
	)
}

func (m *machine) runCommands(ctx context.Context) error {
	run := func(ctx context.Context, argv []string) error { return m.run(ctx, argv...) }
	return provision.RunCommands(ctx, run, m.config.RunCmd)
}

// background runs fn for as long as it likes; a bug in it is logged and ends nothing else.
func (m *machine) background(name string, fn func() error) <-chan struct{} {
	return guard.Go(m.log.Printf, name, fn)
}
