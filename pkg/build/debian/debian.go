// Package debian takes packages from Debian's signed archives, for any
// architecture, without touching the build machine's own packages: apt works
// on a private root with its own sources, lists and an empty package database,
// and no maintainer script ever runs.
package debian

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/cairn-os/cairn/pkg/build/cache"
	"github.com/cairn-os/cairn/pkg/build/progress"
)

const (
	// Suite is the Debian release that packages come from.
	Suite = "trixie"
	// sourceSuite is where source packages come from: the few we compile
	// ourselves are those of which Suite's version is too old.
	sourceSuite = "sid"

	keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
	// maxAge is how long package lists serve before they are fetched anew.
	maxAge = 24 * time.Hour
)

// Archive is Debian for one architecture. Its methods are safe for concurrent
// use, by several processes too.
type Archive struct {
	cache *cache.Cache
	arch  string
	root  string // of apt: configuration, lists, index caches
}

// Open returns the archive for arch, a Debian architecture name such as
// "amd64" or "armhf". Package lists are fetched when there are none younger
// than a day; without a connection older ones serve.
func Open(ctx context.Context, c *cache.Cache, arch string) (*Archive, error) {
	a := &Archive{cache: c, arch: arch, root: filepath.Join(c.Dir(), "apt", arch)}
	if err := a.configure(ctx); err != nil {
		return nil, fmt.Errorf("open debian archive for %s: %w", arch, err)
	}
	if err := a.update(ctx, maxAge); err != nil {
		return nil, fmt.Errorf("open debian archive for %s: %w", arch, err)
	}
	return a, nil
}

// Arch is the archive's Debian architecture.
func (a *Archive) Arch() string { return a.arch }

// Refresh fetches the package lists now.
func (a *Archive) Refresh(ctx context.Context) error { return a.update(ctx, 0) }

func (a *Archive) path(elem ...string) string {
	return filepath.Join(append([]string{a.root}, elem...)...)
}

// configure writes apt's private configuration. It is read after the build
// machine's own, so a proxy or credentials set there stay in force.
func (a *Archive) configure(ctx context.Context) error {
	for _, need := range []struct{ file, pkg string }{
		{keyring, "debian-archive-keyring"}, {aptHelper, "apt"},
	} {
		if _, err := os.Stat(need.file); err != nil {
			return fmt.Errorf("%w (install %s)", err, need.pkg)
		}
	}
	for _, dir := range []string{"lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(a.path(dir), 0o755); err != nil {
			return err
		}
	}
	m, err := machineMirrors(ctx)
	if err != nil {
		return err
	}
	for name, text := range map[string]string{
		"sources.list": m.sourcesList(a.arch),
		"apt.conf":     a.config(),
		"status":       "",
	} {
		if err := replaceFile(a.path(name), text); err != nil {
			return err
		}
	}
	return nil
}

// replaceFile writes a file unless it already holds text, so that readers in
// other processes never see half of it.
func replaceFile(path, text string) error {
	if old, err := os.ReadFile(path); err == nil && string(old) == text {
		return nil
	}
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	if err := errors.Join(err, f.Chmod(0o644), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

func (a *Archive) config() string {
	return strings.Join([]string{
		`#clear APT::Architectures;`,
		`#clear APT::Update;`, // hooks of the build machine
		`#clear APT::Default-Release;`,
		`#clear Acquire::Languages;`,
		fmt.Sprintf(`APT::Architecture %q;`, a.arch),
		fmt.Sprintf(`APT::Architectures { %q; };`, a.arch),
		`APT::Install-Recommends "false";`,
		`APT::Sandbox::User "root";`, // the cache may be closed to _apt
		`APT::Get::AllowUnauthenticated "false";`,
		`Acquire::AllowInsecureRepositories "false";`,
		`Acquire::AllowDowngradeToInsecureRepositories "false";`,
		`Acquire::AllowWeakRepositories "false";`,
		`Acquire::Languages { "none"; };`,
		`Acquire::ForceHash "sha256";`,
		`Acquire::Retries "3";`,
		fmt.Sprintf(`Dir::State %q;`, a.root),
		fmt.Sprintf(`Dir::State::lists %q;`, a.path("lists")),
		fmt.Sprintf(`Dir::State::status %q;`, a.path("status")),
		fmt.Sprintf(`Dir::Cache %q;`, a.path("cache")),
		`Dir::Cache::pkgcache "";`, // depends on the status file, which Resolve varies
		fmt.Sprintf(`Dir::Etc::sourcelist %q;`, a.path("sources.list")),
		`Dir::Etc::sourceparts "/dev/null";`,
		`Dir::Etc::preferences "/dev/null";`,
		`Dir::Etc::preferencesparts "/dev/null";`,
		`Debug::NoLocking "true";`, // only update writes, under our own lock
		"",
	}, "\n")
}

// update fetches the lists unless they were made from the same sources less
// than age ago.
func (a *Archive) update(ctx context.Context, age time.Duration) (err error) {
	unlock, err := cache.Lock(ctx, a.path("update.lock"))
	if err != nil {
		return err
	}
	defer unlock()
	sources, err := os.ReadFile(a.path("sources.list"))
	if err != nil {
		return err
	}
	stamp := a.path("updated")
	known := false
	if info, err := os.Stat(stamp); err == nil {
		made, err := os.ReadFile(stamp)
		if err != nil {
			return err
		}
		known = bytes.Equal(made, sources)
		if known && time.Since(info.ModTime()) < age {
			return nil
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	p := progress.FromContext(ctx)
	step := p.Start("debian: fetch package lists for " + a.arch)
	defer step.Done(&err)
	if _, err := a.run(ctx, "apt-get", "update", "-qq", "-o", "APT::Update::Error-Mode=any"); err != nil {
		if known && age > 0 && ctx.Err() == nil {
			step.Update(fmt.Sprintf("old lists serve: %v", err))
			return nil
		}
		return err
	}
	return replaceStamp(stamp, sources)
}

// replaceStamp is replaceFile that counts as new even when nothing changed.
func replaceStamp(path string, data []byte) error {
	if err := replaceFile(path, string(data)); err != nil {
		return err
	}
	now := time.Now()
	return os.Chtimes(path, now, now)
}

// run runs a program of apt on the private root and returns its output.
func (a *Archive) run(ctx context.Context, name string, args ...string) ([]byte, error) {
	return output(ctx, name, append([]string{"-c", a.path("apt.conf")}, args...)...)
}

// output runs a program in the C locale; its error holds what the program
// wrote to standard error.
func output(ctx context.Context, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, fmt.Errorf("%s: %w\n%s", filepath.Base(name), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return stdout.Bytes(), nil
}
