package debian

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/cairn-os/cairn/pkg/build/cache"
)

// Source returns the unpacked source of a source package of Debian unstable,
// with Debian's patches applied, and its version. The directory must not be
// changed: build in a copy. It needs dpkg-dev on the build machine.
func (a *Archive) Source(ctx context.Context, pkg string) (dir, version string, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("debian source %s: %w", pkg, err)
		}
	}()
	out, err := a.run(ctx, "apt-get", "source", "-qq", "--print-uris", "--download-only", pkg)
	if err != nil {
		return "", "", err
	}
	var files []remoteFile
	var dsc string
	key := cache.NewKey("debian-source")
	for line := range strings.Lines(string(out)) {
		f, err := parseURI(strings.TrimSpace(line))
		if err != nil {
			return "", "", err
		}
		if name, ok := strings.CutSuffix(f.name, ".dsc"); ok {
			dsc = f.name
			_, version, _ = strings.Cut(name, "_")
		}
		files = append(files, f)
		key.String(f.name, f.sha256)
	}
	if dsc == "" {
		return "", "", errors.New("apt names no .dsc file")
	}
	entry, err := a.cache.Get(ctx, key, func(ctx context.Context, dir string) error {
		return a.unpackSource(ctx, dir, dsc, files)
	})
	return filepath.Join(entry, "source"), version, err
}

// unpackSource fills dir/source. The files need their own names for that,
// because the .dsc lists them by name.
func (a *Archive) unpackSource(ctx context.Context, dir, dsc string, files []remoteFile) error {
	paths, err := a.fetch(ctx, files)
	if err != nil {
		return err
	}
	parts := filepath.Join(dir, "parts")
	if err := os.Mkdir(parts, 0o755); err != nil {
		return err
	}
	for i, f := range files {
		if err := os.Symlink(paths[i], filepath.Join(parts, f.name)); err != nil {
			return err
		}
	}
	// Debian's signature covers the digests of all parts already.
	if _, err := output(ctx, "dpkg-source", "--no-check", "--extract", filepath.Join(parts, dsc), filepath.Join(dir, "source")); err != nil {
		return err
	}
	return os.RemoveAll(parts)
}
