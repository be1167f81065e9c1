package binaries

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"

	"github.com/cairn-os/cairn/pkg/build/cache"
	"github.com/cairn-os/cairn/pkg/build/child"
	"github.com/cairn-os/cairn/pkg/build/progress"
)

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
	key := cache.NewKey("dqlite")
	key.String("4", filepath.Base(filepath.Dir(source)), filepath.Base(root), t.triplet, string(compiler))
	dqlite, err := o.Cache.Get(ctx, key, func(ctx context.Context, dir string) error {
		return buildDqlite(ctx, source, dir, cc, t)
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

// buildDqlite fills dir with lib/libdqlite.a and include/dqlite.h.
func buildDqlite(ctx context.Context, source, dir, cc string, t target) (err error) {
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
	if err := setPageSize(filepath.Join(work, "src/config.c")); err != nil {
		return err
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

// setPageSize makes the database's pages 1024 bytes. dqlite has no option for
// that; its own tests run with 512. Raft's log carries whole pages, so this is
// what a small write costs, in memory and on disk. The size is part of a store's
// data: it can never be changed again.
func setPageSize(config string) error {
	data, err := os.ReadFile(config)
	if err != nil {
		return err
	}
	from, to := []byte("#define DEFAULT_PAGE_SIZE 4096\n"), []byte("#define DEFAULT_PAGE_SIZE 1024\n")
	if n := bytes.Count(data, from); n != 1 {
		return fmt.Errorf("set dqlite's page size: %s has %q %d times; want once", config, from, n)
	}
	return os.WriteFile(config, bytes.ReplaceAll(data, from, to), 0o644)
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
