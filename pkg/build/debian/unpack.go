package debian

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"slices"
	"strings"

	"github.com/cairn-os/cairn/pkg/build/cache"
	"github.com/cairn-os/cairn/pkg/build/progress"
)

// Tree returns a directory that holds the named packages and all they depend
// on, unpacked, and what they are; names are those of Resolve. It must not be
// changed.
func (a *Archive) Tree(ctx context.Context, names ...string) (dir string, pkgs []Package, err error) {
	pkgs, err = a.Resolve(ctx, names...)
	if err != nil {
		return "", nil, err
	}
	key := cache.NewKey("debian-tree")
	key.String("1", a.arch) // the version of Unpack's rules
	key.String(digests(pkgs)...)
	dir, err = a.cache.Get(ctx, key, func(ctx context.Context, dir string) error {
		debs, err := a.Fetch(ctx, pkgs)
		if err != nil {
			return err
		}
		return a.Unpack(ctx, dir, debs)
	})
	return dir, pkgs, err
}

// Unpack puts the files of packages below dir, which must exist, in merged-/usr
// layout. Everything belongs to the caller, set-user-ID and set-group-ID bits
// are dropped, and device nodes are refused. A later package's file replaces an
// earlier one's.
func (a *Archive) Unpack(ctx context.Context, dir string, debs []string) (err error) {
	step := progress.FromContext(ctx).Start(fmt.Sprintf("debian: unpack %d packages", len(debs)))
	defer step.Done(&err)
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	if err := mergeUsr(root, a.arch); err != nil {
		return err
	}
	for i, deb := range debs {
		step.Update(fmt.Sprintf("%d/%d", i, len(debs)))
		if err := unpackDeb(ctx, root, deb); err != nil {
			return fmt.Errorf("unpack %s: %w", deb, err)
		}
	}
	return nil
}

// mergeUsr makes the links of the file system's top that Debian's installer
// makes, and that packages take for granted.
func mergeUsr(root *os.Root, arch string) error {
	dirs := []string{"bin", "sbin", "lib"}
	if arch == "amd64" {
		dirs = append(dirs, "lib64")
	}
	for _, d := range dirs {
		if err := root.MkdirAll("usr/"+d, 0o755); err != nil {
			return err
		}
		if err := root.Symlink("usr/"+d, d); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return nil
}

func unpackDeb(ctx context.Context, root *os.Root, deb string) error {
	return readDeb(ctx, deb, func(r *tar.Reader) error { return unpackTar(root, r) })
}

// Contents returns the paths of a package's regular files, without a leading
// slash.
func Contents(ctx context.Context, deb string) ([]string, error) {
	var names []string
	err := readDeb(ctx, deb, func(r *tar.Reader) error {
		for {
			h, err := r.Next()
			if err == io.EOF {
				return nil
			}
			if err != nil {
				return err
			}
			if h.Typeflag == tar.TypeReg {
				names = append(names, strings.TrimPrefix(path.Clean("/"+h.Name), "/"))
			}
		}
	})
	if err != nil {
		return nil, fmt.Errorf("contents of %s: %w", deb, err)
	}
	return names, nil
}

// readDeb gives a package's files to read.
func readDeb(ctx context.Context, deb string, read func(*tar.Reader) error) error {
	cmd := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", deb)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	readErr := read(tar.NewReader(pipe))
	if readErr == nil {
		// A tar file is padded; dpkg-deb must not die of a closed pipe.
		_, readErr = io.Copy(io.Discard, pipe)
	} else {
		pipe.Close()
	}
	// After a failed read dpkg-deb dies of the closed pipe; a failure of its
	// own ends the read early and is the better explanation.
	if err := cmd.Wait(); err != nil && stderr.Len() > 0 {
		return fmt.Errorf("dpkg-deb: %w: %s", err, bytes.TrimSpace(stderr.Bytes()))
	} else if readErr == nil && err != nil {
		return fmt.Errorf("dpkg-deb: %w", err)
	}
	return readErr
}

func unpackTar(root *os.Root, r *tar.Reader) error {
	for {
		h, err := r.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(path.Clean("/"+h.Name), "/")
		if name == "" {
			continue
		}
		if err := unpackEntry(root, name, h, r); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
}

func unpackEntry(root *os.Root, name string, h *tar.Header, r io.Reader) error {
	mode := fs.FileMode(h.Mode) & 0o777
	if h.Typeflag == tar.TypeDir {
		// A link to a directory that stands in its place is as good.
		if info, err := root.Stat(name); err == nil && info.IsDir() {
			return nil
		}
		if err := root.MkdirAll(name, 0o755); err != nil {
			return err
		}
		return root.Chmod(name, mode|0o700)
	}
	if err := root.MkdirAll(path.Dir(name), 0o755); err != nil {
		return err
	}
	if err := root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	switch h.Typeflag {
	case tar.TypeReg:
		return unpackFile(root, name, mode, h, r)
	case tar.TypeSymlink:
		return root.Symlink(h.Linkname, name)
	case tar.TypeLink:
		return root.Link(strings.TrimPrefix(path.Clean("/"+h.Linkname), "/"), name)
	}
	return fmt.Errorf("file type %q is not one that packages need", h.Typeflag)
}

func unpackFile(root *os.Root, name string, mode fs.FileMode, h *tar.Header, r io.Reader) error {
	f, err := root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode|0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	// The mode again: the umask took its part when the file was made.
	if err := errors.Join(err, f.Chmod(mode|0o600), f.Close()); err != nil {
		return err
	}
	return root.Chtimes(name, h.ModTime, h.ModTime)
}

// digests returns the packages' digests in a fixed order.
func digests(pkgs []Package) []string {
	var sums []string
	for _, p := range pkgs {
		sums = append(sums, p.SHA256)
	}
	slices.Sort(sums)
	return sums
}
