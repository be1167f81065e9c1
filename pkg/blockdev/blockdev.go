// Package blockdev finds disks and partitions, and grows a GPT to its disk.
//
// What exists is read from sysfs. Names and GUIDs of partitions come from the kernel (PARTNAME, and PARTUUID from
// Linux 6.9 on) or, where it does not tell, from the disk's GPT.
package blockdev

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Device is a disk or a partition.
type Device struct {
	Name     string // "vda", "mmcblk0p6"
	Disk     string // name of the disk that holds it; its own for a disk
	Number   int    // of the partition; 0 for a disk
	PartName string // the GPT's name, or empty
	PartUUID string // lower case, or empty
	Start    int64  // of the partition on its disk, in bytes
	Size     int64  // in bytes
	Virtual  bool   // has no hardware: loop, dm, ram, zram
}

// Path is the device's file.
func (d Device) Path() string { return "/dev/" + d.Name }

// ErrNotFound says that no device matched; more may appear.
var ErrNotFound = errors.New("not found")

// sectorSize is the unit of sysfs, whatever the disk's own.
const sectorSize = 512

// Scan lists the machine's block devices; sysRoot is "/sys" on a node. The disks come before their partitions.
func Scan(sysRoot string) ([]Device, error) {
	class := filepath.Join(sysRoot, "class/block")
	entries, err := os.ReadDir(class)
	if err != nil {
		return nil, fmt.Errorf("list block devices: %w", err)
	}
	var all []Device
	for _, e := range entries {
		d, err := readDevice(filepath.Join(class, e.Name()))
		if errors.Is(err, os.ErrNotExist) {
			continue // unplugged meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("list block devices: %w", err)
		}
		all = append(all, d)
	}
	slices.SortFunc(all, func(a, b Device) int {
		if c := strings.Compare(a.Disk, b.Disk); c != 0 {
			return c
		}
		return a.Number - b.Number
	})
	return all, nil
}

// readDevice reads one directory of /sys/class/block, which is a link into the tree of devices.
func readDevice(dir string) (Device, error) {
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return Device{}, err
	}
	env, err := readEnv(filepath.Join(real, "uevent"))
	if err != nil {
		return Device{}, err
	}
	// Names with a slash ("cciss/c0d0") have a "!" in sysfs.
	d := Device{Name: strings.ReplaceAll(filepath.Base(real), "!", "/"), Virtual: strings.Contains(real, "/devices/virtual/")}
	d.Disk = d.Name
	if sectors, err := readInt(filepath.Join(real, "size")); err == nil {
		d.Size = sectors * sectorSize
	}
	if env["DEVTYPE"] != "partition" {
		return d, nil
	}
	d.Disk = strings.ReplaceAll(filepath.Base(filepath.Dir(real)), "!", "/")
	d.PartName, d.PartUUID = env["PARTNAME"], strings.ToLower(env["PARTUUID"])
	if n, err := strconv.Atoi(env["PARTN"]); err == nil {
		d.Number = n
	}
	if sectors, err := readInt(filepath.Join(real, "start")); err == nil {
		d.Start = sectors * sectorSize
	}
	return d, nil
}

func readEnv(path string) (map[string]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	env := map[string]string{}
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if key, value, ok := strings.Cut(lines.Text(), "="); ok {
			env[key] = value
		}
	}
	return env, lines.Err()
}

func readInt(path string) (int64, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64)
}

// List lists this machine's devices, with what the kernel does not tell read from the disks.
func List() ([]Device, error) {
	all, err := Scan("/sys")
	if err != nil {
		return nil, err
	}
	return Complete(all, ReadDisk), nil
}

// Complete fills in names and GUIDs that the kernel did not tell, from the GPT that read returns for a disk. Disks
// whose table cannot be read are left as they are.
func Complete(all []Device, read func(disk string) (*Table, error)) []Device {
	all = slices.Clone(all)
	tables := map[string]*Table{}
	for i := range all {
		d := &all[i]
		if d.Number == 0 || d.PartUUID != "" {
			continue
		}
		t, known := tables[d.Disk]
		if !known {
			t, _ = read(d.Disk) // nil: no GPT, or none that can be read
			tables[d.Disk] = t
		}
		if t == nil {
			continue
		}
		for _, p := range t.Partitions {
			if p.Number == d.Number && p.Start == d.Start {
				d.PartName, d.PartUUID = p.Name, p.UUID
			}
		}
	}
	return all
}

// DiskOf returns the name of the disk that holds the partition with the given PARTUUID. It refuses to choose between
// two: a copied disk beside its original must not be booted half and half.
func DiskOf(all []Device, partUUID string) (string, error) {
	var found []Device
	for _, d := range all {
		if d.Number != 0 && d.PartUUID == strings.ToLower(partUUID) {
			found = append(found, d)
		}
	}
	switch len(found) {
	case 0:
		return "", fmt.Errorf("partition with PARTUUID %s: %w", partUUID, ErrNotFound)
	case 1:
		return found[0].Disk, nil
	}
	return "", fmt.Errorf("PARTUUID %s is on %s and on %s: two disks hold the same image; take one out", partUUID, found[0].Path(), found[1].Path())
}

// ByName returns the partition of the disk that the GPT calls name.
func ByName(all []Device, disk, name string) (Device, error) {
	var found []Device
	for _, d := range all {
		if d.Number != 0 && d.Disk == disk && d.PartName == name {
			found = append(found, d)
		}
	}
	switch len(found) {
	case 0:
		return Device{}, fmt.Errorf("partition %s of /dev/%s: %w", name, disk, ErrNotFound)
	case 1:
		return found[0], nil
	}
	return Device{}, fmt.Errorf("partition %s is twice on /dev/%s: %s and %s", name, disk, found[0].Path(), found[1].Path())
}
