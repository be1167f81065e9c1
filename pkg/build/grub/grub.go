// Package grub builds the boot selector: GRUB images that hold their whole
// configuration, so that no file on a disk can change or break it.
//
// GRUB and its image maker come from Debian's packages; images/<target>/grub.cfg
// is the configuration, and package slot has the rules that it follows.
package grub

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cairn-os/cairn/pkg/build/debian"
	"github.com/cairn-os/cairn/pkg/partition"
)

// Packages is what Build needs in its tree.
var Packages = []string{"grub-common", "grub-pc-bin", "grub-efi-amd64-bin"}

// Images are the selector for a PC.
type Images struct {
	Boot []byte // boot sector, 512 bytes
	Core []byte // what the boot sector loads from the BIOS boot partition
	EFI  []byte // BOOTX64.EFI
}

// modules that every image has. All that the configuration names must be
// here: an unknown command would count as true in it.
var modules = strings.Fields("normal memdisk tar part_gpt fat loadenv test regexp echo linux boot halt reboot " +
	"sleep minicmd serial terminal hashsum gcry_sha256 probe all_video")

const (
	earlyConfig = "normal (memdisk)/grub.cfg\n"
	directory   = "/cairn" // GRUB's prefix on CAIRN_SYS; nothing is read from it

	bootSize = 512
	// The blocklist of core.img's first sector and the fields of boot.img,
	// from GRUB's include/grub/i386/pc/boot.h and offsets.h.
	coreBlocklist  = 0x1f4
	bootKernel     = 0x5c
	bootDriveCheck = 0x66
)

// Build makes the images with the GRUB of tree, an unpacked closure of
// Packages, and the configuration config.
func Build(ctx context.Context, tree string, config []byte) (Images, error) {
	dir, err := os.MkdirTemp("", "cairn-grub-")
	if err != nil {
		return Images{}, fmt.Errorf("build grub: %w", err)
	}
	defer os.RemoveAll(dir)
	memdisk, err := memdisk(config)
	if err != nil {
		return Images{}, fmt.Errorf("build grub: %w", err)
	}
	for name, data := range map[string][]byte{"mem.tar": memdisk, "early.cfg": []byte(earlyConfig)} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			return Images{}, fmt.Errorf("build grub: %w", err)
		}
	}
	var i Images
	sys := fmt.Sprintf("(,gpt%d)%s", partition.SystemNumber, directory)
	if i.Core, err = mkimage(ctx, tree, dir, "i386-pc", sys, "biosdisk"); err != nil {
		return Images{}, err
	}
	if i.EFI, err = mkimage(ctx, tree, dir, "x86_64-efi", directory, "efi_gop", "efi_uga"); err != nil {
		return Images{}, err
	}
	if i.Boot, err = os.ReadFile(filepath.Join(tree, "usr/lib/grub/i386-pc/boot.img")); err != nil {
		return Images{}, fmt.Errorf("build grub: %w", err)
	}
	parts := partition.Table(true)
	bios, _ := partition.Find(parts, partition.BIOS)
	if err := i.place(bios); err != nil {
		return Images{}, fmt.Errorf("build grub: %w", err)
	}
	return i, nil
}

// place writes where core lies into boot and core, as grub-bios-setup does.
func (i *Images) place(bios partition.Partition) error {
	if len(i.Boot) != bootSize || len(i.Core) < bootSize || int64(len(i.Core)) > bios.Size {
		return fmt.Errorf("boot.img of %d bytes and core.img of %d do not fit", len(i.Boot), len(i.Core))
	}
	sector := uint64(bios.Start) / bootSize
	putUint64(i.Core[coreBlocklist:], sector+1)
	putUint64(i.Boot[bootKernel:], sector)
	// Two no-ops in the place of a jump: trust the drive number that the
	// BIOS gives.
	i.Boot[bootDriveCheck], i.Boot[bootDriveCheck+1] = 0x90, 0x90
	return nil
}

func putUint64(b []byte, v uint64) {
	for n := range 8 {
		b[n] = byte(v >> (8 * n))
	}
}

// memdisk is the archive inside the images: the configuration, and a wrong
// checksum that the checksum program must refuse before it is believed.
func memdisk(config []byte) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range []struct {
		name string
		data []byte
	}{
		{"grub.cfg", config},
		{"bad.sum", []byte(strings.Repeat("0", 64) + "  bad.sum\n")},
	} {
		h := &tar.Header{Name: f.name, Mode: 0o644, Size: int64(len(f.data)), Format: tar.FormatUSTAR}
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.data); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

func mkimage(ctx context.Context, tree, dir, platform, prefix string, extra ...string) ([]byte, error) {
	out := filepath.Join(dir, platform)
	args := []string{
		"-d", filepath.Join(tree, "usr/lib/grub", platform), "-O", platform, "-m", filepath.Join(dir, "mem.tar"),
		"-c", filepath.Join(dir, "early.cfg"), "-p", prefix, "-o", out,
	}
	cmd := debian.Command(ctx, tree, "usr/bin/grub-mkimage", slices.Concat(args, modules, extra)...)
	if err := run(cmd); err != nil {
		return nil, fmt.Errorf("grub-mkimage for %s: %w", platform, err)
	}
	data, err := os.ReadFile(out)
	if err != nil {
		return nil, fmt.Errorf("grub-mkimage for %s: %w", platform, err)
	}
	return data, nil
}

func run(cmd *exec.Cmd) error {
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}
