package system

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/cairn-os/cairn/init/internal/bootdisk"
	"github.com/cairn-os/cairn/init/internal/entry"
	"github.com/cairn-os/cairn/init/internal/trial"
	"github.com/cairn-os/cairn/pkg/blockdev"
	"github.com/cairn-os/cairn/pkg/bootloader/sysfile"
	"github.com/cairn-os/cairn/pkg/mount"
	"github.com/cairn-os/cairn/pkg/partition"
	"github.com/cairn-os/cairn/pkg/reaper"
	"github.com/cairn-os/cairn/pkg/slot"
	"github.com/cairn-os/cairn/pkg/status"
	"golang.org/x/sys/unix"
)

// findBootDisk finds the disk that early init booted from once more, its data partition and the selector's partition.
func (m *machine) findBootDisk(ctx context.Context) error {
	e, err := entry.Parse(m.opt.Line)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	disk, devices, err := bootdisk.Find(ctx, m.log.Printf, e.BootPart)
	if err != nil {
		return err
	}
	m.disk = disk
	if m.data, err = blockdev.ByName(devices, disk, partition.Data); err != nil {
		return err
	}
	m.mu.Lock()
	m.slot = status.Slot{Name: e.Slot, State: status.SlotUnknown}
	m.mu.Unlock()
	system, err := blockdev.ByName(devices, disk, partition.System)
	if err != nil {
		return err
	}
	err = mount.Mount{Source: system.Path(), Target: sysfile.Mount, Type: "vfat", Flags: unix.MS_RDONLY | noSuid | noDev | noExec,
		Data: "umask=0077"}.Apply("/")
	if err != nil {
		// Without it there is no seed configuration and no slot state; with its last good configuration the machine works.
		m.log.Printf("the boot selector's partition cannot be read: %v", err)
		m.seedErr = err
		return nil
	}
	m.beginTrial(trial.At(sysfile.Mount), slot.Slot(e.Slot))
	return nil
}

// mountData grows the data partition to the disk's end, checks its file system, mounts it and grows that as well. Each
// step may have been done, or cut off, at an earlier boot. It never makes a file system: see package partition.
func (m *machine) mountData(ctx context.Context) error {
	if grown, err := blockdev.GrowDevice(m.data); err != nil {
		m.log.Printf("%v; going on with the size it has", err)
	} else if grown {
		m.log.Printf("%s was grown to the end of /dev/%s", partition.Data, m.disk)
	}
	content, err := probe(m.data.Path())
	if err != nil {
		return err
	}
	if content != blockdev.Ext4 {
		return fmt.Errorf("%s (%s) holds no ext4 file system: %s", partition.Data, m.data.Path(), content)
	}
	if err := m.check(ctx); err != nil {
		return err
	}
	// commit: metadata is written every 15 s in place of 5, which spares flash; the store syncs what it must not lose.
	err = mount.Mount{Source: m.data.Path(), Target: "/var", Type: "ext4", Flags: noSuid | noDev | unix.MS_NOATIME,
		Data: "errors=remount-ro,commit=15"}.Apply("/")
	if err != nil {
		return err
	}
	if err := m.growFileSystem(ctx); err != nil {
		m.log.Printf("%s keeps the size it has: %v", partition.Data, err)
	}
	return nil
}

func probe(path string) (blockdev.Content, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	return blockdev.Probe(f)
}

// check repairs what is safe to repair. Where that is not enough it repairs everything: nobody is there to answer
// e2fsck's questions, and a shop is better off with a file in lost+found than without a machine.
func (m *machine) check(ctx context.Context) error {
	err := m.run(ctx, "/usr/sbin/e2fsck", "-p", m.data.Path())
	var failed *reaper.ExitError
	if !errors.As(err, &failed) {
		return err
	}
	switch verdict := fsckVerdict(failed.Exit); verdict {
	case fsckFixed:
		m.log.Printf("the data partition was repaired: %v", err)
		return nil
	case fsckUnfixed:
		m.log.Printf("the data partition is damaged; repairing all of it: %v", err)
		err := m.run(ctx, "/usr/sbin/e2fsck", "-y", m.data.Path())
		if errors.As(err, &failed) && fsckVerdict(failed.Exit) == fsckFixed {
			m.log.Printf("the data partition was repaired; look for lost files in /var/lost+found: %v", err)
			return nil
		}
		return err
	}
	return err
}

type verdict int

const (
	fsckFailed verdict = iota
	fsckFixed
	fsckUnfixed
)

// fsckVerdict reads the exit code of e2fsck(8), which is a sum of flags.
func fsckVerdict(e reaper.Exit) verdict {
	switch {
	case e.Signal != 0, e.Code&^7 != 0: // killed, or an operational error, usage, cancelled, library
		return fsckFailed
	case e.Code&4 != 0:
		return fsckUnfixed
	}
	return fsckFixed // 1: corrected; 2: and reboot, which matters only for a mounted root
}

// growFileSystem grows the mounted file system when its partition is larger by a megabyte or more.
func (m *machine) growFileSystem(ctx context.Context) error {
	f, err := os.Open(m.data.Path())
	if err != nil {
		return err
	}
	defer f.Close()
	have, err := blockdev.Ext4Size(f)
	if err != nil {
		return err
	}
	room, err := f.Seek(0, 2)
	if err != nil {
		return err
	}
	if room-have < partition.MiB {
		return nil
	}
	return m.run(ctx, "/usr/sbin/resize2fs", m.data.Path())
}
