// Package binaries compiles the programs of a node: our own mains, the
// upstream programs that go.mod lists as tools, and those that need C.
//
// Go's build cache decides what is stale. The same sources give the same
// bytes: nothing of the build machine's paths or clock gets into a program.
package binaries

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cairn-os/cairn/pkg/build/cache"
	"github.com/cairn-os/cairn/pkg/build/child"
	"github.com/cairn-os/cairn/pkg/build/debian"
	"github.com/cairn-os/cairn/pkg/build/progress"
	"github.com/cairn-os/cairn/pkg/release"
)

// Tags are the build tags of every Go program of a node. All share them, so
// that packages are compiled once.
const Tags = "providerless dockerless netgo osusergo urfave_cli_no_docs grpcnotrace no_openssl nosqlite3"

// Options say what to build and with what.
type Options struct {
	Repo    string // root of the source tree; empty means the working directory
	Arch    string // Debian's name of the architecture; empty means "amd64"
	Cache   *cache.Cache
	Archive *debian.Archive // of Arch: libraries to link against, source of dqlite
	Version string          // released version; empty means the tree's own
}

func (o Options) withDefaults() Options {
	o.Repo = cmp.Or(o.Repo, ".")
	o.Arch = cmp.Or(o.Arch, "amd64")
	o.Version = cmp.Or(o.Version, release.Version)
	return o
}

// program is one program of the root file system.
type program struct {
	path string // in the root file system, without a leading slash
	pkg  string // import path, or a folder of the source tree
}

// goPrograms need no C.
var goPrograms = []program{
	{"usr/sbin/init", "./init"},
	{"usr/bin/cairnd", "./pkg/cmd/cairnd"},
	{"usr/bin/cairnctl", "./pkg/cmd/cairnctl"},
	{"usr/bin/cairn-kube", "./pkg/cmd/cairn-kube"},
	{"usr/bin/crictl", "sigs.k8s.io/cri-tools/cmd/crictl"},
	{"usr/bin/containerd-shim-runc-v2", "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2"},
	{"usr/libexec/cni/bridge", "github.com/containernetworking/plugins/plugins/main/bridge"},
	{"usr/libexec/cni/loopback", "github.com/containernetworking/plugins/plugins/main/loopback"},
	{"usr/libexec/cni/host-local", "github.com/containernetworking/plugins/plugins/ipam/host-local"},
	{"usr/libexec/cni/portmap", "github.com/containernetworking/plugins/plugins/meta/portmap"},
	{"usr/libexec/cni/bandwidth", "github.com/containernetworking/plugins/plugins/meta/bandwidth"},
	{"usr/libexec/cni/firewall", "github.com/containernetworking/plugins/plugins/meta/firewall"},
	{"usr/libexec/cni/tuning", "github.com/containernetworking/plugins/plugins/meta/tuning"},
}

// cPrograms link C libraries, all of them statically.
var cPrograms = []program{
	{"usr/bin/cairn-store", "./pkg/cmd/cairn-store"},
	{"usr/bin/runc", "github.com/opencontainers/runc"},
}

// Links are the further names of programs: path to target.
var Links = map[string]string{
	"usr/bin/kubectl": "cairn-kube",
	"usr/bin/ctr":     "cairn-kube",
}

// Set is what Build made.
type Set struct {
	// Files maps paths in the root file system, without a leading slash, to
	// programs on the build machine.
	Files map[string]string
	// Kubernetes is the Kubernetes version, such as "v1.36.4".
	Kubernetes string
	// Dqlite is the version of Debian's source package of dqlite.
	Dqlite string
}

// Build compiles all programs of a node.
func Build(ctx context.Context, o Options) (_ *Set, err error) {
	o = o.withDefaults()
	t, err := targetOf(o.Arch)
	if err != nil {
		return nil, err
	}
	versions, err := moduleVersions(ctx, o.Repo)
	if err != nil {
		return nil, err
	}
	lib, err := libraries(ctx, o, t)
	if err != nil {
		return nil, err
	}
	flags := linkerFlags(o.Version, versions)
	s := &Set{Files: map[string]string{}, Kubernetes: versions[kubernetesModule], Dqlite: lib.version}

	plain := build{repo: o.Repo, dir: filepath.Join(o.Cache.Dir(), "binaries", o.Arch, "go"), env: append(t.goEnv(), "CGO_ENABLED=0"), ldflags: flags, tags: Tags}
	if err := plain.run(ctx, "compile: Go programs", goPrograms, s); err != nil {
		return nil, err
	}
	if err := cgoBuild(o, t, lib, flags).run(ctx, "compile: programs with C libraries", cPrograms, s); err != nil {
		return nil, err
	}
	return s, nil
}

// cgoBuild is the build of programs that link C libraries.
func cgoBuild(o Options, t target, lib cLibraries, ldflags []string) build {
	return build{
		repo: o.Repo,
		dir:  filepath.Join(o.Cache.Dir(), "binaries", o.Arch, "cgo"),
		env:  append(t.goEnv(), lib.env...),
		// A build ID would depend on where the libraries lie.
		ldflags: slices.Concat(ldflags, []string{"-buildid=", "-linkmode=external", "-extldflags=-static"}),
		tags:    Tags + " seccomp",
	}
}

// build is one invocation of the go command.
type build struct {
	repo, dir string
	env       []string
	ldflags   []string
	tags      string
}

func (b build) run(ctx context.Context, name string, programs []program, s *Set) (err error) {
	step := progress.FromContext(ctx).Start(name)
	defer step.Done(&err)
	if err := os.MkdirAll(b.dir, 0o755); err != nil {
		return err
	}
	args := []string{"build", "-trimpath", "-buildvcs=false", "-tags", b.tags,
		"-ldflags", strings.Join(b.ldflags, " "), "-o", b.dir + "/"}
	for _, p := range programs {
		args = append(args, p.pkg)
	}
	if err := goCommand(ctx, b.repo, b.env, args...); err != nil {
		return err
	}
	for _, p := range programs {
		s.Files[p.path] = filepath.Join(b.dir, path.Base(p.pkg))
	}
	return nil
}

// goCommand runs the go command in repo. Its error holds what go wrote.
func goCommand(ctx context.Context, repo string, env []string, args ...string) error {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = repo
	cmd.Env = slices.Concat(os.Environ(), []string{"GOFLAGS=", "GOOS=linux"}, env)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	child.Bind(cmd)
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fmt.Errorf("go %s: %w\n%s", args[0], err, bytes.TrimSpace(out.Bytes()))
	}
	return nil
}
