// Package oci builds container images by recipe, without a registry and
// without a container runtime. The same inputs give the same bytes.
package oci

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/cairn-os/cairn/pkg/build/cache"
	"github.com/cairn-os/cairn/pkg/build/debian"
	"github.com/cairn-os/cairn/pkg/build/progress"
)

// Options say which image is built, and from what.
type Options struct {
	Repo    string // root of the source tree
	Name    string // folder of images/ with the recipe
	Cache   *cache.Cache
	Archive *debian.Archive // of the target's architecture
}

// Image is a finished image. Its file is in the cache and must not be changed.
type Image struct {
	Tar string // of the layout that `docker save` writes
	Tag string
}

// content is a file of an image, ready to be written.
type content struct {
	path string
	data []byte
	mode int64
}

// Build makes the image of a recipe.
func Build(ctx context.Context, o Options) (_ Image, err error) {
	dir := filepath.Join(o.Repo, "images", o.Name)
	r, err := LoadRecipe(filepath.Join(dir, "image.yaml"))
	if err != nil {
		return Image{}, err
	}
	step := progress.FromContext(ctx).Start("image " + r.Tag)
	defer step.Done(&err)
	files, err := o.contents(ctx, dir, r)
	if err != nil {
		return Image{}, fmt.Errorf("image %s: %w", o.Name, err)
	}
	key := cache.NewKey("image-" + o.Name)
	// What this package does with its inputs is one of them.
	if err := key.Tree(filepath.Join(o.Repo, "pkg/build/oci")); err != nil {
		return Image{}, err
	}
	key.String(o.Archive.Arch(), r.Tag, r.User)
	key.String(r.Entrypoint...)
	for _, f := range files {
		key.String(f.path, string(f.data), fmt.Sprint(f.mode))
	}
	const file = "image.tar"
	out, err := o.Cache.Get(ctx, key, func(_ context.Context, dir string) error {
		img, err := assemble(r, o.Archive.Arch(), files)
		if err != nil {
			return err
		}
		tag, err := name.NewTag(r.Tag, name.StrictValidation)
		if err != nil {
			return err
		}
		return tarball.WriteToFile(filepath.Join(dir, file), tag, img)
	})
	if err != nil {
		return Image{}, fmt.Errorf("image %s: %w", o.Name, err)
	}
	return Image{Tar: filepath.Join(out, file), Tag: r.Tag}, nil
}

// contents collects the files of a recipe, sorted by path.
func (o Options) contents(ctx context.Context, dir string, r *Recipe) ([]content, error) {
	var tree string
	if len(r.Packages) > 0 {
		var err error
		if tree, _, err = o.Archive.Tree(ctx, r.Packages...); err != nil {
			return nil, err
		}
	}
	var all []content
	for _, f := range r.Files {
		c := content{path: f.Path, mode: 0o755}
		var err error
		switch {
		case f.C != nil:
			c.data, err = o.compile(ctx, *f.C)
		case f.Package != "":
			c.data, err = os.ReadFile(filepath.Join(tree, filepath.FromSlash(f.Package)))
		default:
			c.mode = 0o644
			c.data, err = os.ReadFile(filepath.Join(dir, filepath.FromSlash(f.File)))
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f.Path, err)
		}
		all = append(all, c)
	}
	slices.SortFunc(all, func(a, b content) int { return strings.Compare(a.path, b.path) })
	return all, nil
}

// compilers are Debian's C compilers by architecture.
func compilers() map[string]string {
	return map[string]string{
		"amd64": "x86_64-linux-gnu-gcc", "arm64": "aarch64-linux-gnu-gcc", "armhf": "arm-linux-gnueabihf-gcc",
	}
}

// compile makes a static program of a C file.
func (o Options) compile(ctx context.Context, s Source) ([]byte, error) {
	cc, ok := compilers()[o.Archive.Arch()]
	if !ok {
		return nil, fmt.Errorf("compile %s: no compiler known for %s", s.File, o.Archive.Arch())
	}
	list := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", s.Module)
	list.Dir = o.Repo
	out, err := list.Output()
	if err != nil {
		return nil, fmt.Errorf("find module %s: %w", s.Module, err)
	}
	temp, err := os.MkdirTemp("", "cairn-image-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(temp)
	source := filepath.Join(strings.TrimSpace(string(out)), filepath.FromSlash(s.File))
	program := filepath.Join(temp, "program")
	cmd := exec.CommandContext(ctx, cc, "-Os", "-static", "-s", "-Wl,--build-id=none", "-D"+s.Define, "-o", program, source)
	if text, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("compile %s: %w: %s", s.File, err, bytes.TrimSpace(text))
	}
	return os.ReadFile(program)
}

// assemble makes an image of one layer. Times are left at the epoch.
func assemble(r *Recipe, arch string, files []content) (v1.Image, error) {
	data, err := layer(files)
	if err != nil {
		return nil, err
	}
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil })
	if err != nil {
		return nil, err
	}
	img, err := mutate.AppendLayers(empty.Image, l)
	if err != nil {
		return nil, err
	}
	cfg, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	cfg = cfg.DeepCopy()
	cfg.OS, cfg.Architecture = "linux", arch
	if arch == "armhf" {
		cfg.Architecture, cfg.Variant = "arm", "v7"
	}
	cfg.Config = v1.Config{Entrypoint: r.Entrypoint, User: r.User, WorkingDir: "/", Env: []string{"PATH=/bin:/usr/bin:/sbin:/usr/sbin"}}
	return mutate.ConfigFile(img, cfg)
}

// layer is a tar of the files and the directories above them.
func layer(files []content) ([]byte, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	made := map[string]bool{".": true}
	for _, f := range files {
		var above []string
		for d := path.Dir(f.path); !made[d]; d = path.Dir(d) {
			made[d] = true
			above = append(above, d)
		}
		slices.Reverse(above)
		for _, d := range above {
			if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: d + "/", Mode: 0o755}); err != nil {
				return nil, err
			}
		}
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: f.path, Mode: f.mode, Size: int64(len(f.data))}); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.data); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}
