// Package bootdisk finds the disk that the machine was booted from.
package bootdisk

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/cairn-os/cairn/init/internal/guard"
	"github.com/cairn-os/cairn/pkg/blockdev"
	"github.com/cairn-os/cairn/pkg/uevent"
)

// Finder looks for the disk. The functions are those of the kernel on a node.
type Finder struct {
	Logf guard.Logf
	// Scan lists the block devices with their names and GUIDs.
	Scan func() ([]blockdev.Device, error)
	// Repair mends a torn partition table when the disk has one that lists the partition, and reports whether it did.
	Repair func(disk, partUUID string) (bool, error)
	// Changed is sent to when devices may have appeared.
	Changed <-chan struct{}
	// Remind is how often the console hears what is waited for, and how often sysfs is read without an event.
	Remind time.Duration
}

// Find waits until the disk with the partition appears, or ctx ends.
func (f *Finder) Find(ctx context.Context, partUUID string) (disk string, devices []blockdev.Device, err error) {
	tick := time.NewTicker(f.Remind)
	defer tick.Stop()
	repaired := map[string]bool{}
	for {
		devices, err = f.Scan()
		if err != nil {
			return "", nil, err
		}
		disk, err = blockdev.DiskOf(devices, partUUID)
		if !errors.Is(err, blockdev.ErrNotFound) {
			return disk, devices, err
		}
		select {
		case <-ctx.Done():
			return "", nil, fmt.Errorf("%w; disks seen: %s", err, names(devices))
		case <-f.Changed:
		case <-tick.C:
			f.Logf("waiting for the disk with partition %s; disks so far: %s", partUUID, names(devices))
			f.repair(devices, partUUID, repaired)
		}
	}
}

// repair mends disks that show no partitions: Linux ignores the backup of a table that a power cut tore.
func (f *Finder) repair(devices []blockdev.Device, partUUID string, tried map[string]bool) {
	for _, d := range devices {
		if d.Number != 0 || d.Virtual || d.Size == 0 || tried[d.Name] || hasPartitions(devices, d.Name) {
			continue
		}
		tried[d.Name] = true
		switch did, err := f.Repair(d.Name, partUUID); {
		case err != nil:
			f.Logf("%s has no partition table that can be used: %v", d.Path(), err)
		case did:
			f.Logf("%s had a torn partition table; it was restored from its backup", d.Path())
		}
	}
}

func hasPartitions(devices []blockdev.Device, disk string) bool {
	for _, d := range devices {
		if d.Disk == disk && d.Number != 0 {
			return true
		}
	}
	return false
}

func names(devices []blockdev.Device) string {
	var disks []string
	for _, d := range devices {
		if d.Number == 0 && !d.Virtual && d.Size > 0 {
			disks = append(disks, fmt.Sprintf("%s (%d MiB)", d.Path(), d.Size>>20))
		}
	}
	if len(disks) == 0 {
		return "none"
	}
	return strings.Join(disks, ", ")
}

// Find looks for the disk on this machine.
func Find(ctx context.Context, logf guard.Logf, partUUID string) (string, []blockdev.Device, error) {
	changed := make(chan struct{}, 1)
	listener, err := uevent.Listen() // before the first scan, so that nothing falls between
	if err != nil {
		logf("%v: looking for disks every second", err)
	} else {
		listening, stop := context.WithCancel(ctx)
		notify := func() {
			select {
			case changed <- struct{}{}:
			default:
			}
		}
		done := guard.Go(logf, "device events", func() error {
			err := listener.Run(listening, func(e uevent.Event) {
				if e.Subsystem() == "block" {
					notify()
				}
			}, func(error) { notify() })
			if listening.Err() != nil {
				return nil
			}
			return err
		})
		defer func() { stop(); <-done }()
	}
	f := Finder{Logf: logf, Scan: blockdev.List, Repair: blockdev.RepairDisk, Changed: changed, Remind: time.Second}
	return f.Find(ctx, partUUID)
}
