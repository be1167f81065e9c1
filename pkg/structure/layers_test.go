package structure

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/cairn-os/cairn/"

// layers is the dependency order of the tree, lowest first. A package imports
// its own layer and those before it. Folders stand for the packages below
// them as well.
var layers = []struct {
	name     string
	packages []string
}{
	{"values", []string{"pkg/cmdline", "pkg/config", "pkg/slot", "pkg/partition", "pkg/release", "pkg/status", "pkg/token"}},
	{"mechanisms", []string{
		"pkg/atomicfile", "pkg/blockdev", "pkg/verity", "pkg/mount", "pkg/module", "pkg/uevent", "pkg/network",
		"pkg/dhcp", "pkg/sysctl", "pkg/cgroup", "pkg/reaper", "pkg/watchdog", "pkg/kmsg", "pkg/notify",
		"pkg/initctl", "pkg/bootloader", "pkg/power", "pkg/membership", "pkg/balancer", "pkg/chunk", "pkg/crashlog",
	}},
	{"engines", []string{"pkg/sequence", "pkg/supervise", "pkg/provision", "pkg/reset", "pkg/update", "pkg/health"}},
	{"kubernetes", []string{
		"pkg/store", "pkg/control", "pkg/node", "pkg/pki", "pkg/containerd", "pkg/airgap", "pkg/kubeconfig",
		"pkg/join", "pkg/nodecert", "pkg/nodeevent", "pkg/podnet", "pkg/tunnel", "pkg/rotation",
	}},
	{"composition", []string{"pkg/machine", "init/internal"}},
	{"build", []string{"pkg/build", "pkg/vm", "pkg/nodens"}},
	{"whole machines", []string{"pkg/runner", "pkg/sweep"}},
	{"measurements", []string{"pkg/bench"}},
	{"mains", []string{"init", "pkg/cmd", "pkg/structure"}},
}

// kubernetesOnly lists what only the kubernetes layer, the whole machines and
// the mains that wire them may know.
var kubernetesOnly = []string{"k8s.io/", "github.com/k3s-io/kine", "github.com/canonical/go-dqlite", "github.com/containerd/containerd"}

// apartFromBuild are layers that run on a node: nothing of them may import
// the build column.
var apartFromBuild = []string{"values", "mechanisms", "engines", "kubernetes", "composition"}

type source struct {
	dir   string // slash-separated, from the root of the repository
	path  string
	file  *ast.File
	lines int
}

// sources parses every Go file that the repository holds.
func sources(t *testing.T) (*token.FileSet, []source) {
	t.Helper()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	fset := token.NewFileSet()
	var all []source
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == "testdata" || d.Name() == "out" || strings.HasPrefix(d.Name(), ".")) {
			return filepath.SkipDir
		}
		if filepath.Ext(path) != ".go" {
			return nil
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		f, err := parser.ParseFile(fset, path, data, parser.ParseComments)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		rel = filepath.ToSlash(rel)
		all = append(all, source{filepath.ToSlash(filepath.Dir(rel)), rel, f, strings.Count(string(data), "\n")})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(all) < 20 {
		t.Fatalf("found %d Go files below %s; want the whole repository", len(all), root)
	}
	return fset, all
}

// layerOf returns the index of the layer of dir; the longest entry wins.
func layerOf(dir string) (int, bool) {
	best, at := "", -1
	for i, l := range layers {
		for _, p := range l.packages {
			if (dir == p || strings.HasPrefix(dir, p+"/")) && len(p) > len(best) {
				best, at = p, i
			}
		}
	}
	return at, at >= 0
}

func importsOf(s source) []string {
	var paths []string
	for _, spec := range s.file.Imports {
		paths = append(paths, strings.Trim(spec.Path.Value, `"`))
	}
	return paths
}

func TestLayers(t *testing.T) {
	_, all := sources(t)
	for _, s := range all {
		layer, placed := layerOf(s.dir)
		if !placed {
			t.Errorf("%s: package %s has no layer: place it in the table of %s/pkg/structure", s.path, s.dir, module)
			continue
		}
		if strings.HasSuffix(s.path, "_test.go") {
			continue
		}
		for _, path := range importsOf(s) {
			if problem := importProblem(layer, path); problem != "" {
				t.Errorf("%s: %s", s.path, problem)
			}
		}
	}
}

// importProblem says what is wrong with an import of path from layer, or "".
func importProblem(layer int, path string) string {
	name := layers[layer].name
	if inside, ok := strings.CutPrefix(path, module); ok {
		to, placed := layerOf(inside)
		switch {
		case !placed:
			return fmt.Sprintf("imports %s, which has no layer", inside)
		case to > layer:
			return fmt.Sprintf("layer %q imports %s of the higher layer %q", name, inside, layers[to].name)
		}
		return ""
	}
	for _, prefix := range kubernetesOnly {
		if strings.HasPrefix(path, prefix) && slices.Contains([]string{"values", "mechanisms", "engines", "composition", "build"}, name) {
			return fmt.Sprintf("layer %q imports %s: only the kubernetes layer and what wires it may", name, path)
		}
	}
	return ""
}

func TestImportProblem(t *testing.T) {
	index := func(name string) int {
		return slices.IndexFunc(layers, func(l struct {
			name     string
			packages []string
		}) bool {
			return l.name == name
		})
	}
	for _, tt := range []struct {
		layer, path string
		bad         bool
	}{
		{"values", module + "pkg/config", false},
		{"values", module + "pkg/mount", true},
		{"engines", module + "pkg/reaper", false},
		{"mechanisms", "k8s.io/api/core/v1", true},
		{"kubernetes", "k8s.io/api/core/v1", false},
		{"composition", module + "pkg/build/cache", true},
		{"values", module + "pkg/nowhere", true},
	} {
		if got := importProblem(index(tt.layer), tt.path); (got != "") != tt.bad {
			t.Errorf("importProblem(%s, %s) = %q; want a problem: %v", tt.layer, tt.path, got, tt.bad)
		}
	}
	for _, name := range apartFromBuild {
		if index(name) > index("build") {
			t.Errorf("layer %q stands above the build column, so it could import it", name)
		}
	}
}

func TestPackageNames(t *testing.T) {
	_, all := sources(t)
	documented := map[string]bool{}
	for _, s := range all {
		if s.file.Doc != nil {
			documented[s.dir] = true
		}
	}
	for _, s := range all {
		if !documented[s.dir] {
			documented[s.dir] = true // once is enough
			t.Errorf("%s: package has no doc comment", s.dir)
		}
		for _, part := range strings.Split(s.dir, "/") {
			if slices.Contains([]string{"util", "utils", "common", "helper", "helpers", "misc", "shared", "base"}, part) {
				t.Errorf("%s: the name %q does not say what the package is for", s.dir, part)
			}
		}
		if strings.HasPrefix(s.dir, "pkg/") && strings.Count(s.dir, "/") > 3 {
			t.Errorf("%s: more than 3 levels below pkg", s.dir)
		}
	}
}
