package image

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/cairn-os/cairn/pkg/build/cache"
	"github.com/cairn-os/cairn/pkg/build/debian"
	"github.com/cairn-os/cairn/pkg/build/disk"
	"github.com/cairn-os/cairn/pkg/build/grub"
	"github.com/cairn-os/cairn/pkg/build/rootfs"
	"github.com/cairn-os/cairn/pkg/partition"
	"github.com/cairn-os/cairn/pkg/release"
	"github.com/cairn-os/cairn/pkg/slot"
)

// Variant is another release that is made from a built one without compiling anything: machines are upgraded to it, or
// must refuse to stay with it.
type Variant struct {
	Version string
	// Edit changes the copy of the root tree at a path; nil changes nothing.
	Edit func(tree string) error
	// Kernel is the path of another kernel; empty for the same.
	Kernel string
	// Cmdline is added to the kernel's command line.
	Cmdline string
}

// Vary makes the images of a variant of built in the folder dir. The Output names only what a release directory is made of.
func Vary(ctx context.Context, built *Output, v Variant, dir string) (*Output, error) {
	c, err := cache.Open("")
	if err != nil {
		return nil, err
	}
	archive, err := debian.Open(ctx, c, "amd64")
	if err != nil {
		return nil, err
	}
	tree := filepath.Join(dir, "tree")
	if out, err := exec.CommandContext(ctx, "cp", "-a", "--reflink=auto", built.Tree, tree).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("variant %s: copy the root: %w: %s", v.Version, err, out)
	}
	info := built.Release
	info.Version = v.Version
	if err := v.edit(tree, info); err != nil {
		return nil, fmt.Errorf("variant %s: %w", v.Version, err)
	}
	root, err := rootfs.Repack(ctx, c, archive, tree, dir)
	if err != nil {
		return nil, fmt.Errorf("variant %s: %w", v.Version, err)
	}
	boot, err := v.boot(ctx, built, root, dir)
	if err != nil {
		return nil, fmt.Errorf("variant %s: %w", v.Version, err)
	}
	return &Output{Boot: boot, Tree: tree, Root: root.Image, RootHash: root.RootHash, RootBlocks: root.Blocks, Release: info}, nil
}

func (v Variant) edit(tree string, info release.Info) error {
	text, err := info.Encode()
	if err != nil {
		return err
	}
	if err := replace(filepath.Join(tree, release.Path), text); err != nil {
		return err
	}
	if v.Edit == nil {
		return nil
	}
	return v.Edit(tree)
}

// replace writes a file anew, because the one there may share its content with the cache's.
func replace(path string, data []byte) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if err := os.Remove(path); err != nil {
		return err
	}
	return os.WriteFile(path, data, info.Mode().Perm())
}

// boot makes the boot image from the files of the built one.
func (v Variant) boot(ctx context.Context, built *Output, root *rootfs.Root, dir string) (string, error) {
	const efi = "EFI/BOOT/BOOTX64.EFI"
	files := map[string][]byte{}
	for _, name := range []string{"vmlinuz", "initramfs.img", "slot.env", efi} {
		data, err := disk.ReadFile(built.Disk, partition.BootA, name)
		if err != nil {
			return "", err
		}
		files[name] = data
		if err := os.WriteFile(filepath.Join(dir, filepath.Base(name)), data, 0o644); err != nil {
			return "", err
		}
	}
	vars, err := slot.DecodeBlock(files["slot.env"])
	if err != nil {
		return "", err
	}
	fields := strings.Fields(vars["cmdline"])
	if len(fields) < 2 || !strings.HasPrefix(fields[0], "cairn.roothash=") || !strings.HasPrefix(fields[1], "cairn.rootblocks=") {
		return "", fmt.Errorf("command line %q: not that of a slot", vars["cmdline"])
	}
	s := disk.Spec{
		Recipe: disk.Recipe{BIOS: true, Cmdline: strings.Join(append(fields[2:], strings.Fields(v.Cmdline)...), " ")},
		GRUB:   grub.Images{EFI: files[efi]}, Kernel: filepath.Join(dir, "vmlinuz"), Initramfs: filepath.Join(dir, "initramfs.img"),
		RootImage: root.Image, RootHash: root.RootHash, RootBlocks: root.Blocks, Version: v.Version, Epoch: time.Unix(built.Release.BuildTime, 0),
	}
	if v.Kernel != "" {
		s.Kernel = v.Kernel
	}
	path := filepath.Join(dir, "boot.img")
	return path, disk.BootImage(ctx, s, path)
}
