// Package kernel builds the Linux kernel of an image: Debian's patched source,
// configured by the fragments in kernel-config, with its modules. The same
// source, fragments and compiler give the same bytes.
package kernel

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/cairn-os/cairn/pkg/build/cache"
	"github.com/cairn-os/cairn/pkg/build/child"
	"github.com/cairn-os/cairn/pkg/build/debian"
	"github.com/cairn-os/cairn/pkg/build/progress"
)

const (
	// sourcePackage holds usr/src/linux-source-6.12.tar.xz.
	sourcePackage = "linux-source-6.12"
	// recipe is part of the cache key; it grows when this package builds
	// differently from the same inputs.
	recipe = "1"
)

// Target says which kernel to build.
type Target struct {
	Arch      string // Debian's name; amd64 for now
	Fragments string // the directory of fragments: kernel-config
}

// Kernel is a built kernel; its files must not be changed.
type Kernel struct {
	Image      string // the compressed image that boot loaders start
	ModulesDir string // what /usr/lib/modules/<Version> holds, with depmod's indexes
	Version    string // as uname -r says it
	Config     string // its .config
	Source     debian.Package
}

// platform is what the kernel's makefiles need to know of a target.
type platform struct {
	arch  string // ARCH
	image string // below the source tree
}

func platformOf(arch string) (platform, error) {
	if arch != "amd64" {
		return platform{}, fmt.Errorf("no kernel for %s yet", arch)
	}
	return platform{arch: "x86_64", image: "arch/x86/boot/bzImage"}, nil
}

// Build returns the kernel for t, from the cache when its source, fragments
// and tools are as they were.
func Build(ctx context.Context, archive *debian.Archive, c *cache.Cache, t Target) (Kernel, error) {
	p, err := platformOf(t.Arch)
	if err != nil {
		return Kernel{}, fmt.Errorf("build kernel: %w", err)
	}
	options, err := Fragments(t.Fragments, t.Arch)
	if err != nil {
		return Kernel{}, fmt.Errorf("build kernel: %w", err)
	}
	// The source package depends on binutils and xz for people who build by
	// hand; here the build machine's own serve.
	tree, pkgs, err := archive.Tree(ctx, sourcePackage, "binutils-", "xz-utils-")
	if err != nil {
		return Kernel{}, fmt.Errorf("build kernel: %w", err)
	}
	source, err := findSource(pkgs)
	if err != nil {
		return Kernel{}, fmt.Errorf("build kernel: %w", err)
	}
	tools, err := toolVersions(ctx)
	if err != nil {
		return Kernel{}, fmt.Errorf("build kernel: %w", err)
	}
	key := cache.NewKey("kernel")
	key.String(recipe, t.Arch, source.SHA256, merged(options))
	key.String(tools...)
	dir, err := c.Get(ctx, key, func(ctx context.Context, dir string) error {
		b := builder{platform: p, options: options, out: dir, src: filepath.Join(dir, "src")}
		return b.build(ctx, filepath.Join(tree, "usr/src", sourcePackage+".tar.xz"))
	})
	if err != nil {
		return Kernel{}, fmt.Errorf("build kernel: %w", err)
	}
	return open(dir, source)
}

func findSource(pkgs []debian.Package) (debian.Package, error) {
	for _, p := range pkgs {
		if p.Name == sourcePackage {
			return p, nil
		}
	}
	return debian.Package{}, fmt.Errorf("the archive resolves %s without itself", sourcePackage)
}

// toolVersions names the programs of the build machine that shape the output.
func toolVersions(ctx context.Context) ([]string, error) {
	var versions []string
	for _, tool := range []string{"gcc", "ld", "zstd", "depmod"} {
		out, err := exec.CommandContext(ctx, tool, "--version").Output()
		if err != nil {
			return nil, fmt.Errorf("ask for the version of %s: %w", tool, err)
		}
		first, _, _ := strings.Cut(string(out), "\n")
		versions = append(versions, first)
	}
	return versions, nil
}

// open describes a finished cache entry.
func open(dir string, source debian.Package) (Kernel, error) {
	found, err := filepath.Glob(filepath.Join(dir, "lib/modules/*"))
	if err != nil {
		return Kernel{}, err
	}
	if len(found) != 1 {
		return Kernel{}, fmt.Errorf("kernel in %s has %d module directories; want 1", dir, len(found))
	}
	return Kernel{
		Image:      filepath.Join(dir, "vmlinuz"),
		ModulesDir: found[0],
		Version:    filepath.Base(found[0]),
		Config:     filepath.Join(dir, "config"),
		Source:     source,
	}, nil
}

// builder is one build of a kernel into the directory out.
type builder struct {
	platform
	options []Option
	out     string
	src     string
	built   time.Time // the source's own date: the only time in the output
}

func (b *builder) build(ctx context.Context, tarball string) (err error) {
	if err := b.unpack(ctx, tarball); err != nil {
		return err
	}
	if err := b.configure(ctx); err != nil {
		return err
	}
	if err := b.compile(ctx); err != nil {
		return err
	}
	if err := b.install(ctx); err != nil {
		return err
	}
	return os.RemoveAll(b.src)
}

func (b *builder) unpack(ctx context.Context, tarball string) (err error) {
	step := progress.FromContext(ctx).Start("kernel: unpack the source")
	defer step.Done(&err)
	if err := os.Mkdir(b.src, 0o755); err != nil {
		return err
	}
	out, err := exec.CommandContext(ctx, "tar", "-C", b.src, "--strip-components=1", "-xJf", tarball).CombinedOutput()
	if err != nil {
		return fmt.Errorf("unpack %s: %w\n%s", tarball, err, out)
	}
	info, err := os.Stat(filepath.Join(b.src, "Makefile"))
	if err != nil {
		return err
	}
	b.built = info.ModTime().UTC()
	return nil
}

// configure makes .config from nothing but the options, and insists that
// kconfig kept every one of them.
func (b *builder) configure(ctx context.Context) (err error) {
	step := progress.FromContext(ctx).Start(fmt.Sprintf("kernel: configure %d options", len(b.options)))
	defer step.Done(&err)
	fragments := filepath.Join(b.out, "fragments")
	if err := os.WriteFile(fragments, []byte(merged(b.options)), 0o644); err != nil {
		return err
	}
	for _, goal := range []string{"KCONFIG_ALLCONFIG=" + fragments + " allnoconfig", "olddefconfig"} {
		if err := b.make(ctx, nil, strings.Fields(goal)...); err != nil {
			return err
		}
	}
	config, err := os.ReadFile(filepath.Join(b.src, ".config"))
	if err != nil {
		return err
	}
	if err := Lost(b.options, string(config)); err != nil {
		return fmt.Errorf("kconfig does not keep the fragments:\n%w", err)
	}
	return os.WriteFile(filepath.Join(b.out, "config"), config, 0o644)
}

func (b *builder) compile(ctx context.Context) (err error) {
	step := progress.FromContext(ctx).Start("kernel: compile")
	defer step.Done(&err)
	objects := 0
	return b.make(ctx, func(line string) {
		// "  CC [M]  drivers/net/veth.o"
		fields := strings.Fields(line)
		if len(fields) >= 2 && (fields[0] == "CC" || fields[0] == "AS") {
			objects++
			step.Update(fmt.Sprintf("%d objects, %s", objects, fields[len(fields)-1]))
		}
	}, fmt.Sprintf("-j%d", runtime.NumCPU()), filepath.Base(b.image), "modules")
}

func (b *builder) install(ctx context.Context) (err error) {
	step := progress.FromContext(ctx).Start("kernel: install modules")
	defer step.Done(&err)
	err = b.make(ctx, nil, "INSTALL_MOD_PATH="+b.out, "INSTALL_MOD_STRIP=1", "modules_install")
	if err != nil {
		return err
	}
	links, err := filepath.Glob(filepath.Join(b.out, "lib/modules/*/build"))
	if err != nil {
		return err
	}
	for _, link := range links {
		if err := os.Remove(link); err != nil {
			return err
		}
	}
	return os.Rename(filepath.Join(b.src, b.image), filepath.Join(b.out, "vmlinuz"))
}

// make runs the kernel's makefiles with an environment in which nothing
// depends on the machine, the user or the time. Each line of output goes to
// onLine, which may be nil.
func (b *builder) make(ctx context.Context, onLine func(string), args ...string) error {
	cmd := exec.CommandContext(ctx, "make", append([]string{"-C", b.src, "--no-print-directory", "ARCH=" + b.arch}, args...)...)
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH") + ":/usr/sbin:/sbin", // depmod
		"HOME=/nonexistent",
		"LC_ALL=C",
		"KBUILD_BUILD_TIMESTAMP=" + b.built.Format(time.UnixDate),
		"KBUILD_BUILD_VERSION=1",
		"KBUILD_BUILD_USER=cairn",
		"KBUILD_BUILD_HOST=cairn",
	}
	var out lines
	out.on = onLine
	cmd.Stdout, cmd.Stderr = &out, &out
	child.Bind(cmd)
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return errors.Join(ctx.Err(), err)
		}
		return fmt.Errorf("make %s: %w\n%s", strings.Join(args, " "), err, out.tail())
	}
	return nil
}
