package binaries

import (
	"bytes"
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cairn-os/cairn/pkg/build/cache"
	"github.com/cairn-os/cairn/pkg/build/child"
	"github.com/cairn-os/cairn/pkg/build/progress"
)

//go:embed dqlite
var patches embed.FS

// sysroot lists what programs with C parts are compiled and linked against:
// Debian stable's, as in the root file system, not the build machine's.
var sysroot = []string{
	"libc6-dev", "linux-libc-dev", "libuv1-dev", "liblz4-dev", "libsqlite3-dev", "libseccomp-dev",
}

// cLibraries are the C side of a build.
type cLibraries struct {
	env     []string // of the go command
	version string   // of dqlite
}

// StoreEnv returns environment variables by which the go command compiles and
// links the store and its tests on Debian's libraries and a dqlite of our own
// build. Programs come out static, so they run on any build machine.
func StoreEnv(ctx context.Context, o Options) ([]string, error) {
	o = o.withDefaults()
	t, err := targetOf(o.Arch)
	if err != nil {
		return nil, err
	}
	lib, err := libraries(ctx, o, t)
	if err != nil {
		return nil, err
	}
	return lib.env, nil
}

func libraries(ctx context.Context, o Options, t target) (cLibraries, error) {
	root, _, err := o.Archive.Tree(ctx, sysroot...)
	if err != nil {
		return cLibraries{}, err
	}
	// A compiler installed in /usr looks into /usr/lib for start files and
	// libraries even with a sysroot, unless -B names a place before it. Parts
	// of two C libraries in one program crash it.
	cc := fmt.Sprintf("%s-gcc --sysroot=%s -B%s/usr/lib/%s/", t.triplet, root, root, t.triplet)
	source, version, err := o.Archive.Source(ctx, "dqlite")
	if err != nil {
		return cLibraries{}, err
	}
	compiler, err := exec.CommandContext(ctx, t.triplet+"-gcc", "-dumpfullversion").Output()
	if err != nil {
		return cLibraries{}, fmt.Errorf("ask %s-gcc for its version: %w", t.triplet, err)
	}
	changes, err := dqlitePatches()
	if err != nil {
		return cLibraries{}, err
	}
	key := cache.NewKey("dqlite")
	for _, p := range changes {
		key.String(p.name, p.text)
	}
	key.String("5", filepath.Base(filepath.Dir(source)), filepath.Base(root), t.triplet, string(compiler))
	dqlite, err := o.Cache.Get(ctx, key, func(ctx context.Context, dir string) error {
		return buildDqlite(ctx, source, changes, dir, cc, t)
	})
	if err != nil {
		return cLibraries{}, err
	}
	return cLibraries{version: version, env: []string{
		"CGO_ENABLED=1",
		"CC=" + cc,
		"CGO_CFLAGS=-O2 -g0 -I" + filepath.Join(dqlite, "include"),
		// --no-warnings: glibc's note that a static program's name service
		// needs the same glibc at run time; the root file system has it.
		"CGO_LDFLAGS=-static -Wl,--no-warnings -L" + filepath.Join(dqlite, "lib") + " -ldqlite -luv -lsqlite3 -llz4 -lxxhash -lm",
		"PKG_CONFIG_SYSROOT_DIR=" + root,
		"PKG_CONFIG_LIBDIR=" + filepath.Join(root, "usr/lib", t.triplet, "pkgconfig"),
	}}, nil
}

// buildDqlite fills dir, from the changed source, with lib/libdqlite.a and include/dqlite.h.
func buildDqlite(ctx context.Context, source string, changes []patch, dir, cc string, t target) (err error) {
	step := progress.FromContext(ctx).Start("compile: dqlite")
	defer step.Done(&err)
	work, err := os.MkdirTemp("", "dqlite.*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	if err := os.CopyFS(work, os.DirFS(source)); err != nil {
		return err
	}
	for _, p := range changes {
		if err := p.apply(ctx, work); err != nil {
			return err
		}
	}
	configure := []string{
		"./configure", "--host=" + t.triplet, "--enable-build-raft", "--enable-static", "--disable-shared", "--disable-backtrace",
		"CC=" + cc, "CFLAGS=-O2 -g0", "UV_CFLAGS= ", "UV_LIBS=-luv", "SQLITE_CFLAGS= ", "SQLITE_LIBS=-lsqlite3", "LZ4_CFLAGS= ", "LZ4_LIBS=-llz4",
	}
	for _, argv := range [][]string{{"autoreconf", "-i"}, configure, {"make", "-j2", "libdqlite.la"}} {
		step.Update(argv[0])
		cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
		cmd.Dir = work
		cmd.Env = slices.Concat(os.Environ(), []string{"LC_ALL=C", "ARFLAGS=crD"})
		child.Bind(cmd)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", argv[0], err, tail(out, 2000))
		}
	}
	library, err := os.ReadFile(filepath.Join(work, ".libs/libdqlite.a"))
	if err != nil {
		return err
	}
	return errors.Join(
		os.CopyFS(filepath.Join(dir, "include"), os.DirFS(filepath.Join(work, "include"))),
		os.Mkdir(filepath.Join(dir, "lib"), 0o755),
		os.WriteFile(filepath.Join(dir, "lib/libdqlite.a"), library, 0o644),
	)
}

// patch is a change to dqlite's source where it has no option for what the
// store needs; its head says why.
type patch struct{ name, text string }

// dqlitePatches returns the patches in the order in which they apply.
func dqlitePatches() (all []patch, err error) {
	names, err := fs.Glob(patches, "dqlite/*.patch")
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		text, err := patches.ReadFile(name)
		if err != nil {
			return nil, err
		}
		all = append(all, patch{name, string(text)})
	}
	return all, nil
}

// apply changes the source in dir.
func (p patch) apply(ctx context.Context, dir string) error {
	// No fuzz: a patch that only nearly fits a new release has to be looked at.
	cmd := exec.CommandContext(ctx, "patch", "-p1", "--fuzz=0", "--batch", "--directory="+dir)
	cmd.Stdin = strings.NewReader(p.text)
	child.Bind(cmd)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("apply %s: %w\n%s", p.name, err, tail(out, 2000))
	}
	return nil
}

// tail returns the last n bytes of out, from the beginning of a line on.
func tail(out []byte, n int) []byte {
	if len(out) <= n {
		return out
	}
	out = out[len(out)-n:]
	if i := bytes.IndexByte(out, '\n'); i >= 0 {
		out = out[i+1:]
	}
	return out
}
