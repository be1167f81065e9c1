package store

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cairn-os/cairn/pkg/build/binaries"
	"github.com/cairn-os/cairn/pkg/build/child"
	"github.com/cairn-os/cairn/pkg/build/progress"
)

// etcdModule holds etcd's main.
const etcdModule = "go.etcd.io/etcd/server/v3"

// Programs are what is measured.
type Programs struct {
	Store, Etcd string // paths
}

// Compile builds both programs into dir: the store with storeEnv, the go
// command's environment that links it against dqlite, as it is built for a
// node, and etcd from the module that go.mod names.
func Compile(ctx context.Context, dir string, storeEnv []string) (p Programs, err error) {
	step := progress.FromContext(ctx).Start("compile: the store and etcd")
	defer step.Done(&err)
	p = Programs{Store: filepath.Join(dir, "cairn-store"), Etcd: filepath.Join(dir, "etcd")}
	const static = "-s -w -linkmode=external -extldflags=-static"
	if err := goBuild(ctx, p.Store, static, "github.com/cairn-os/cairn/pkg/cmd/cairn-store", storeEnv); err != nil {
		return p, err
	}
	return p, goBuild(ctx, p.Etcd, "-s -w", etcdModule, []string{"CGO_ENABLED=0"})
}

func goBuild(ctx context.Context, path, ldflags, pkg string, env []string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-tags", binaries.Tags, "-ldflags", ldflags, "-o", path, pkg)
	cmd.Env = slices.Concat(os.Environ(), env)
	child.Bind(cmd)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", pkg, err, out)
	}
	return nil
}

// peer names the etcd that is measured, such as "etcd 3.6.13".
func (p Programs) peer(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, p.Etcd, "--version").Output()
	if err != nil {
		return "", fmt.Errorf("%s --version: %w", p.Etcd, err)
	}
	line, _, _ := strings.Cut(string(out), "\n")
	_, version, ok := strings.Cut(line, "Version: ")
	if !ok {
		return "", fmt.Errorf("%s --version: %q tells no version", p.Etcd, line)
	}
	return "etcd " + version, nil
}
