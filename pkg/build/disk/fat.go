package disk

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"slices"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/filesystem/fat32"
	"github.com/diskfs/go-diskfs/partition/gpt"

	"github.com/cairn-os/cairn/pkg/partition"
)

// fatFile is a file of a FAT partition; path is slash-separated and relative.
type fatFile struct {
	path string
	data []byte
}

func createFAT(f *os.File, p partition.Partition, label string, files []fatFile) error {
	fs, err := fat32.Create(file.New(f, false), p.Size, p.Start, sectorSize, label, true)
	if err != nil {
		return err
	}
	for _, file := range files {
		if err := put(fs, file); err != nil {
			return err
		}
	}
	return fixParents(f, fs)
}

// put writes a file, replacing what has its path, and makes its folders.
func put(fs *fat32.FileSystem, f fatFile) error {
	name := "/" + path.Clean("/" + f.path)[1:]
	if dir := path.Dir(name); dir != "/" {
		if err := fs.Mkdir(dir); err != nil {
			return fmt.Errorf("make %s: %w", dir, err)
		}
	}
	out, err := fs.OpenFile(name, os.O_CREATE|os.O_RDWR|os.O_TRUNC)
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	if len(f.data) > 0 {
		if _, err := out.Write(f.data); err != nil {
			return fmt.Errorf("write %s: %w", name, err)
		}
	}
	return out.Close()
}

// EditFAT opens the FAT file system in the partition called name of the image.
func EditFAT(image, name string, edit func(*fat32.FileSystem) error) (err error) {
	f, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() {
		if err = errors.Join(err, f.Close()); err != nil {
			err = fmt.Errorf("%s of %s: %w", name, image, err)
		}
	}()
	start, size, err := locate(f, name)
	if err != nil {
		return err
	}
	fs, err := fat32.Read(file.New(f, false), size, start, sectorSize)
	if err != nil {
		return err
	}
	if err := edit(fs); err != nil {
		return err
	}
	return fixParents(f, fs)
}

func locate(f *os.File, name string) (start, size int64, err error) {
	table, err := gpt.Read(file.New(f, true), sectorSize, sectorSize)
	if err != nil {
		return 0, 0, err
	}
	for _, p := range table.Partitions {
		if p.Name == name {
			return int64(p.Start) * sectorSize, int64(p.Size), nil
		}
	}
	return 0, 0, errors.New("no such partition")
}

// Put writes files, by slash-separated path, into the FAT partition called name
// of the image.
func Put(image, name string, files map[string][]byte) error {
	return EditFAT(image, name, func(fs *fat32.FileSystem) error {
		for _, path := range slices.Sorted(maps.Keys(files)) {
			if err := put(fs, fatFile{path, files[path]}); err != nil {
				return err
			}
		}
		return nil
	})
}

// Seed puts files below /seed of CAIRN_SYS: "config.yaml", "images/x.tar".
func Seed(image string, files map[string][]byte) error {
	seeded := make(map[string][]byte, len(files))
	for name, data := range files {
		seeded[path.Join("seed", name)] = data
	}
	return Put(image, partition.System, seeded)
}

// ReadFile reads a file of the FAT partition called name of the image.
func ReadFile(image, name, path string) (data []byte, err error) {
	err = EditFAT(image, name, func(fs *fat32.FileSystem) error {
		data, err = fs.ReadFile(path)
		return err
	})
	return data, err
}

// WriteAt writes raw bytes at an offset of the partition called name.
func WriteAt(image, name string, data []byte, offset int64) (err error) {
	f, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	start, size, err := locate(f, name)
	if err != nil {
		return fmt.Errorf("%s of %s: %w", name, image, err)
	}
	if offset < 0 || offset+int64(len(data)) > size {
		return fmt.Errorf("%s of %s: %w", name, image, io.ErrShortWrite)
	}
	_, err = f.WriteAt(data, start+offset)
	return err
}
