package blockdev

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// SectorSize returns the logical sector size of an open disk in bytes; 512 for an image file.
func SectorSize(disk *os.File) (int, error) {
	info, err := disk.Stat()
	if err != nil {
		return 0, fmt.Errorf("sector size: %w", err)
	}
	if info.Mode()&os.ModeDevice == 0 {
		return sectorSize, nil
	}
	n, err := unix.IoctlGetInt(int(disk.Fd()), unix.BLKSSZGET)
	if err != nil {
		return 0, fmt.Errorf("sector size of %s: %w", disk.Name(), err)
	}
	return n, nil
}

// Reread has the kernel read the disk's partition table; no partition of it may be in use.
func Reread(disk *os.File) error {
	if err := unix.IoctlSetInt(int(disk.Fd()), unix.BLKRRPART, 0); err != nil {
		return fmt.Errorf("re-read partitions of %s: %w", disk.Name(), err)
	}
	return nil
}

// blkpgResize is BLKPG_RESIZE_PARTITION of <linux/blkpg.h>.
const blkpgResize = 3

// blkpgArg and blkpgPartition are the structures of <linux/blkpg.h>.
type blkpgArg struct {
	op, flags, length int32
	data              unsafe.Pointer
}

type blkpgPartition struct {
	start, length int64
	number        int32
	devname       [64]byte
	volname       [64]byte
	_             [4]byte // the structure is a multiple of 8 bytes long on all architectures but 32-bit x86
}

// ResizeInKernel tells the kernel of a partition's new size; unlike Reread it works while partitions are in use.
func ResizeInKernel(disk *os.File, number int, start, size int64) error {
	part := blkpgPartition{start: start, length: size, number: int32(number)}
	arg := blkpgArg{op: blkpgResize, length: int32(unsafe.Sizeof(part)), data: unsafe.Pointer(&part)}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, disk.Fd(), unix.BLKPG, uintptr(unsafe.Pointer(&arg)))
	if errno != 0 {
		return fmt.Errorf("resize partition %d of %s: %w", number, disk.Name(), errno)
	}
	return nil
}

// GrowDevice grows a partition of a disk device to the disk's end, on the disk and in the kernel, and reports
// whether its size changed.
func GrowDevice(d Device) (grown bool, err error) {
	f, err := os.OpenFile("/dev/"+d.Disk, os.O_RDWR, 0)
	if err != nil {
		return false, fmt.Errorf("grow %s: %w", d.Name, err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	sector, err := SectorSize(f)
	if err != nil {
		return false, err
	}
	_, size, err := Grow(f, sector, d.Number)
	if err != nil {
		return false, err
	}
	if size == d.Size {
		return false, nil
	}
	// Also when the table was not written now: the last boot may have been cut off between the table and the kernel.
	if err := ResizeInKernel(f, d.Number, d.Start, size); err != nil {
		return false, err
	}
	return true, nil
}
