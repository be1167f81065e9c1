package rootfs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"

	"go.yaml.in/yaml/v3"
)

// Recipe is images/<target>/root.yaml: what a root file system holds beside
// our own programs and overlay/.
type Recipe struct {
	// Packages are Debian's; what they depend on comes along, save Without.
	Packages []string `yaml:"packages"`
	Without  []string `yaml:"without"`
	// Remove lists path.Match patterns of what is deleted after unpacking.
	Remove []string `yaml:"remove"`
	// AppletsWithout are applets of busybox that get no link.
	AppletsWithout []string `yaml:"applets_without"`
	// Directories are made empty; Links map a path to a link's target.
	Directories []string          `yaml:"directories"`
	Links       map[string]string `yaml:"links"`
	// Modes are permission bits that differ from what the file came with.
	Modes map[string]uint32 `yaml:"modes"`
}

// LoadRecipe reads a recipe. An unknown key, a second document and a path that
// is not relative to the root are errors.
func LoadRecipe(file string) (*Recipe, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("load recipe: %w", err)
	}
	var r Recipe
	d := yaml.NewDecoder(bytes.NewReader(data))
	d.KnownFields(true)
	if err := d.Decode(&r); err != nil {
		return nil, fmt.Errorf("load recipe %s: %w", file, err)
	}
	if err := d.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("load recipe %s: more than one document", file)
	}
	if err := r.validate(); err != nil {
		return nil, fmt.Errorf("load recipe %s: %w", file, err)
	}
	return &r, nil
}

func (r *Recipe) validate() error {
	if len(r.Packages) == 0 {
		return errors.New("packages: none")
	}
	for _, p := range r.Remove {
		if _, err := path.Match(p, ""); err != nil || !fs.ValidPath(p) {
			return fmt.Errorf("remove: %q is no pattern of a relative path", p)
		}
	}
	paths := append([]string{}, r.Directories...)
	for p := range r.Links {
		paths = append(paths, p)
	}
	for p, mode := range r.Modes {
		paths = append(paths, p)
		if mode&^0o755 != 0 {
			return fmt.Errorf("modes: %s: %#o gives more than 0755", p, mode)
		}
	}
	for _, p := range paths {
		if !fs.ValidPath(p) || p == "." {
			return fmt.Errorf("%q is no relative path", p)
		}
	}
	return nil
}

// resolveNames are the recipe's packages as debian.Archive.Resolve takes them.
func (r *Recipe) resolveNames() []string {
	names := append([]string{}, r.Packages...)
	for _, n := range r.Without {
		names = append(names, n+"-")
	}
	return names
}
