// Package partition is the partition table of a machine's disk as values: the
// order, names, numbers, types and sizes that the image builder writes, that
// the boot selector knows by number and that init finds by name.
//
// The numbers are the same on every target, because the boot selector finds
// partitions by them. They are not the order on the disk: where a BIOS needs
// a partition of its own it has number 7 and lies first.
//
// # The data partition
//
// CAIRN_DATA is the last on the disk and is delivered with an ext4 file system
// of its full size, made at build time. At boot init grows first the partition
// and then, mounted, the file system (online, which the journal protects), and
// never makes a new one: so there is no moment of the first boot at which a
// power cut leaves a half-made file system, and both steps are done again
// without harm at any later boot, also after the disk was copied to a larger
// one. An owner who wipes the partition gets it made by the installer, not by a
// boot.
package partition

// GPT names.
const (
	System = "CAIRN_SYS"    // boot selector and its state, FAT32
	BootA  = "CAIRN_BOOT_A" // kernel of slot a, FAT32
	BootB  = "CAIRN_BOOT_B"
	RootA  = "CAIRN_ROOT_A" // root of slot a, EROFS with its dm-verity tree
	RootB  = "CAIRN_ROOT_B"
	Data   = "CAIRN_DATA" // ext4, all that persists
	BIOS   = "CAIRN_BIOS" // GRUB's core image, x86 only
)

// Partition numbers. images/<target>/grub.cfg names the first three.
const (
	SystemNumber = 1
	BootANumber  = 2
	BootBNumber  = 3
	RootANumber  = 4
	RootBNumber  = 5
	DataNumber   = 6
	BIOSNumber   = 7
)

// GPT type GUIDs (UEFI specification 2.10, table 5.7, and the Discoverable
// Partitions Specification).
const (
	TypeESP   = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
	TypeLinux = "0FC63DAF-8483-4772-8E79-3D69D8477DE4"
	TypeBIOS  = "21686148-6449-6E6F-744E-656564454649"
)

// MiB is the unit of sizes and the alignment of every start: that of the erase
// blocks of common flash, or a part of it.
const MiB = 1 << 20

// Partition is one entry of the table.
type Partition struct {
	Number int
	Name   string // of the GPT
	Type   string // GUID
	Start  int64  // bytes from the start of the disk
	Size   int64  // bytes; that of Data is its least
}

// Table returns the partitions in the order of the disk. bios adds the BIOS
// boot partition that x86 machines need.
func Table(bios bool) []Partition {
	parts := []Partition{
		// The boot partitions are ESPs too: when CAIRN_SYS is lost, UEFI
		// finds the spare copy of GRUB on one of them.
		{Number: SystemNumber, Name: System, Type: TypeESP, Size: 128 * MiB},
		{Number: BootANumber, Name: BootA, Type: TypeESP, Size: 256 * MiB},
		{Number: BootBNumber, Name: BootB, Type: TypeESP, Size: 256 * MiB},
		{Number: RootANumber, Name: RootA, Type: TypeLinux, Size: 1024 * MiB},
		{Number: RootBNumber, Name: RootB, Type: TypeLinux, Size: 1024 * MiB},
		{Number: DataNumber, Name: Data, Type: TypeLinux, Size: 128 * MiB},
	}
	if bios {
		parts = append([]Partition{{Number: BIOSNumber, Name: BIOS, Type: TypeBIOS, Size: 1 * MiB}}, parts...)
	}
	start := int64(MiB)
	for i := range parts {
		parts[i].Start = start
		start += parts[i].Size
	}
	return parts
}

// DiskSize is the size in bytes of the smallest disk that holds parts and,
// behind them, the backup of the table.
func DiskSize(parts []Partition) int64 {
	last := parts[len(parts)-1]
	return last.Start + last.Size + MiB
}

// Find returns the partition of parts that has the GPT name.
func Find(parts []Partition, name string) (Partition, bool) {
	for _, p := range parts {
		if p.Name == name {
			return p, true
		}
	}
	return Partition{}, false
}
