// Package early is init's first stage: in the memory of the initramfs it finds the disk it was loaded from, opens the
// slot's root file system through dm-verity and makes it the root.
package early

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"time"

	"github.com/cairn-os/cairn/init/internal/bootdisk"
	"github.com/cairn-os/cairn/init/internal/bootlog"
	"github.com/cairn-os/cairn/init/internal/emergency"
	"github.com/cairn-os/cairn/init/internal/entry"
	"github.com/cairn-os/cairn/init/internal/feeder"
	"github.com/cairn-os/cairn/init/internal/trial"
	"github.com/cairn-os/cairn/pkg/blockdev"
	"github.com/cairn-os/cairn/pkg/bootloader"
	"github.com/cairn-os/cairn/pkg/cmdline"
	"github.com/cairn-os/cairn/pkg/kmsg"
	"github.com/cairn-os/cairn/pkg/mount"
	"github.com/cairn-os/cairn/pkg/partition"
	"github.com/cairn-os/cairn/pkg/sequence"
	"github.com/cairn-os/cairn/pkg/slot"
	"github.com/cairn-os/cairn/pkg/verity"
	"golang.org/x/sys/unix"
)

// Init is the system stage's program, on the root that was opened.
const Init = "/usr/sbin/init"

const (
	newRoot      = "/root-new"
	systemMount  = "/sys-boot" // where CAIRN_SYS is, for moments
	verityName   = "cairn-root"
	diskTimeout  = 60 * time.Second // slow USB bridges take up to 30 s
	trialTimeout = 45 * time.Second // a look and a write of package trial
	readTimeout  = 3 * time.Minute  // the kernel itself tries a command of a failing disk for minutes
)

// Mounts are the file systems that this stage needs; they move on to the next one.
func Mounts() []mount.Mount {
	const safe = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	return []mount.Mount{
		{Source: "devtmpfs", Target: "/dev", Type: "devtmpfs", Flags: unix.MS_NOSUID, Data: "mode=0755"},
		{Source: "proc", Target: "/proc", Type: "proc", Flags: safe},
		{Source: "sysfs", Target: "/sys", Type: "sysfs", Flags: safe},
		{Source: "tmpfs", Target: "/run", Type: "tmpfs", Flags: unix.MS_NOSUID | unix.MS_NODEV, Data: "mode=0755"},
	}
}

// stage is what the phases hand on to each other.
type stage struct {
	log    *log.Logger
	entry  entry.Entry
	system blockdev.Device // CAIRN_SYS; no name when the disk has none
	root   blockdev.Device
	device string       // of the opened root
	trial  *trial.Trial // nil when the slot is not on trial, or when that cannot be read
}

// Prepare mounts the kernel's file systems and directs the log to the kernel. It comes before anything that could say
// what went wrong.
func Prepare() (*log.Logger, cmdline.Line, error) {
	if err := mount.ApplyAll("/", Mounts()); err != nil {
		return bootlog.ToKernel(), cmdline.Line{}, err
	}
	err := kmsg.Unlimit("/proc")
	logger := bootlog.ToKernel()
	if err != nil {
		logger.Print(err)
	}
	line, err := cmdline.Read(cmdline.Path)
	return logger, line, err
}

// Run goes through the phases and executes the system stage, to which it hands on the watchdog. It returns only with an
// error, which a trial boot has written to its report.
func Run(ctx context.Context, logger *log.Logger, line cmdline.Line, dog *feeder.Feeder) error {
	s := &stage{log: logger}
	runner := sequence.Runner{Logf: logger.Printf, Since: bootlog.SincePowerOn}
	phases, err := runner.Run(ctx, s.phases(line))
	if err != nil {
		return s.failed(err)
	}
	if err := bootlog.Save("/", phases); err != nil {
		logger.Print(err)
	}
	if err := dog.HandOn(); err != nil {
		logger.Print(err)
	}
	err = mount.SwitchRoot(newRoot, Init)
	dog.Resume()
	return s.failed(&sequence.Error{Phase: "switch", Number: len(phases) + 1, Total: len(phases) + 1, Err: err})
}

// failed has the report say why this boot ends.
func (s *stage) failed(err error) error {
	if s.trial == nil {
		return err
	}
	s.trial.Failed("", err)
	return emergency.OnTrial{Err: err, TriesLeft: s.trial.TriesLeft()}
}

func (s *stage) phases(line cmdline.Line) []sequence.Phase {
	return []sequence.Phase{
		{Name: "boot entry", Run: func(context.Context) (err error) {
			s.entry, err = entry.Parse(line)
			return err
		}},
		{Name: "boot disk", Run: s.findDisk, Timeout: diskTimeout + 5*time.Second},
		{Name: "trial", Run: s.beginTrial, Timeout: trialTimeout, Policy: sequence.Report},
		{Name: "verity", Run: s.openRoot, Timeout: readTimeout},
		{Name: "root", Run: s.mountRoot, Timeout: readTimeout},
	}
}

func (s *stage) findDisk(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, diskTimeout)
	defer cancel()
	disk, devices, err := bootdisk.Find(ctx, s.log.Printf, s.entry.BootPart)
	if err != nil {
		return err
	}
	if s.system, err = blockdev.ByName(devices, disk, partition.System); err != nil {
		s.log.Print(err)
	}
	s.root, err = blockdev.ByName(devices, disk, s.entry.RootName())
	return err
}

// beginTrial finds out whether the slot is on trial, and if so reports that its init runs.
func (s *stage) beginTrial(context.Context) error {
	if s.system.Name == "" {
		return errors.New("no boot selector's partition: whether this boot is a trial stays unknown")
	}
	return s.begin(onDisk(mount.Mount{Source: s.system.Path(), Target: systemMount, Type: "vfat",
		Flags: unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, Data: "umask=0077"}))
}

func (s *stage) begin(open trial.Open) error {
	t, state, err := trial.Begin(open, slot.Slot(s.entry.Slot), s.log.Printf)
	if err != nil {
		return err
	}
	if t != nil {
		s.log.Printf("this boot is a trial: %s", state)
		t.Reached(slot.StageEarly)
	}
	s.trial = t
	return nil
}

// onDisk has CAIRN_SYS mounted for each use only, and read-only but for the moment of a write: nothing of this stage's
// root may stay mounted when the next one gets its own.
func onDisk(m mount.Mount) trial.Open {
	return func(use func(bootloader.Backend) error) error {
		if err := m.Apply("/"); err != nil {
			return err
		}
		err := trial.At(m.Target)(use)
		if umountErr := unix.Unmount(m.Target, 0); umountErr != nil {
			err = errors.Join(err, fmt.Errorf("unmount %s: %w", m.Target, umountErr))
		}
		return err
	}
}

func (s *stage) openRoot(context.Context) error {
	device, err := verity.Open(verityName, s.root.Path(), s.entry.Root)
	if err != nil {
		return fmt.Errorf("%s (%s): %w", s.entry.RootName(), s.root.Path(), err)
	}
	s.device = device
	return nil
}

func (s *stage) mountRoot(context.Context) error {
	m := mount.Mount{Source: s.device, Target: newRoot, Type: "erofs", Flags: unix.MS_RDONLY | unix.MS_NODEV}
	if err := m.Apply("/"); err != nil {
		if errors.Is(err, unix.EIO) || errors.Is(err, unix.EUCLEAN) || errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("%w: %w", verity.ErrCorrupt, err)
		}
		return err
	}
	f, err := os.Open(newRoot + Init)
	if err != nil {
		return fmt.Errorf("the root has no system: %w", err)
	}
	return f.Close()
}
