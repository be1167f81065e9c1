// Package rootfs makes a node's root file system: Debian packages by recipe,
// our programs and overlay/, first as a directory tree and then as a read-only
// EROFS image with a dm-verity tree behind it. The same inputs give the same
// bytes.
package rootfs

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/cairn-os/cairn/pkg/build/binaries"
	"github.com/cairn-os/cairn/pkg/build/cache"
	"github.com/cairn-os/cairn/pkg/build/debian"
	"github.com/cairn-os/cairn/pkg/release"
)

// Options say what goes into a root file system.
type Options struct {
	Repo     string // root of the source tree; empty means the working directory
	Target   string // folder of images/ with the recipe; empty means "amd64"
	Cache    *cache.Cache
	Archive  *debian.Archive // of the target's architecture
	Programs *binaries.Set
	Release  release.Info
	// Extra maps paths in the root file system, without a leading slash, to
	// files or directories on the build machine: kernel modules, baked images.
	Extra map[string]string
}

// Root is a finished root file system. Its files are in the cache and must not
// be changed.
type Root struct {
	// Tree is the unpacked directory.
	Tree string
	// Image holds the EROFS file system, then dm-verity's superblock at block
	// Blocks, and its hash tree. Its size is a multiple of BlockSize.
	Image string
	// Blocks is the size of the file system in blocks of BlockSize.
	Blocks int64
	// RootHash is dm-verity's, 64 hex digits.
	RootHash string
	Manifest Manifest
}

// Build makes the root file system of a target.
func Build(ctx context.Context, o Options) (*Root, error) {
	o.Repo, o.Target = cmp.Or(o.Repo, "."), cmp.Or(o.Target, "amd64")
	r, err := build(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("root file system of %s: %w", o.Target, err)
	}
	return r, nil
}

func build(ctx context.Context, o Options) (*Root, error) {
	recipeFile := filepath.Join(o.Repo, "images", o.Target, "root.yaml")
	recipe, err := LoadRecipe(recipeFile)
	if err != nil {
		return nil, err
	}
	pkgs, err := o.Archive.Resolve(ctx, recipe.resolveNames()...)
	if err != nil {
		return nil, err
	}
	tools, err := openTools(ctx, o)
	if err != nil {
		return nil, err
	}
	a := assembly{Options: o, recipe: recipe, packages: pkgs, tools: tools}
	key := cache.NewKey("root-tree-" + o.Target)
	// What is done with the inputs is one of them: by this package, by those
	// that it imports, and by Debian's unpacking.
	for _, code := range []string{"pkg/build/rootfs", "pkg/build/debian/unpack.go", "go.mod"} {
		if err := key.Tree(filepath.Join(o.Repo, code)); err != nil {
			return nil, err
		}
	}
	if err := a.addInputs(key, recipeFile); err != nil {
		return nil, err
	}
	treeDir, err := o.Cache.Get(ctx, key, a.build)
	if err != nil {
		return nil, err
	}
	root := &Root{Tree: filepath.Join(treeDir, treeName)}
	if err := readJSON(filepath.Join(treeDir, manifestName), &root.Manifest); err != nil {
		return nil, err
	}
	if err := root.addImage(ctx, o, tools, key.Sum()); err != nil {
		return nil, err
	}
	return root, nil
}

// addInputs adds all that a tree is made from to its key.
func (a *assembly) addInputs(key *cache.Key, recipeFile string) error {
	for _, p := range a.packages {
		key.String(p.Name, p.SHA256)
	}
	info, err := a.Release.Encode()
	if err != nil {
		return err
	}
	key.String(string(info), filepath.Base(a.tools)) // named by its content
	if err := key.File(recipeFile); err != nil {
		return err
	}
	if err := key.Tree(a.overlay()); err != nil {
		return err
	}
	for _, p := range slices.Sorted(maps.Keys(binaries.Links)) {
		key.String(p, binaries.Links[p])
	}
	for _, files := range []map[string]string{a.Programs.Files, a.Extra} {
		for _, p := range slices.Sorted(maps.Keys(files)) {
			key.String(p)
			if err := key.Tree(files[p]); err != nil {
				return err
			}
		}
	}
	return nil
}

// openTools returns the tree of the programs that run on the build machine.
func openTools(ctx context.Context, o Options) (string, error) {
	arch, err := debian.MachineArch()
	if err != nil {
		return "", err
	}
	archive := o.Archive
	if archive.Arch() != arch {
		if archive, err = debian.Open(ctx, o.Cache, arch); err != nil {
			return "", err
		}
	}
	dir, _, err := archive.Tree(ctx, "erofs-utils", "busybox")
	return dir, err
}

func readJSON(path string, v any) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	return nil
}

func writeJSON(path string, v any) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(data, '\n'), 0o644)
}
