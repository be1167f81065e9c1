package blockdev

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/diskfs/go-diskfs/backend"
	"github.com/diskfs/go-diskfs/partition/gpt"
)

// Table is what this package's callers need of a GPT.
type Table struct {
	// Damaged says that the primary table is torn and the backup was read: write it anew (Repair), because Linux
	// shows no partitions of such a disk.
	Damaged    bool
	Partitions []Partition
}

// Partition is one entry of a GPT, in bytes.
type Partition struct {
	Number int
	Name   string
	UUID   string // lower case
	Start  int64
	Size   int64
}

// alignment of a grown partition's end, in bytes: that of erase blocks and of every partition's start.
const alignment = 1 << 20

// ReadTable reads the GPT of an open disk or image; sector is its logical sector size in bytes.
func ReadTable(disk backend.File, sector int) (*Table, error) {
	t, err := gpt.Read(disk, sector, sector)
	if err != nil {
		return nil, fmt.Errorf("read gpt: %w", err)
	}
	table := &Table{Damaged: t.RecoveredFromBackup}
	for _, p := range t.Partitions {
		table.Partitions = append(table.Partitions, Partition{
			Number: p.Index, Name: p.Name, UUID: strings.ToLower(p.GUID),
			Start: int64(p.Start) * int64(sector), Size: int64(p.Size),
		})
	}
	return table, nil
}

// ReadDisk reads the GPT of the disk device called name ("vda").
func ReadDisk(name string) (*Table, error) {
	f, err := os.Open("/dev/" + name)
	if err != nil {
		return nil, fmt.Errorf("read gpt: %w", err)
	}
	defer f.Close()
	sector, err := SectorSize(f)
	if err != nil {
		return nil, err
	}
	return ReadTable(f, sector)
}

// Grow extends partition number to the end of the disk and moves the backup table there; it reports whether anything
// had to be written, and the partition's new size in bytes. The partition must be the last one on the disk.
//
// The order of the writes is go-diskfs's: backup entries, backup header, primary entries, primary header, each synced.
// So a power cut at any write leaves either the old primary or a valid backup at the disk's end; Grow and Repair
// continue from every such state, which the test replays. What is written in vain is only the size in the protective
// MBR, which nothing checks.
func Grow(disk backend.WritableFile, sector, number int) (changed bool, size int64, err error) {
	t, err := gpt.Read(disk, sector, sector)
	if err != nil {
		return false, 0, fmt.Errorf("grow partition %d: %w", number, err)
	}
	total, err := disk.Seek(0, io.SeekEnd)
	if err != nil {
		return false, 0, fmt.Errorf("grow partition %d: %w", number, err)
	}
	var target *gpt.Partition
	for _, p := range t.Partitions {
		if p.Index == number {
			target = p
		}
	}
	if target == nil {
		return false, 0, fmt.Errorf("grow partition %d: %w", number, ErrNotFound)
	}
	for _, p := range t.Partitions {
		if p != target && p.Start > target.Start {
			return false, 0, fmt.Errorf("grow partition %d: partition %d lies behind it", number, p.Index)
		}
	}
	intact := !t.RecoveredFromBackup && t.Verify(disk, uint64(total)) == nil
	t.Resize(uint64(total) / uint64(sector) * uint64(sector))
	perUnit := uint64(max(alignment/sector, 1))
	end := (t.LastDataSector()+1)/perUnit*perUnit - 1
	if end <= target.End || target.Start > end {
		end = target.End // no room for another megabyte, or a disk that shrank, which is not ours to judge
	}
	if end > t.LastDataSector() {
		return false, 0, fmt.Errorf("grow partition %d: it ends behind the end of the disk: the image was written to a smaller disk", number)
	}
	if intact && end == target.End {
		return false, int64(target.Size), nil
	}
	target.Expand(end - target.End)
	if err := t.Write(disk, total); err != nil {
		return false, 0, fmt.Errorf("grow partition %d: %w", number, err)
	}
	return true, int64(target.Size), nil
}

// Repair writes the primary table anew from the backup and reports whether that was needed. It touches only a disk whose
// backup lists the partition with the given PARTUUID and whose protective MBR is still there: another disk without
// partitions may be one that was encrypted or formatted as a whole, with the backup of an older table left at its end.
func Repair(disk backend.WritableFile, sector int, partUUID string) (bool, error) {
	t, err := gpt.Read(disk, sector, sector)
	if err != nil {
		return false, fmt.Errorf("repair gpt: %w", err)
	}
	ours := slices.ContainsFunc(t.Partitions, func(p *gpt.Partition) bool { return strings.EqualFold(p.GUID, partUUID) })
	if !t.RecoveredFromBackup || !ours {
		return false, nil
	}
	if protective, err := hasProtectiveMBR(disk); err != nil || !protective {
		return false, err
	}
	total, err := disk.Seek(0, io.SeekEnd)
	if err != nil {
		return false, fmt.Errorf("repair gpt: %w", err)
	}
	if err := t.Write(disk, total); err != nil {
		return false, fmt.Errorf("repair gpt: %w", err)
	}
	return true, nil
}

// hasProtectiveMBR reports whether sector 0 says that the disk has a GPT: a partition of type 0xee.
func hasProtectiveMBR(disk io.ReaderAt) (bool, error) {
	var mbr [512]byte
	if _, err := disk.ReadAt(mbr[:], 0); err != nil {
		return false, fmt.Errorf("read mbr: %w", err)
	}
	const entries, size, kind = 446, 16, 4 // where the four entries begin, how long one is, its type's place in it
	for i := entries; i < entries+4*size; i += size {
		if mbr[i+kind] == 0xee && mbr[510] == 0x55 && mbr[511] == 0xaa {
			return true, nil
		}
	}
	return false, nil
}

// RepairDisk repairs the GPT of the disk device called name, as Repair does, and has the kernel read it.
func RepairDisk(name, partUUID string) (repaired bool, err error) {
	f, err := os.OpenFile("/dev/"+name, os.O_RDWR, 0)
	if err != nil {
		return false, fmt.Errorf("repair gpt: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	sector, err := SectorSize(f)
	if err != nil {
		return false, err
	}
	repaired, err = Repair(f, sector, partUUID)
	if err != nil || !repaired {
		return false, err
	}
	return true, Reread(f)
}
