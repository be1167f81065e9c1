package structure

import (
	"go/ast"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const (
	maxFileLines     = 600
	maxFunctionLines = 120
	maxMainLines     = 60
)

func TestLengths(t *testing.T) {
	fset, all := sources(t)
	for _, s := range all {
		test := strings.HasSuffix(s.path, "_test.go")
		if s.lines > maxFileLines && !test {
			t.Errorf("%s: %d lines; at most %d", s.path, s.lines, maxFileLines)
		}
		for _, d := range s.file.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok || test {
				continue
			}
			limit := maxFunctionLines
			if f.Name.Name == "main" && f.Recv == nil {
				limit = maxMainLines
			}
			if n := fset.Position(f.End()).Line - fset.Position(f.Pos()).Line + 1; n > limit {
				t.Errorf("%s: %s has %d lines; at most %d", s.path, f.Name.Name, n, limit)
			}
		}
	}
}

// TestNoSuddenEnds keeps calls that end a process, or that wait blindly, out
// of everything but the mains.
func TestNoSuddenEnds(t *testing.T) {
	_, all := sources(t)
	banned := map[string]string{
		"os.Exit": "return an error", "log.Fatal": "return an error", "log.Fatalf": "return an error",
		"log.Panic": "return an error", "time.Sleep": "wait for a condition or a timer beside ctx.Done",
	}
	for _, s := range all {
		if strings.HasSuffix(s.path, "_test.go") || filepath.Base(s.path) == "main.go" {
			continue
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			name := callName(call)
			if instead, bad := banned[name]; bad {
				t.Errorf("%s: calls %s; %s", s.path, name, instead)
			}
			if name == "panic" {
				t.Errorf("%s: calls panic; return an error", s.path)
			}
			return true
		})
	}
}

func callName(call *ast.CallExpr) string {
	switch f := call.Fun.(type) {
	case *ast.Ident:
		return f.Name
	case *ast.SelectorExpr:
		if x, ok := f.X.(*ast.Ident); ok {
			return x.Name + "." + f.Sel.Name
		}
	}
	return ""
}

// TestTopLevel holds the list of design.md section 10: what a newcomer sees
// first must stay one short line.
func TestTopLevel(t *testing.T) {
	allowed := []string{"images", "init", "overlay", "pkg", "kernel-config", "hack", "build.sh", "go.mod", "go.sum", "README.md", "LICENSE", "CHANGELOG.md", "out"}
	entries, err := os.ReadDir("../..")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), ".") && !slices.Contains(allowed, e.Name()) {
			t.Errorf("%s does not belong at the top level", e.Name())
		}
	}
}

// TestNoScripts keeps logic out of overlay and images: they are data.
func TestNoScripts(t *testing.T) {
	for _, dir := range []string{"../../overlay", "../../images"} {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			if info.Mode()&0o111 != 0 || strings.HasPrefix(string(data), "#!") {
				t.Errorf("%s: a program among data", path)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
}

func TestBuildScript(t *testing.T) {
	data, err := os.ReadFile("../../build.sh")
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(data), "\n"); n > 100 {
		t.Errorf("build.sh has %d lines; at most 100: logic belongs into pkg/build", n)
	}
}

// TestFormatted runs gofmt, which knows the one true layout.
func TestFormatted(t *testing.T) {
	out, err := exec.Command("gofmt", "-l", "../../init", "../../pkg").CombinedOutput()
	if err != nil {
		t.Fatalf("gofmt: %v\n%s", err, out)
	}
	if len(out) > 0 {
		t.Errorf("not formatted:\n%s", out)
	}
}
