// Package disk writes the image that is flashed to a machine's disk: the
// partition table, the boot selector, slot a, an empty slot b and the data
// partition. It needs neither root nor loop devices, and the same Spec gives
// the same bytes.
package disk

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/partition/gpt"
	"go.yaml.in/yaml/v3"

	"github.com/cairn-os/cairn/pkg/build/grub"
	"github.com/cairn-os/cairn/pkg/build/progress"
	"github.com/cairn-os/cairn/pkg/partition"
	"github.com/cairn-os/cairn/pkg/slot"
)

const (
	sectorSize = 512
	// slotEnvSize holds the longest kernel command line of x86 (2048 bytes).
	slotEnvSize = 2560
)

// Recipe is a target's disk.yaml.
type Recipe struct {
	BIOS    bool   `yaml:"bios"`    // add a BIOS boot partition
	Cmdline string `yaml:"cmdline"` // of the kernel, for both slots
}

// ReadRecipe reads a disk.yaml; unknown keys are errors.
func ReadRecipe(path string) (Recipe, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return Recipe{}, err
	}
	var r Recipe
	dec := yaml.NewDecoder(bytes.NewReader(data))
	dec.KnownFields(true)
	if err := dec.Decode(&r); err != nil {
		return Recipe{}, fmt.Errorf("%s: %w", path, err)
	}
	return r, nil
}

// Spec is everything that a disk image is made from.
type Spec struct {
	Recipe Recipe
	GRUB   grub.Images

	Kernel    string // path of vmlinuz
	Initramfs string // path
	RootImage string // path of the root file system, verity tree included
	RootHash  string // of the verity tree, 64 hexadecimal digits
	// RootBlocks is the size of the root file system without the tree, in
	// blocks of 4096 bytes.
	RootBlocks int64

	Version string    // of the release; part of the identifiers
	Epoch   time.Time // every time stamp in the image
	// Tools is an unpacked tree with ToolPackages.
	Tools string
}

// ToolPackages is what Build needs in Spec.Tools.
var ToolPackages = []string{"e2fsprogs"}

// Build writes the raw, sparse disk image to the path out, replacing what is
// there. It sets SOURCE_DATE_EPOCH for this process while it runs, because the
// FAT writer takes its time from there.
func Build(ctx context.Context, s Spec, out string) (err error) {
	step := progress.FromContext(ctx).Start("disk: image")
	defer step.Done(&err)
	id, err := s.identity()
	if err != nil {
		return fmt.Errorf("build disk image: %w", err)
	}
	return s.create("disk image", out, func(f *os.File) error { return s.write(ctx, f, id) })
}

// create replaces the file out by one that write fills, while the FAT writer goes by the image's time.
func (s Spec) create(what, out string, write func(*os.File) error) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("build %s: %w", what, err)
		}
	}()
	restore, err := setEpoch(s.Epoch)
	if err != nil {
		return err
	}
	defer restore()
	tmp := out + ".tmp"
	f, err := os.OpenFile(tmp, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	if err := errors.Join(write(f), f.Close()); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return os.Rename(tmp, out)
}

// setEpoch sets SOURCE_DATE_EPOCH and returns what undoes it.
func setEpoch(t time.Time) (restore func(), err error) {
	const name = "SOURCE_DATE_EPOCH"
	old, had := os.LookupEnv(name)
	if err := os.Setenv(name, fmt.Sprint(t.Unix())); err != nil {
		return nil, err
	}
	return func() {
		if had {
			os.Setenv(name, old)
		} else {
			os.Unsetenv(name)
		}
	}, nil
}

func (s Spec) write(ctx context.Context, f *os.File, id identity) error {
	parts := partition.Table(s.Recipe.BIOS)
	if err := f.Truncate(partition.DiskSize(parts)); err != nil {
		return err
	}
	if err := writeTable(f, parts, id); err != nil {
		return err
	}
	if s.Recipe.BIOS {
		if err := s.writeBIOS(f, parts); err != nil {
			return err
		}
	}
	boot, err := s.slotFiles()
	if err != nil {
		return err
	}
	system, err := s.systemFiles()
	if err != nil {
		return err
	}
	for name, fat := range map[string]struct {
		label string // a FAT label has at most 11 characters
		files []fatFile
	}{
		partition.System: {"CAIRN_SYS", system},
		partition.BootA:  {bootLabel, boot},
		partition.BootB:  {bootLabel, nil},
	} {
		if err := createFAT(f, find(parts, name), fat.label, fat.files); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	if err := copyInto(f, find(parts, partition.RootA), s.RootImage); err != nil {
		return err
	}
	return s.writeData(ctx, f, find(parts, partition.Data), id)
}

// find returns a partition that every table has.
func find(parts []partition.Partition, name string) partition.Partition {
	p, _ := partition.Find(parts, name)
	return p
}

func writeTable(f *os.File, parts []partition.Partition, id identity) error {
	table := &gpt.Table{LogicalSectorSize: sectorSize, PhysicalSectorSize: sectorSize, GUID: id.uuid("disk"), ProtectiveMBR: true}
	for _, p := range parts {
		table.Partitions = append(table.Partitions, &gpt.Partition{
			Index: p.Number, Name: p.Name, Type: gpt.Type(p.Type), GUID: id.uuid(p.Name),
			Start: uint64(p.Start) / sectorSize, End: uint64(p.Start+p.Size)/sectorSize - 1, Size: uint64(p.Size),
		})
	}
	storage, err := file.New(f, false).Writable()
	if err != nil {
		return err
	}
	return table.Write(storage, partition.DiskSize(parts))
}

// writeBIOS writes GRUB's core image into its partition and the boot code
// around what the table keeps in the same sector.
func (s Spec) writeBIOS(f *os.File, parts []partition.Partition) error {
	const (
		parametersFrom, parametersTo = 0x3, 0x5a // a FAT's, if the disk were one
		codeTo                       = 0x1b8     // disk signature, MBR partitions
	)
	if len(s.GRUB.Boot) != sectorSize {
		return fmt.Errorf("boot sector of %d bytes", len(s.GRUB.Boot))
	}
	for _, part := range [][2]int{{0, parametersFrom}, {parametersTo, codeTo}} {
		if _, err := f.WriteAt(s.GRUB.Boot[part[0]:part[1]], int64(part[0])); err != nil {
			return err
		}
	}
	p := find(parts, partition.BIOS)
	if int64(len(s.GRUB.Core)) > p.Size {
		return fmt.Errorf("core image of %d bytes in a partition of %d", len(s.GRUB.Core), p.Size)
	}
	_, err := f.WriteAt(s.GRUB.Core, p.Start)
	return err
}

const efiPath = "EFI/BOOT/BOOTX64.EFI"

func (s Spec) systemFiles() ([]fatFile, error) {
	first, err := slot.New(slot.A).Encode()
	if err != nil {
		return nil, err
	}
	second, err := slot.State{Seq: 0, Confirmed: slot.A, Trial: slot.None}.Encode()
	if err != nil {
		return nil, err
	}
	return []fatFile{
		{efiPath, s.GRUB.EFI},
		{StateFiles[0], first},
		{StateFiles[1], second},
		{"seed/README.TXT", []byte(seedText)},
	}, nil
}

// StateFiles are the two copies of the slot state on CAIRN_SYS.
var StateFiles = [2]string{"cairn/state1.env", "cairn/state2.env"}

const seedText = "config.yaml in this folder is read at every boot, before other sources.\r\n" +
	"Container images in images\\*.tar are imported at every start.\r\n"

// slotFiles is the content of a slot's boot partition.
func (s Spec) slotFiles() ([]fatFile, error) {
	cmdline := fmt.Sprintf("cairn.roothash=%s cairn.rootblocks=%d %s", s.RootHash, s.RootBlocks, s.Recipe.Cmdline)
	if strings.ContainsAny(cmdline, "'\"\\\n$") {
		return nil, fmt.Errorf("kernel command line %q: GRUB would change it", cmdline)
	}
	env, err := slot.EncodeBlock(slotEnvSize, slot.Variable{Name: "cmdline", Value: cmdline})
	if err != nil {
		return nil, err
	}
	kernel, err := os.ReadFile(s.Kernel)
	if err != nil {
		return nil, err
	}
	initramfs, err := os.ReadFile(s.Initramfs)
	if err != nil {
		return nil, err
	}
	files := []fatFile{{"vmlinuz", kernel}, {"initramfs.img", initramfs}, {"slot.env", env}}
	var sums bytes.Buffer
	for _, f := range files {
		fmt.Fprintf(&sums, "%x  %s\n", sha256.Sum256(f.data), f.path)
	}
	return append(files, fatFile{"sha256sums", sums.Bytes()}, fatFile{efiPath, s.GRUB.EFI}), nil
}

// identity is what the image's identifiers are derived from, so that the same
// release has the same ones everywhere and another release has others.
type identity [sha256.Size]byte

func (s Spec) identity() (id identity, err error) {
	h := sha256.New()
	fmt.Fprintf(h, "%q %q %d %q\n", s.Version, s.RootHash, s.RootBlocks, s.Recipe.Cmdline)
	for _, path := range []string{s.Kernel, s.Initramfs} {
		data, err := os.ReadFile(path)
		if err != nil {
			return id, err
		}
		fmt.Fprintf(h, "%s %x\n", filepath.Base(path), sha256.Sum256(data))
	}
	h.Sum(id[:0])
	return id, nil
}

// uuid is the identifier of the thing called name, of RFC 9562's version 8.
func (id identity) uuid(name string) string {
	b := sha256.Sum256(append(id[:], name...))
	b[6] = b[6]&0x0f | 0x80
	b[8] = b[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:16])
}

// copyInto copies the file at path into p and leaves blocks of zeros as holes.
func copyInto(f *os.File, p partition.Partition, path string) error {
	in, err := os.Open(path)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	if info.Size() > p.Size {
		return fmt.Errorf("%s of %d bytes does not fit into %s of %d", path, info.Size(), p.Name, p.Size)
	}
	buf, zeros := make([]byte, 1<<16), make([]byte, 1<<16)
	for off := p.Start; ; {
		n, err := io.ReadFull(in, buf)
		if n > 0 && !bytes.Equal(buf[:n], zeros[:n]) {
			if _, err := f.WriteAt(buf[:n], off); err != nil {
				return err
			}
		}
		off += int64(n)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("copy %s: %w", path, err)
		}
	}
}
