package rootfs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cairn-os/cairn/pkg/build/binaries"
	"github.com/cairn-os/cairn/pkg/build/debian"
	"github.com/cairn-os/cairn/pkg/build/progress"
	"github.com/cairn-os/cairn/pkg/release"
)

// Names in a cache entry.
const (
	treeName     = "tree"
	manifestName = "manifest.json"
)

// assembly is one tree in the making.
type assembly struct {
	Options
	recipe   *Recipe
	packages []debian.Package
	tools    string

	root *os.Root
	debs []string
}

func (a *assembly) overlay() string { return filepath.Join(a.Repo, "overlay") }

// build fills a cache entry with the tree and its manifest.
func (a *assembly) build(ctx context.Context, dir string) (err error) {
	step := progress.FromContext(ctx).Start("root: assemble tree")
	defer step.Done(&err)
	tree := filepath.Join(dir, treeName)
	if err := os.Mkdir(tree, 0o755); err != nil {
		return err
	}
	if a.root, err = os.OpenRoot(tree); err != nil {
		return err
	}
	defer a.root.Close()
	for _, s := range []struct {
		name string
		run  func(ctx context.Context) error
	}{
		{"packages", a.unpack},
		{"removals", a.remove},
		{"certificates", a.certificates},
		{"applets", a.applets},
		{"overlay", func(context.Context) error { return a.copyTree(a.overlay(), ".") }},
		{"programs", a.programs},
		{"extra files", a.extra},
		{"folders and links", a.foldersAndLinks},
		{"release", a.release},
		{"modes", a.modes},
	} {
		step.Update(s.name)
		if err := s.run(ctx); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	if problems := Audit(tree); len(problems) > 0 {
		return fmt.Errorf("the tree must not be as it is:\n%s", strings.Join(problems, "\n"))
	}
	step.Update("manifest")
	m, err := a.manifest(ctx, tree)
	if err != nil {
		return err
	}
	return writeJSON(filepath.Join(dir, manifestName), m)
}

func (a *assembly) unpack(ctx context.Context) (err error) {
	if a.debs, err = a.Archive.Fetch(ctx, a.packages); err != nil {
		return err
	}
	return a.Archive.Unpack(ctx, a.root.Name(), a.debs)
}

// remove deletes what the recipe says. A pattern that matches nothing is an
// error: it is outdated, or misspelt and leaves behind what it meant.
func (a *assembly) remove(context.Context) error {
	for _, pattern := range a.recipe.Remove {
		found, err := fs.Glob(a.root.FS(), pattern)
		if err != nil {
			return fmt.Errorf("%s: %w", pattern, err)
		}
		if len(found) == 0 {
			return fmt.Errorf("remove: nothing matches %s", pattern)
		}
		for _, p := range found {
			if err := a.root.RemoveAll(p); err != nil {
				return err
			}
		}
	}
	return nil
}

const (
	certificateDir    = "usr/share/ca-certificates"
	certificateBundle = "etc/ssl/certs/ca-certificates.crt"
)

// certificates does what ca-certificates' maintainer script would: one file of
// all of Mozilla's roots. The single files are of no more use then.
func (a *assembly) certificates(context.Context) error {
	found, err := fs.Glob(a.root.FS(), certificateDir+"/mozilla/*.crt")
	if err != nil {
		return err
	}
	if len(found) < 50 {
		return fmt.Errorf("found %d certificates in %s; want at least 50", len(found), certificateDir)
	}
	var bundle bytes.Buffer
	for _, p := range found {
		data, err := a.root.ReadFile(p)
		if err != nil {
			return err
		}
		bundle.Write(bytes.TrimRight(data, "\n"))
		bundle.WriteByte('\n')
	}
	if err := a.root.RemoveAll(certificateDir); err != nil {
		return err
	}
	return a.write(certificateBundle, bundle.Bytes())
}

// applets links the names under which busybox plays other programs, unless a
// real one is there.
func (a *assembly) applets(ctx context.Context) error {
	out, err := debian.Command(ctx, a.tools, "usr/bin/busybox", "--list-full").Output()
	if err != nil {
		return fmt.Errorf("list busybox's applets: %w", err)
	}
	names := strings.Fields(string(out))
	if len(names) < 100 {
		return fmt.Errorf("busybox names %d applets; want at least 100", len(names))
	}
	for _, name := range names {
		base := path.Base(name)
		if slices.Contains(a.recipe.AppletsWithout, base) || a.provided(base) {
			continue
		}
		dir := "usr/bin"
		if strings.Contains(path.Dir(name), "sbin") {
			dir = "usr/sbin"
		}
		target := "busybox"
		if dir == "usr/sbin" {
			target = "../bin/busybox"
		}
		if err := a.root.Symlink(target, path.Join(dir, base)); err != nil {
			return err
		}
	}
	return nil
}

// provided reports whether a program of that name is in the tree or comes
// with ours.
func (a *assembly) provided(name string) bool {
	for _, dir := range []string{"usr/bin", "usr/sbin"} {
		p := path.Join(dir, name)
		if _, err := a.root.Lstat(p); err == nil {
			return true
		}
		if a.Programs.Files[p] != "" || binaries.Links[p] != "" {
			return true
		}
	}
	return false
}

func (a *assembly) programs(context.Context) error {
	for _, p := range slices.Sorted(maps.Keys(a.Programs.Files)) {
		if err := a.copyFile(a.Programs.Files[p], p, 0o755); err != nil {
			return err
		}
	}
	return a.links(binaries.Links)
}

func (a *assembly) extra(context.Context) error {
	for _, p := range slices.Sorted(maps.Keys(a.Extra)) {
		if err := a.copyTree(a.Extra[p], p); err != nil {
			return err
		}
	}
	return nil
}

func (a *assembly) foldersAndLinks(context.Context) error {
	for _, d := range a.recipe.Directories {
		if err := a.root.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	return a.links(a.recipe.Links)
}

func (a *assembly) links(links map[string]string) error {
	for _, p := range slices.Sorted(maps.Keys(links)) {
		if err := a.root.Symlink(links[p], p); err != nil {
			return err
		}
	}
	return nil
}

// release writes who this system is, for our own programs and for others.
func (a *assembly) release(context.Context) error {
	info, err := a.Release.Encode()
	if err != nil {
		return err
	}
	if err := a.write(strings.TrimPrefix(release.Path, "/"), info); err != nil {
		return err
	}
	text := fmt.Sprintf("NAME=Cairn\nID=cairn\nID_LIKE=debian\nPRETTY_NAME=\"Cairn %s\"\nVERSION_ID=%s\n", a.Release.Version, a.Release.Version)
	if err := a.write("usr/lib/os-release", []byte(text)); err != nil {
		return err
	}
	return a.root.Symlink("../usr/lib/os-release", "etc/os-release")
}

func (a *assembly) modes(context.Context) error {
	for p, mode := range a.recipe.Modes {
		if err := a.root.Chmod(p, fs.FileMode(mode)); err != nil {
			return err
		}
	}
	return nil
}

// write makes a file with mode 0644.
func (a *assembly) write(name string, data []byte) error {
	return a.create(name, bytes.NewReader(data), 0o644)
}

func (a *assembly) copyFile(from, name string, mode fs.FileMode) error {
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	defer f.Close()
	return a.create(name, f, mode)
}

func (a *assembly) create(name string, r io.Reader, mode fs.FileMode) error {
	if err := a.root.MkdirAll(path.Dir(name), 0o755); err != nil {
		return err
	}
	f, err := a.root.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	return errors.Join(err, f.Chmod(mode), f.Close())
}

// copyTree copies a file or a directory with all in it. The modes of the
// source do not count, because git and umasks do not keep them: files become
// 0644, folders 0755.
func (a *assembly) copyTree(from, to string) error {
	return filepath.WalkDir(from, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, p)
		if err != nil {
			return err
		}
		name := path.Join(to, filepath.ToSlash(rel))
		switch {
		case d.IsDir():
			return a.root.MkdirAll(name, 0o755)
		case d.Type()&fs.ModeSymlink != 0:
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			return a.root.Symlink(target, name)
		case d.Type().IsRegular():
			return a.copyFile(p, name, 0o644)
		}
		return fmt.Errorf("%s: neither file, folder nor link", p)
	})
}
