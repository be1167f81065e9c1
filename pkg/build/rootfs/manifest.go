package rootfs

import (
	"context"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"

	"github.com/cairn-os/cairn/pkg/build/debian"
)

// Manifest names everything in a root file system, with version and digest.
// Sizes are in bytes.
type Manifest struct {
	Packages []Package `json:"packages"`
	Programs []Program `json:"programs"`
	// Dqlite is the version of Debian's source package that cairn-store links.
	Dqlite string `json:"dqlite"`
	// TreeSize is the sum of all files, before compression.
	TreeSize int64 `json:"tree_size"`
	// ImageSize is that of the compressed file system with its hash tree.
	ImageSize int64  `json:"image_size"`
	RootHash  string `json:"root_hash"`
}

// Package is a Debian package and how much of it is in the tree.
type Package struct {
	debian.Package
	Size int64 `json:"size"`
}

// Program is one of ours, or of those that we compile.
type Program struct {
	Path    string   `json:"path"`
	Size    int64    `json:"size"`
	SHA256  string   `json:"sha256"`
	Go      string   `json:"go"` // version of the compiler
	Modules []Module `json:"modules"`
}

// Module is a Go module that a program is made from. Sum is as in go.sum; our
// own module has none.
type Module struct {
	Path    string `json:"path"`
	Version string `json:"version"`
	Sum     string `json:"sum,omitempty"`
}

func (a *assembly) manifest(ctx context.Context, tree string) (*Manifest, error) {
	m := &Manifest{Dqlite: a.Programs.Dqlite}
	for i, p := range a.packages {
		names, err := debian.Contents(ctx, a.debs[i])
		if err != nil {
			return nil, err
		}
		size, err := sizeOf(tree, names)
		if err != nil {
			return nil, err
		}
		m.Packages = append(m.Packages, Package{p, size})
	}
	for _, path := range slices.Sorted(maps.Keys(a.Programs.Files)) {
		p, err := describe(tree, path)
		if err != nil {
			return nil, err
		}
		m.Programs = append(m.Programs, p)
	}
	var err error
	m.TreeSize, err = treeSize(tree)
	return m, err
}

// sizeOf sums up those of the named regular files that are in the tree.
func sizeOf(tree string, names []string) (int64, error) {
	var sum int64
	for _, n := range names {
		info, err := os.Lstat(filepath.Join(tree, n))
		if os.IsNotExist(err) {
			continue
		}
		if err != nil {
			return 0, err
		}
		if info.Mode().IsRegular() {
			sum += info.Size()
		}
	}
	return sum, nil
}

func treeSize(tree string) (int64, error) {
	var sum int64
	err := filepath.WalkDir(tree, func(_ string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			sum += info.Size()
		}
		return err
	})
	return sum, err
}

// describe reads from a program what the Go linker left in it.
func describe(tree, path string) (Program, error) {
	file := filepath.Join(tree, path)
	f, err := os.Open(file)
	if err != nil {
		return Program{}, err
	}
	defer f.Close()
	h := sha256.New()
	size, err := io.Copy(h, f)
	if err != nil {
		return Program{}, fmt.Errorf("hash %s: %w", file, err)
	}
	p := Program{Path: "/" + path, Size: size, SHA256: hex.EncodeToString(h.Sum(nil))}
	info, err := buildinfo.ReadFile(file)
	if err != nil {
		return Program{}, err
	}
	p.Go = info.GoVersion
	for _, m := range append([]*debug.Module{&info.Main}, info.Deps...) {
		if m.Replace != nil {
			m = m.Replace
		}
		p.Modules = append(p.Modules, Module{m.Path, m.Version, m.Sum})
	}
	return p, nil
}
