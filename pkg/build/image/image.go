// Package image builds everything that a release of Cairn consists of, from
// the sources to the disk image in out/<target>/, and nothing that is not
// stale.
package image

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/cairn-os/cairn/pkg/build/binaries"
	"github.com/cairn-os/cairn/pkg/build/cache"
	"github.com/cairn-os/cairn/pkg/build/debian"
	"github.com/cairn-os/cairn/pkg/build/kernel"
	"github.com/cairn-os/cairn/pkg/build/oci"
	"github.com/cairn-os/cairn/pkg/build/rootfs"
	"github.com/cairn-os/cairn/pkg/build/signing"
	"github.com/cairn-os/cairn/pkg/release"
)

// Options say what to build.
type Options struct {
	Repo    string // root of the source tree; empty means the working directory
	Target  string // folder of images/; empty means "amd64"
	Out     string // where the outputs go; empty means "out"
	Version string // released version; empty means the tree's own
	// Keys is the folder of the keys that sign releases of this image, whose
	// root metadata it carries; empty means this machine's own, for development.
	Keys string
}

// Builder holds what all steps of a build share.
type Builder struct {
	o       Options
	cache   *cache.Cache
	archive *debian.Archive
	keys    *signing.Keys
}

// New opens the cache and Debian's archive for a build.
func New(ctx context.Context, o Options) (*Builder, error) {
	o.Repo, o.Target, o.Out = cmp.Or(o.Repo, "."), cmp.Or(o.Target, "amd64"), cmp.Or(o.Out, "out")
	o.Version = cmp.Or(o.Version, release.Version)
	if o.Target != "amd64" {
		return nil, fmt.Errorf("target %q: only amd64 is built so far", o.Target)
	}
	machine, err := debian.MachineArch()
	if err != nil {
		return nil, err
	}
	if machine != o.Target {
		return nil, fmt.Errorf("target %s is built on %s machines only so far; this one is %s", o.Target, o.Target, machine)
	}
	c, err := cache.Open("")
	if err != nil {
		return nil, err
	}
	archive, err := debian.Open(ctx, c, o.Target)
	if err != nil {
		return nil, err
	}
	keys, err := openKeys(ctx, o.Keys, c)
	if err != nil {
		return nil, err
	}
	return &Builder{o: o, cache: c, archive: archive, keys: keys}, nil
}

// Dir is where the target's outputs go.
func (b *Builder) Dir() string { return filepath.Join(b.o.Out, b.o.Target) }

func (b *Builder) programs() binaries.Options {
	return binaries.Options{Repo: b.o.Repo, Arch: b.o.Target, Cache: b.cache, Archive: b.archive, Version: b.o.Version}
}

// StoreEnv is the environment in which the go command builds and tests the
// store.
func (b *Builder) StoreEnv(ctx context.Context) ([]string, error) {
	return binaries.StoreEnv(ctx, b.programs())
}

// Parts are what a disk image, and a machine in namespaces, are made of.
type Parts struct {
	Root     *rootfs.Root
	Kernel   kernel.Kernel
	Programs *binaries.Set
	Release  release.Info
	Hello    string // the demonstration's image, as a tar file
	HelloTag string
}

// Parts builds the kernel, the programs and the root file system.
func (b *Builder) Parts(ctx context.Context) (*Parts, error) {
	built, err := binaries.SourceTime(ctx, b.o.Repo)
	if err != nil {
		return nil, err
	}
	p := &Parts{}
	p.Kernel, err = kernel.Build(ctx, b.archive, b.cache, kernel.Target{Arch: b.o.Target, Fragments: filepath.Join(b.o.Repo, "kernel-config")})
	if err != nil {
		return nil, err
	}
	if p.Programs, err = binaries.Build(ctx, b.programs()); err != nil {
		return nil, err
	}
	images := func(name string) (oci.Image, error) {
		return oci.Build(ctx, oci.Options{Repo: b.o.Repo, Name: name, Cache: b.cache, Archive: b.archive})
	}
	pause, err := images("pause")
	if err != nil {
		return nil, err
	}
	hello, err := images("hello")
	if err != nil {
		return nil, err
	}
	p.Hello, p.HelloTag = hello.Tar, hello.Tag
	anchor, err := b.anchor(ctx)
	if err != nil {
		return nil, err
	}
	p.Release = release.Info{Version: b.o.Version, Kubernetes: p.Programs.Kubernetes, Kernel: p.Kernel.Version, BuildTime: built.Unix()}
	p.Root, err = rootfs.Build(ctx, rootfs.Options{
		Repo: b.o.Repo, Target: b.o.Target, Cache: b.cache, Archive: b.archive, Programs: p.Programs, Release: p.Release,
		Extra: map[string]string{
			"usr/lib/modules/" + p.Kernel.Version:       p.Kernel.ModulesDir,
			"usr/share/cairn/images/pause.tar":          pause.Tar,
			strings.TrimPrefix(release.AnchorPath, "/"): anchor,
		},
	})
	return p, err
}

// manifest is manifest.json: what the image is made of.
type manifest struct {
	release.Info
	KernelSource debian.Package `json:"kernel_source"`
	Sizes        sizes          `json:"sizes"`
	rootfs.Manifest
}

// sizes are in bytes.
type sizes struct {
	Kernel     int64 `json:"kernel"`
	Initramfs  int64 `json:"initramfs"`
	Root       int64 `json:"root"`
	Compressed int64 `json:"compressed_disk"`
}

func writeManifest(path string, m manifest) error {
	text, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(text, '\n'), 0o644)
}
