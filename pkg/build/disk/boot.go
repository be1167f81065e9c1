package disk

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/filesystem/fat32"

	"github.com/cairn-os/cairn/pkg/build/progress"
	"github.com/cairn-os/cairn/pkg/partition"
)

// bootLabel is the same for both slots, because an upgrade writes the same bytes
// to either.
const bootLabel = "CAIRN_BOOT"

// BootImage writes the content of a slot's boot partition to the path out: the
// bytes that Build puts into slot a, up to the end of the last cluster in use.
// What follows in the partition is of no meaning. Like Build it sets
// SOURCE_DATE_EPOCH while it runs.
func BootImage(ctx context.Context, s Spec, out string) (err error) {
	defer progress.FromContext(ctx).Start("disk: boot image").Done(&err)
	files, err := s.slotFiles()
	if err != nil {
		return fmt.Errorf("build boot image: %w", err)
	}
	p := find(partition.Table(s.Recipe.BIOS), partition.BootA)
	p.Start = 0
	return s.create("boot image", out, func(f *os.File) error { return writeBoot(f, p, files) })
}

func writeBoot(f *os.File, p partition.Partition, files []fatFile) error {
	if err := f.Truncate(p.Size); err != nil {
		return err
	}
	if err := createFAT(f, p, bootLabel, files); err != nil {
		return err
	}
	fs, err := fat32.Read(file.New(f, true), p.Size, p.Start, sectorSize)
	if err != nil {
		return err
	}
	end, err := usedEnd(f, fs)
	if err != nil {
		return err
	}
	return f.Truncate(end)
}

// usedEnd is where the last cluster ends that fs uses, in bytes from the
// start of f.
func usedEnd(f *os.File, fs *fat32.FileSystem) (int64, error) {
	const first = 2 // cluster
	size := int64(fs.DataStart()) - fatStart
	table := bufio.NewReader(io.NewSectionReader(f, fs.Start()+fatStart, size/2)) // of two copies
	last := int64(-1)
	entry := make([]byte, 4)
	for cluster := int64(0); ; cluster++ {
		_, err := io.ReadFull(table, entry)
		if err == io.EOF {
			break
		}
		if err != nil {
			return 0, fmt.Errorf("read the allocation table: %w", err)
		}
		if binary.LittleEndian.Uint32(entry)&0x0fffffff != 0 {
			last = cluster
		}
	}
	if last < first {
		return 0, errors.New("no file in the file system")
	}
	return fs.Start() + int64(fs.DataStart()) + (last-first+1)*int64(fs.BytesPerCluster()), nil
}
