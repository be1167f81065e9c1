package debian

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cairn-os/cairn/pkg/build/progress"
)

// aptHelper downloads through apt's own transports, proxies and credentials.
const aptHelper = "/usr/lib/apt/apt-helper"

// Fetch downloads packages that the cache lacks and returns their files in the
// order of pkgs. Every file's digest is checked, cached or not.
func (a *Archive) Fetch(ctx context.Context, pkgs []Package) ([]string, error) {
	files := make([]remoteFile, 0, len(pkgs))
	for _, p := range pkgs {
		files = append(files, remoteFile{uri: p.uri, name: p.Name, sha256: p.SHA256})
	}
	return a.fetch(ctx, files)
}

func (a *Archive) fetch(ctx context.Context, files []remoteFile) (paths []string, err error) {
	store := filepath.Join(a.cache.Dir(), "debian-files")
	if err := os.MkdirAll(store, 0o755); err != nil {
		return nil, err
	}
	var missing []remoteFile
	for _, f := range files {
		path := filepath.Join(store, f.sha256)
		paths = append(paths, path)
		if err := verify(path, f.sha256); err == nil {
			continue
		} else if !errors.Is(err, fs.ErrNotExist) {
			if err := os.Remove(path); err != nil {
				return nil, err
			}
		}
		if f.uri == "" {
			return nil, fmt.Errorf("fetch %s: not in the cache, and not from Resolve", f.name)
		}
		missing = append(missing, f)
	}
	if len(missing) == 0 {
		return paths, nil
	}
	step := progress.FromContext(ctx).Start(fmt.Sprintf("debian: download %d files", len(missing)))
	defer step.Done(&err)
	tmp, err := os.MkdirTemp(store, "download.*")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(tmp)
	args := []string{"download-file"}
	for _, f := range missing {
		args = append(args, f.uri, filepath.Join(tmp, f.sha256), "SHA256:"+f.sha256)
	}
	if _, err := a.run(ctx, aptHelper, args...); err != nil {
		return nil, err
	}
	for _, f := range missing {
		got := filepath.Join(tmp, f.sha256)
		if err := verify(got, f.sha256); err != nil {
			return nil, fmt.Errorf("download %s: %w", f.uri, err)
		}
		if err := os.Rename(got, filepath.Join(store, f.sha256)); err != nil {
			return nil, err
		}
	}
	return paths, nil
}

// verify compares the digest of a file with want, in hex.
func verify(path, want string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return fmt.Errorf("hash %s: %w", path, err)
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != want {
		return fmt.Errorf("%s: its SHA-256 is %s; want %s", path, got, want)
	}
	return nil
}
