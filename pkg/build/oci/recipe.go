package oci

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	"go.yaml.in/yaml/v3"
)

// Recipe is images/<name>/image.yaml: what a container image holds and runs.
type Recipe struct {
	// Tag is the image's full name with its tag.
	Tag string `yaml:"tag"`
	// Packages are Debian's; files are taken from them one by one.
	Packages   []string `yaml:"packages"`
	Files      []File   `yaml:"files"`
	Entrypoint []string `yaml:"entrypoint"`
	User       string   `yaml:"user"` // numeric UID:GID
}

// File is one file of an image; exactly one of its sources is set.
type File struct {
	Path    string  `yaml:"path"`    // in the image, without a leading slash
	Package string  `yaml:"package"` // path in the tree of Packages; becomes executable
	File    string  `yaml:"file"`    // path beside the recipe
	C       *Source `yaml:"c"`       // a static program compiled from C
}

// Source is a C file of a Go module that go.mod requires.
type Source struct {
	Module string `yaml:"module"`
	File   string `yaml:"file"`
	Define string `yaml:"define"`
}

// LoadRecipe reads a recipe strictly.
func LoadRecipe(file string) (*Recipe, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("load recipe: %w", err)
	}
	r, err := parseRecipe(data)
	if err != nil {
		return nil, fmt.Errorf("load recipe %s: %w", file, err)
	}
	return r, nil
}

func parseRecipe(data []byte) (*Recipe, error) {
	var r Recipe
	d := yaml.NewDecoder(bytes.NewReader(data))
	d.KnownFields(true)
	if err := d.Decode(&r); err != nil {
		return nil, err
	}
	if err := d.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, errors.New("more than one document")
	}
	return &r, r.validate()
}

func (r *Recipe) validate() error {
	if _, err := name.NewTag(r.Tag, name.StrictValidation); err != nil {
		return fmt.Errorf("tag: %w", err)
	}
	if len(r.Files) == 0 || len(r.Entrypoint) == 0 {
		return errors.New("files and entrypoint must be there")
	}
	for _, f := range r.Files {
		if !fs.ValidPath(f.Path) {
			return fmt.Errorf("files: %q is no path relative to the image's root", f.Path)
		}
		sources := []bool{f.Package != "", f.File != "", f.C != nil}
		if n := len(slices.DeleteFunc(sources, func(set bool) bool { return !set })); n != 1 {
			return fmt.Errorf("files: %s: has %d sources; want one of package, file and c", f.Path, n)
		}
	}
	uid, gid, ok := strings.Cut(r.User, ":")
	if !ok || strings.Trim(uid, "0123456789")+strings.Trim(gid, "0123456789") != "" || uid == "" || gid == "" {
		return fmt.Errorf("user: %q is no UID:GID", r.User)
	}
	return nil
}
