package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/cairn-os/cairn/pkg/build/cache"
	"github.com/cairn-os/cairn/pkg/build/disk"
	"github.com/cairn-os/cairn/pkg/build/grub"
	"github.com/cairn-os/cairn/pkg/build/initramfs"
	"github.com/cairn-os/cairn/pkg/build/progress"
)

// keyWithCode starts the key of an entry that the named packages below pkg
// make: their sources belong to its inputs, and the versions of what they
// import.
func (b *Builder) keyWithCode(name string, packages ...string) (*cache.Key, error) {
	k := cache.NewKey(name + "-" + b.o.Target)
	for _, p := range packages {
		if err := k.Tree(filepath.Join(b.o.Repo, "pkg", p)); err != nil {
			return nil, err
		}
	}
	return k, k.File(filepath.Join(b.o.Repo, "go.mod"))
}

// lock keeps other builds away: the go command leaves all programs of an
// architecture in one folder of the cache, and they must not change while
// images are made of them.
func (b *Builder) lock(ctx context.Context) (unlock func(), err error) {
	path := filepath.Join(b.cache.Dir(), "build-"+b.o.Target+".lock")
	now, cancel := context.WithCancel(ctx)
	cancel() // tries once
	if unlock, err = cache.Lock(now, path); !errors.Is(err, context.Canceled) {
		return unlock, err
	}
	step := progress.FromContext(ctx).Start("wait for another build")
	defer step.Done(&err)
	return cache.Lock(ctx, path)
}

// Image builds the disk image and all it consists of, and writes the outputs.
// compress adds disk.img.zst, which takes a minute and which a machine that
// runs here does not need.
func (b *Builder) Image(ctx context.Context, compress bool) (*Output, error) {
	unlock, err := b.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	parts, err := b.Parts(ctx)
	if err != nil {
		return nil, err
	}
	ramdisk, err := b.initramfs(ctx, parts.Programs.Files["usr/sbin/init"])
	if err != nil {
		return nil, err
	}
	raw, boot, err := b.disk(ctx, parts, ramdisk)
	if err != nil {
		return nil, err
	}
	kubectl, err := filepath.Abs(filepath.Join(b.Dir(), "kubectl"))
	if err != nil {
		return nil, err
	}
	out := &Output{
		Disk: raw, Boot: boot, Tree: parts.Root.Tree, Root: parts.Root.Image, RootHash: parts.Root.RootHash, RootBlocks: parts.Root.Blocks,
		Hello: parts.Hello, HelloTag: parts.HelloTag, KubeCtl: kubectl, Release: parts.Release,
	}
	if err := os.MkdirAll(b.Dir(), 0o755); err != nil {
		return nil, err
	}
	if err := relink(parts.Programs.Files["usr/bin/cairn-kube"], kubectl); err != nil {
		return nil, err
	}
	if compress {
		if out.Compressed, err = b.compress(ctx, raw); err != nil {
			return nil, err
		}
	}
	if err := b.describe(parts, ramdisk, out); err != nil {
		return nil, err
	}
	return out, out.save(b.Dir())
}

// relink makes link a symbolic link to target, an existing file.
func relink(target, link string) error {
	target, err := filepath.Abs(target)
	if err != nil {
		return err
	}
	if err := os.Remove(link); err != nil && !os.IsNotExist(err) {
		return err
	}
	return os.Symlink(target, link)
}

func (b *Builder) initramfs(ctx context.Context, init string) (string, error) {
	k, err := b.keyWithCode("initramfs", "build/initramfs")
	if err != nil {
		return "", err
	}
	if err := k.File(init); err != nil {
		return "", err
	}
	dir, err := b.cache.Get(ctx, k, func(_ context.Context, dir string) error {
		f, err := os.Create(filepath.Join(dir, "initramfs.img"))
		if err != nil {
			return err
		}
		defer f.Close()
		if err := initramfs.Build(init, f); err != nil {
			return err
		}
		return f.Close()
	})
	return filepath.Join(dir, "initramfs.img"), err
}

// disk returns the disk image and the image of its boot partition.
func (b *Builder) disk(ctx context.Context, parts *Parts, ramdisk string) (raw, boot string, err error) {
	recipeFile := filepath.Join(b.o.Repo, "images", b.o.Target, "disk.yaml")
	grubFile := filepath.Join(b.o.Repo, "images", b.o.Target, "grub.cfg")
	tools, packages, err := b.archive.Tree(ctx, append(grub.Packages, disk.ToolPackages...)...)
	if err != nil {
		return "", "", err
	}
	k, err := b.keyWithCode("disk", "build/disk", "build/grub", "partition", "slot")
	if err != nil {
		return "", "", err
	}
	k.String(b.o.Version, parts.Root.RootHash, fmt.Sprint(parts.Release.BuildTime))
	for _, p := range packages {
		k.String(p.SHA256)
	}
	for _, path := range []string{recipeFile, grubFile, parts.Kernel.Image, ramdisk} {
		if err := k.File(path); err != nil {
			return "", "", err
		}
	}
	dir, err := b.cache.Get(ctx, k, func(ctx context.Context, dir string) (err error) {
		defer progress.FromContext(ctx).Start("disk image: write").Done(&err)
		recipe, err := disk.ReadRecipe(recipeFile)
		if err != nil {
			return err
		}
		config, err := os.ReadFile(grubFile)
		if err != nil {
			return err
		}
		selector, err := grub.Build(ctx, tools, config)
		if err != nil {
			return err
		}
		spec := disk.Spec{
			Recipe: recipe, GRUB: selector, Kernel: parts.Kernel.Image, Initramfs: ramdisk,
			RootImage: parts.Root.Image, RootHash: parts.Root.RootHash, RootBlocks: parts.Root.Blocks,
			Version: b.o.Version, Epoch: time.Unix(parts.Release.BuildTime, 0), Tools: tools,
		}
		if err := disk.BootImage(ctx, spec, filepath.Join(dir, "boot.img")); err != nil {
			return err
		}
		return disk.Build(ctx, spec, filepath.Join(dir, "disk.img"))
	})
	return filepath.Join(dir, "disk.img"), filepath.Join(dir, "boot.img"), err
}

// compress returns out/<target>/disk.img.zst, made from raw unless it is
// already.
func (b *Builder) compress(ctx context.Context, raw string) (string, error) {
	k, err := b.keyWithCode("disk-zst", "build/disk")
	if err != nil {
		return "", err
	}
	k.String(raw) // its directory is named by its inputs
	dir, err := b.cache.Get(ctx, k, func(ctx context.Context, dir string) error {
		return disk.Compress(ctx, raw, filepath.Join(dir, "disk.img.zst"))
	})
	if err != nil {
		return "", err
	}
	to := filepath.Join(b.Dir(), "disk.img.zst")
	return to, disk.Copy(filepath.Join(dir, "disk.img.zst"), to)
}

// describe writes the summary and, of what is to be given away, the manifest.
func (b *Builder) describe(parts *Parts, ramdisk string, out *Output) error {
	m := manifest{Info: parts.Release, KernelSource: parts.Kernel.Source, Manifest: parts.Root.Manifest}
	var text strings.Builder
	fmt.Fprintf(&text, "Cairn %s for %s: Kubernetes %s, Linux %s\n", parts.Release.Version, b.o.Target, parts.Release.Kubernetes, parts.Release.Kernel)
	for _, f := range []struct {
		name, path string
		size       *int64
	}{
		{"kernel", parts.Kernel.Image, &m.Sizes.Kernel},
		{"initramfs", ramdisk, &m.Sizes.Initramfs},
		{"root file system with its hash tree", parts.Root.Image, &m.Sizes.Root},
		{"compressed disk image", out.Compressed, &m.Sizes.Compressed},
	} {
		if f.path == "" {
			continue
		}
		info, err := os.Stat(f.path)
		if err != nil {
			return err
		}
		*f.size = info.Size()
		fmt.Fprintf(&text, "  %-36s %8.1f MB  %s\n", f.name, float64(info.Size())/1e6, f.path)
	}
	out.Summary = text.String()
	if out.Compressed == "" {
		return nil // the manifest there, if any, belongs to the disk.img.zst there
	}
	return writeManifest(filepath.Join(b.Dir(), "manifest.json"), m)
}
