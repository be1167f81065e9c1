package blockdev

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"testing"

	"github.com/diskfs/go-diskfs/partition/gpt"
	"github.com/google/go-cmp/cmp"
)

// memDisk is a sparse disk that records every sector written, as the medium would get them.
type memDisk struct {
	size    int64
	sectors map[int64][sectorSize]byte
	log     []sectorWrite
	pos     int64
}

type sectorWrite struct {
	at   int64
	data [sectorSize]byte
}

func (d *memDisk) ReadAt(p []byte, off int64) (int, error) {
	for i := range p {
		at := off + int64(i)
		if at >= d.size {
			return i, io.EOF
		}
		s := d.sectors[at/sectorSize]
		p[i] = s[at%sectorSize]
	}
	return len(p), nil
}

func (d *memDisk) WriteAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > d.size {
		return 0, errors.New("behind the end of the disk")
	}
	for i := 0; i < len(p); {
		n, at := (off+int64(i))/sectorSize, (off+int64(i))%sectorSize
		s := d.sectors[n]
		i += copy(s[at:], p[i:])
		d.sectors[n] = s
		d.log = append(d.log, sectorWrite{n, s})
	}
	return len(p), nil
}

func (d *memDisk) Seek(off int64, whence int) (int64, error) {
	switch whence {
	case io.SeekStart:
		d.pos = off
	case io.SeekCurrent:
		d.pos += off
	case io.SeekEnd:
		d.pos = d.size + off
	}
	return d.pos, nil
}

func (d *memDisk) Read([]byte) (int, error)   { return 0, errors.New("not used") }
func (d *memDisk) Stat() (fs.FileInfo, error) { return nil, errors.New("not used") }
func (d *memDisk) Close() error               { return nil }

func (d *memDisk) clone() *memDisk {
	return &memDisk{size: d.size, sectors: maps.Clone(d.sectors)}
}

const mib = 1 << 20

// flashed is an image of 64 MiB on a disk of the given size, with foreign bytes in the boot code of sector 0.
func flashed(t *testing.T, size int64) *memDisk {
	t.Helper()
	d := &memDisk{size: 64 * mib, sectors: map[int64][sectorSize]byte{}}
	names := []string{"CAIRN_SYS", "CAIRN_BOOT_A", "CAIRN_BOOT_B", "CAIRN_ROOT_A", "CAIRN_ROOT_B", "CAIRN_DATA"}
	table := &gpt.Table{LogicalSectorSize: sectorSize, PhysicalSectorSize: sectorSize, ProtectiveMBR: true, GUID: "6C0A1D2E-0000-4000-8000-000000000000"}
	for i, name := range names {
		start := uint64(8*i+8) * mib / sectorSize
		table.Partitions = append(table.Partitions, &gpt.Partition{
			Index: i + 1, Name: name, Type: gpt.LinuxFilesystem, GUID: fmt.Sprintf("6C0A1D2E-0000-4000-8000-00000000000%d", i+1),
			Start: start, End: start + 7*mib/sectorSize - 1,
		})
	}
	// The BIOS boot partition has the last number and the first place.
	table.Partitions = append(table.Partitions, &gpt.Partition{Index: 7, Name: "CAIRN_BIOS", Type: gpt.BIOSBoot,
		GUID: "6C0A1D2E-0000-4000-8000-000000000007", Start: 2048, End: 4095})
	if err := table.Write(d, d.size); err != nil {
		t.Fatal(err)
	}
	boot := d.sectors[0]
	copy(boot[:440], "boot code")
	d.sectors[0] = boot
	d.size, d.log = size, nil
	return d
}

func dataSize(t *testing.T, d *memDisk) int64 {
	t.Helper()
	table, err := ReadTable(d, sectorSize)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range table.Partitions {
		if p.Name == "CAIRN_DATA" {
			return p.Size
		}
	}
	t.Fatalf("no CAIRN_DATA in %+v", table)
	return 0
}

func TestGrow(t *testing.T) {
	d := flashed(t, 200*mib+3*sectorSize)
	changed, size, err := Grow(d, sectorSize, 6)
	// From 48 MiB to the last whole megabyte before the backup table, which takes 33 sectors.
	if err != nil || !changed || size != 151*mib {
		t.Fatalf("Grow() = %v, %d MiB, %v; want true, 151 MiB", changed, size/mib, err)
	}
	if got := dataSize(t, d); got != size {
		t.Errorf("CAIRN_DATA has %d bytes; want %d", got, size)
	}
	boot := d.sectors[0]
	if string(boot[:9]) != "boot code" {
		t.Errorf("the boot code is %q now", boot[:9])
	}
	d.log = nil
	if changed, again, err := Grow(d, sectorSize, 6); err != nil || changed || again != size || len(d.log) > 0 {
		t.Errorf("second Grow() = %v, %d, %v with %d writes; want no change", changed, again, err, len(d.log))
	}
}

func TestGrowRefuses(t *testing.T) {
	tests := []struct {
		name   string
		size   int64
		number int
	}{
		{"not the last", 200 * mib, 5}, {"missing", 200 * mib, 9}, {"disk too small", 50 * mib, 6},
	}
	for _, tt := range tests {
		d := flashed(t, tt.size)
		if changed, _, err := Grow(d, sectorSize, tt.number); err == nil || changed || len(d.log) > 0 {
			t.Errorf("%s: Grow() = %v, %v with %d writes; want an error and none", tt.name, changed, err, len(d.log))
		}
	}
}

// TestGrowCutOff cuts the power after each sector of the growth in turn. Every state must be readable, with all
// partitions where they were, and must grow to the same end.
func TestGrowCutOff(t *testing.T) {
	before := flashed(t, 200*mib)
	done := before.clone()
	if _, _, err := Grow(done, sectorSize, 6); err != nil {
		t.Fatal(err)
	}
	if len(done.log) < 60 {
		t.Fatalf("the growth wrote %d sectors; want both tables", len(done.log))
	}
	damaged := 0
	for cut := 0; cut <= len(done.log); cut++ {
		d := before.clone()
		for _, w := range done.log[:cut] {
			d.sectors[w.at] = w.data
		}
		table, err := ReadTable(d, sectorSize)
		if err != nil {
			t.Fatalf("after %d sectors: %v", cut, err)
		}
		if got := dataSize(t, d); got != 7*mib && got != 151*mib {
			t.Errorf("after %d sectors CAIRN_DATA has %d MiB; want 7 or 151", cut, got/mib)
		}
		if table.Damaged {
			damaged++
			if repaired, err := Repair(d, sectorSize, "6c0a1d2e-0000-4000-8000-000000000002"); err != nil || !repaired {
				t.Errorf("after %d sectors: Repair() = %v, %v", cut, repaired, err)
			}
		}
		if _, size, err := Grow(d, sectorSize, 6); err != nil || size != 151*mib {
			t.Errorf("after %d sectors: Grow() = %d MiB, %v; want 151 MiB", cut, size/mib, err)
		}
		if !maps.Equal(nonzero(d), nonzero(done)) {
			t.Errorf("after %d sectors the disk differs from an undisturbed growth at %v", cut, differing(d, done))
		}
	}
	if damaged == 0 {
		t.Error("no cut left a torn primary table: the test proves nothing about Repair")
	}
}

func nonzero(d *memDisk) map[int64][sectorSize]byte {
	out := maps.Clone(d.sectors)
	maps.DeleteFunc(out, func(_ int64, s [sectorSize]byte) bool { return s == [sectorSize]byte{} })
	return out
}

func differing(a, b *memDisk) []int64 {
	var at []int64
	for n, s := range b.sectors {
		if a.sectors[n] != s {
			at = append(at, n)
		}
	}
	slices.Sort(at)
	return at
}

func TestReadTable(t *testing.T) {
	table, err := ReadTable(flashed(t, 64*mib), sectorSize)
	if err != nil {
		t.Fatal(err)
	}
	want := Partition{Number: 6, Name: "CAIRN_DATA", UUID: "6c0a1d2e-0000-4000-8000-000000000006", Start: 48 * mib, Size: 7 * mib}
	if diff := cmp.Diff(want, table.Partitions[5]); diff != "" || len(table.Partitions) != 7 || table.Damaged {
		t.Errorf("ReadTable() = %+v (-want +got of the sixth):\n%s", table, diff)
	}
}

// TestRepairLeavesOtherDisksAlone: the backup of an old table may survive at the end of a disk that holds other data.
func TestRepairLeavesOtherDisksAlone(t *testing.T) {
	const bootPart = "6c0a1d2e-0000-4000-8000-000000000002"
	torn := func() *memDisk {
		d := flashed(t, 64*mib)
		delete(d.sectors, 1) // the primary header
		return d
	}
	luks := torn()
	luks.sectors[0] = [sectorSize]byte{'L', 'U', 'K', 'S', 0xba, 0xbe}
	tests := []struct {
		name     string
		disk     *memDisk
		partUUID string
		want     bool
	}{
		{"the boot disk", torn(), bootPart, true},
		{"another disk", torn(), "00000000-0000-4000-8000-000000000002", false},
		{"encrypted as a whole", luks, bootPart, false},
		{"not torn", flashed(t, 64*mib), bootPart, false},
	}
	for _, tt := range tests {
		tt.disk.log = nil
		got, err := Repair(tt.disk, sectorSize, tt.partUUID)
		if err != nil || got != tt.want || (len(tt.disk.log) > 0) != tt.want {
			t.Errorf("%s: Repair() = %v, %v with %d writes; want %v", tt.name, got, err, len(tt.disk.log), tt.want)
		}
	}
}
