package sweep

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
	"sort"

	"github.com/cairn-os/cairn/pkg/partition"
)

// extent is a range of sectors.
type extent struct{ from, to int64 }

func (x extent) empty() bool { return x.from >= x.to }

// table is where the partitions are, by number.
type table map[int]extent

const (
	gptEntries   = 128 // as many as are read
	gptEntrySize = 128
)

// readTable reads the GPT (UEFI specification 2.10, section 5.3) of a disk of
// size bytes. GRUB takes the first copy as it is; firmware and Linux check its
// sums and use the second copy otherwise. So the first must hold, damaged or
// not, and one of the two must be whole.
func readTable(r io.ReaderAt, size int64) (table, error) {
	first, whole1, err := readGPT(r, 1)
	if err != nil {
		return nil, fmt.Errorf("partition table: %w", err)
	}
	if whole1 {
		return first, nil
	}
	second, whole2, err := readGPT(r, size/SectorSize-1)
	if err != nil || !whole2 {
		return nil, errors.Join(errors.New("partition table: neither copy is whole"), err)
	}
	for number, x := range second {
		if first[number] != x {
			return nil, fmt.Errorf("partition table: the first copy is damaged at partition %d", number)
		}
	}
	return second, nil
}

func readGPT(r io.ReaderAt, sector int64) (t table, whole bool, err error) {
	head := make([]byte, SectorSize)
	if _, err := r.ReadAt(head, sector*SectorSize); err != nil {
		return nil, false, err
	}
	if string(head[:8]) != "EFI PART" {
		return nil, false, fmt.Errorf("no GPT in sector %d", sector)
	}
	le := binary.LittleEndian
	at, n, size := le.Uint64(head[72:]), le.Uint32(head[80:]), le.Uint32(head[84:])
	if at == 0 || at > 1<<48 || n > gptEntries || size != gptEntrySize {
		return nil, false, fmt.Errorf("GPT in sector %d: %d entries of %d bytes at sector %d", sector, n, size, at)
	}
	entries := make([]byte, n*size)
	if _, err := r.ReadAt(entries, int64(at)*SectorSize); err != nil {
		return nil, false, err
	}
	sum, length := le.Uint32(head[16:]), le.Uint32(head[12:])
	clear(head[16:20])
	whole = length >= 92 && length <= SectorSize && crc32.ChecksumIEEE(head[:min(length, SectorSize)]) == sum &&
		crc32.ChecksumIEEE(entries) == le.Uint32(head[88:])
	t = table{}
	for i := range int(n) {
		e := entries[i*gptEntrySize:]
		if from, last := le.Uint64(e[32:]), le.Uint64(e[40:]); from != 0 && from <= last && last < 1<<48 {
			t[i+1] = extent{int64(from), int64(last) + 1}
		}
	}
	return t, whole, nil
}

// region is a part of the disk whose content counts as one thing.
type region int

const (
	ignored    region = -1 // nothing that decides what boots
	tableArea  region = 0  // partition tables, boot sector, gaps
	coreArea   region = 1  // GRUB's core image
	systemArea region = 2  // CAIRN_SYS
	bootArea   region = 3  // CAIRN_BOOT_A; CAIRN_BOOT_B follows
	rootArea   region = 5  // pieces of the roots
	// maxRegions bounds the pieces: a root is cut at the length of each
	// release's image.
	maxRegions = 16
)

// span is a range of sectors in a region.
type span struct {
	extent
	in region
}

// regions divides a disk; what no span covers is tableArea.
type regions struct {
	spans  []span // in order
	pieces [2][]int64
	count  int
}

// newRegions divides the disk with the table t. sizes are the lengths, in
// sectors, of the root images that are told apart.
func newRegions(t table, sizes []int64) (*regions, error) {
	g := &regions{}
	add := func(number int, in region) error {
		x, ok := t[number]
		if !ok {
			return fmt.Errorf("partition %d is missing", number)
		}
		g.spans = append(g.spans, span{x, in})
		return nil
	}
	err := errors.Join(add(partition.SystemNumber, systemArea), add(partition.BootANumber, bootArea), add(partition.BootBNumber, bootArea+1))
	if _, ok := t[partition.BIOSNumber]; ok {
		err = errors.Join(err, add(partition.BIOSNumber, coreArea))
	}
	if x, ok := t[partition.DataNumber]; ok {
		g.spans = append(g.spans, span{x, ignored})
	}
	cuts := slices.Compact(slices.Sorted(slices.Values(sizes)))
	next := rootArea
	for i, number := range []int{partition.RootANumber, partition.RootBNumber} {
		x, ok := t[number]
		if !ok {
			return nil, errors.Join(err, fmt.Errorf("partition %d is missing", number))
		}
		at := x.from
		for _, size := range cuts {
			if x.from+size > x.to {
				return nil, fmt.Errorf("a root of %d sectors does not fit into partition %d", size, number)
			}
			g.spans = append(g.spans, span{extent{at, x.from + size}, next})
			g.pieces[i] = append(g.pieces[i], size)
			at = x.from + size
			next++
		}
		g.spans = append(g.spans, span{extent{at, x.to}, ignored})
	}
	if g.count = int(next); g.count > maxRegions {
		err = errors.Join(err, fmt.Errorf("%d regions; at most %d", g.count, maxRegions))
	}
	g.spans = slices.DeleteFunc(g.spans, func(s span) bool { return s.empty() })
	slices.SortFunc(g.spans, func(a, b span) int { return cmp.Compare(a.from, b.from) })
	for i := range g.spans {
		if i > 0 && g.spans[i].from < g.spans[i-1].to {
			err = errors.Join(err, errors.New("partitions overlap"))
		}
	}
	return g, err
}

// at returns the region of a sector, and the sector where it ends.
func (g *regions) at(sector int64) (region, int64) {
	i := sort.Search(len(g.spans), func(i int) bool { return g.spans[i].to > sector })
	switch {
	case i == len(g.spans):
		return tableArea, 1 << 62
	case sector < g.spans[i].from:
		return tableArea, g.spans[i].from
	}
	return g.spans[i].in, g.spans[i].to
}

// matters reports whether a write to the sectors can change what boots.
func (g *regions) matters(sector, count int64) bool {
	for end := sector + count; sector < end; {
		in, to := g.at(sector)
		if in != ignored {
			return true
		}
		sector = to
	}
	return false
}
