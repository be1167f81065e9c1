// Package module loads kernel modules by name and by the alias that a device announces.
//
// u-root's kmodule does the loading, dependencies first; this package adds the matching of modules.alias, whose patterns
// are those of fnmatch(3), and the sweep over the devices that were there before anyone listened.
package module

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/u-root/u-root/pkg/kmodule"
)

// Loader loads modules of one kernel. It may be used by several goroutines.
type Loader struct {
	aliases *Aliases
	probe   func(name, params string) error
}

// ErrNoModules says that the root has no modules for the running kernel: all it can do is built in.
var ErrNoModules = errors.New("no kernel modules")

// Open prepares to load modules of the kernel release (uname -r) from <root>/usr/lib/modules/<release>.
func Open(root, release string) (*Loader, error) {
	dir := filepath.Join(root, "usr/lib/modules", release)
	f, err := os.Open(filepath.Join(dir, "modules.alias"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", dir, ErrNoModules)
	}
	if err != nil {
		return nil, fmt.Errorf("open modules: %w", err)
	}
	defer f.Close()
	aliases, err := ParseAliases(f)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", f.Name(), err)
	}
	prober, err := kmodule.NewProber(kmodule.ProbeOpts{RootDir: root, KVer: release})
	if err != nil {
		return nil, fmt.Errorf("open modules: %w", err)
	}
	return &Loader{aliases, prober.Probe}, nil
}

// Load loads the module that spec names: "name" or "name param=value ...", as the configuration has it.
func (l *Loader) Load(spec string) error {
	name, params, _ := strings.Cut(strings.TrimSpace(spec), " ")
	if err := l.probe(name, strings.TrimSpace(params)); err != nil {
		return fmt.Errorf("load module %s: %w", name, err)
	}
	return nil
}

// LoadAlias loads every module that claims the device with the given modalias. No module is no error.
func (l *Loader) LoadAlias(modalias string) error {
	var errs []error
	for _, name := range l.aliases.Match(modalias) {
		if err := l.probe(name, ""); err != nil {
			errs = append(errs, fmt.Errorf("load module %s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

// Coldplug loads the modules of all devices below sysRoot ("/sys"): those found before a listener for events was
// there. New devices that a module brings are left to that listener.
func (l *Loader) Coldplug(sysRoot string) error {
	seen := map[string]bool{}
	var errs []error
	err := filepath.WalkDir(filepath.Join(sysRoot, "devices"), func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.Name() != "modalias" || !d.Type().IsRegular() {
			return nil // devices come and go while we look
		}
		data, err := os.ReadFile(p)
		alias := strings.TrimSpace(string(data))
		if err != nil || alias == "" || seen[alias] {
			return nil
		}
		seen[alias] = true
		if err := l.LoadAlias(alias); err != nil {
			errs = append(errs, err)
		}
		return nil
	})
	return errors.Join(append(errs, err)...)
}

// Aliases maps device aliases to modules.
type Aliases struct {
	byBus map[string][]alias // the pattern up to its first colon, which never holds a wildcard
}

type alias struct{ pattern, module string }

// ParseAliases reads the format of modules.alias: "alias <pattern> <module>".
func ParseAliases(r io.Reader) (*Aliases, error) {
	a := &Aliases{byBus: map[string][]alias{}}
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if len(f) != 3 || f[0] != "alias" {
			continue // comments; options never occur in generated files
		}
		bus, _, _ := strings.Cut(f[1], ":")
		a.byBus[bus] = append(a.byBus[bus], alias{f[1], f[2]})
	}
	return a, lines.Err()
}

// Match returns the modules for a device, each once, in the order of the file.
func (a *Aliases) Match(modalias string) []string {
	bus, _, _ := strings.Cut(modalias, ":")
	var names []string
	for _, c := range a.byBus[bus] {
		// A slash is a plain character to fnmatch and none occurs in aliases; path.Match is the same but for that.
		if ok, err := path.Match(c.pattern, modalias); err == nil && ok && !slices.Contains(names, c.module) {
			names = append(names, c.module)
		}
	}
	return names
}
