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
	"github.com/cairn-os/cairn/init/internal/entry"
	"github.com/cairn-os/cairn/pkg/blockdev"
	"github.com/cairn-os/cairn/pkg/cmdline"
	"github.com/cairn-os/cairn/pkg/kmsg"
	"github.com/cairn-os/cairn/pkg/mount"
	"github.com/cairn-os/cairn/pkg/sequence"
	"github.com/cairn-os/cairn/pkg/verity"
	"golang.org/x/sys/unix"
)

// Init is the system stage's program, on the root that was opened.
const Init = "/usr/sbin/init"

const (
	newRoot     = "/root-new"
	verityName  = "cairn-root"
	diskTimeout = 60 * time.Second // slow USB bridges take up to 30 s
	readTimeout = 3 * time.Minute  // the kernel itself tries a command of a failing disk for minutes
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
	root   blockdev.Device
	device string // of the opened root
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

// Run goes through the phases and executes the system stage. It returns only with an error.
func Run(ctx context.Context, logger *log.Logger, line cmdline.Line) error {
	s := &stage{log: logger}
	runner := sequence.Runner{Logf: logger.Printf, Since: bootlog.SincePowerOn}
	phases, err := runner.Run(ctx, s.phases(line))
	if err != nil {
		return err
	}
	if err := bootlog.Save("/", phases); err != nil {
		logger.Print(err)
	}
	err = mount.SwitchRoot(newRoot, Init)
	return &sequence.Error{Phase: "switch", Number: len(phases) + 1, Total: len(phases) + 1, Err: err}
}

func (s *stage) phases(line cmdline.Line) []sequence.Phase {
	return []sequence.Phase{
		{Name: "boot entry", Run: func(context.Context) (err error) {
			s.entry, err = entry.Parse(line)
			return err
		}},
		{Name: "boot disk", Run: s.findDisk, Timeout: diskTimeout + 5*time.Second},
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
	s.root, err = blockdev.ByName(devices, disk, s.entry.RootName())
	return err
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
