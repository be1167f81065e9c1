package disk

import (
	"encoding/binary"
	"fmt"
	"os"

	"github.com/diskfs/go-diskfs/filesystem/fat32"
)

// fatStart is where a file system's first allocation table begins, after
// go-diskfs's reserved sectors.
const fatStart = 32 * sectorSize

// fixParents corrects the ".." of the folders in the root of fs: Microsoft's
// FAT specification wants cluster 0 there, go-diskfs 1.9 writes the root's
// number, which checkers and some firmware call an error.
func fixParents(f *os.File, fs *fat32.FileSystem) error {
	const (
		root        = 2
		lastCluster = 0x0ffffff8
		entrySize   = 32
		attributes  = 11
		high, low   = 20, 26 // of the first cluster's number
		longName    = 0x0f
		folder      = 0x10
	)
	data := func(cluster uint32) int64 {
		return fs.Start() + int64(fs.DataStart()) + int64(cluster-2)*int64(fs.BytesPerCluster())
	}
	block := make([]byte, fs.BytesPerCluster())
	link := make([]byte, 4)
	for cluster := uint32(root); cluster >= root && cluster < lastCluster; {
		if _, err := f.ReadAt(block, data(cluster)); err != nil {
			return err
		}
		for e := block; len(e) >= entrySize; e = e[entrySize:] {
			if e[0] == 0 || e[0] == 0xe5 || e[attributes]&longName == longName || e[attributes]&folder == 0 {
				continue
			}
			first := uint32(binary.LittleEndian.Uint16(e[high:]))<<16 | uint32(binary.LittleEndian.Uint16(e[low:]))
			parent := make([]byte, entrySize)
			at := data(first) + entrySize
			if _, err := f.ReadAt(parent, at); err != nil {
				return err
			}
			if string(parent[:3]) != ".. " {
				return fmt.Errorf("folder in cluster %d has no parent", first)
			}
			binary.LittleEndian.PutUint16(parent[high:], 0)
			binary.LittleEndian.PutUint16(parent[low:], 0)
			if _, err := f.WriteAt(parent, at); err != nil {
				return err
			}
		}
		if _, err := f.ReadAt(link, fs.Start()+fatStart+4*int64(cluster)); err != nil {
			return err
		}
		cluster = binary.LittleEndian.Uint32(link) & 0x0fffffff
	}
	return nil
}
