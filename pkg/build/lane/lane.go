// Package lane runs the project's tests in lanes: unit (values, formats and
// state machines), native (machines in namespaces of this one) and vm (the
// real image in QEMU), and apart from these some that take long. It counts what was skipped and says why, so that a
// test which never runs does not look like one that passes.
package lane

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/cairn-os/cairn/pkg/build/binaries"
	"github.com/cairn-os/cairn/pkg/build/child"
	"github.com/cairn-os/cairn/pkg/build/progress"
)

// Variable is the environment variable that names the lane a test runs in.
const Variable = "CAIRN_LANE"

// Names lists the lanes in the order in which they run.
var Names = []string{"unit", "native", "vm"}

// Apart lists the lanes that run only when they are named, because they take
// long. Their tests run briefly in the unit lane as well.
var Apart = []string{"chaos"}

// Require skips t unless it runs in the lane name.
func Require(t testing.TB, name string) {
	t.Helper()
	if os.Getenv(Variable) != name {
		t.Skipf("belongs to the %s lane: ./build.sh test %s", name, name)
	}
}

// Options say what to run and where the output goes.
type Options struct {
	Lanes  []string // of Names and Apart; empty means all of Names
	Run    string   // the -run pattern of go test
	Images string   // directory of the built image's outputs, for native and vm
	Output io.Writer
	// StoreEnv is the environment that links the store's tests against dqlite.
	StoreEnv []string
}

// command is one program of a lane.
type command struct {
	name string
	argv []string
	env  []string
	test bool // its output is that of go test -json
}

// storePackages need cgo, so they are tested by commands of their own.
var storePackages = []string{"./pkg/store/...", "./pkg/cmd/cairn-store/..."}

// raced packages are tested a second time under the race detector. The list
// is short because it must not import Kubernetes, which would be compiled
// again for it.
var raced = []string{
	"./pkg/supervise/...", "./pkg/reaper/...", "./pkg/notify/...", "./pkg/initctl/...", "./pkg/sequence/...",
	"./pkg/network/...", "./pkg/dhcp/...", "./pkg/build/cache/...", "./pkg/build/progress/...",
	"./pkg/bootloader/sysfile/...", "./pkg/bootloader/grubenv/...", "./pkg/health/...", "./pkg/update/source/...", "./pkg/machine/upgrade/...",
}

// lanePackages hold the tests of the lanes that start machines.
var lanePackages = map[string][]string{
	"native": {"./pkg/nodens/...", "./pkg/bench/cluster/...", "./pkg/runner/..."},
	"vm":     {"./pkg/build/grub/...", "./pkg/vm/...", "./pkg/runner/..."},
}

// apartPackages hold the tests of the lanes apart, all of them the store's.
var apartPackages = map[string][]string{
	"chaos": {"./pkg/store/chaos/...", "./pkg/store/powerloss/..."},
}

// Run runs the lanes one after the other and returns an error when anything
// failed. It goes on after a failure, so that one run shows all of them.
func Run(ctx context.Context, o Options) error {
	lanes := o.Lanes
	if len(lanes) == 0 {
		lanes = Names
	}
	var r results
	var failed []string
	for _, lane := range lanes {
		if known := slices.Concat(Names, Apart); !slices.Contains(known, lane) {
			return fmt.Errorf("lane %q: want one of %s", lane, strings.Join(known, ", "))
		}
		cmds, err := commands(ctx, lane, o)
		if err != nil {
			return err
		}
		for _, c := range cmds {
			if err := run(ctx, o, lane, c, &r); err != nil {
				failed = append(failed, fmt.Sprintf("%s: %s: %v", lane, c.name, err))
			}
		}
	}
	r.print(o.Output)
	if len(failed) > 0 {
		return errors.New(strings.Join(failed, "\n"))
	}
	return ctx.Err()
}

func commands(ctx context.Context, lane string, o Options) ([]command, error) {
	if packages, apart := apartPackages[lane]; apart {
		env := append([]string{"CAIRN_POWERCUTS=" + cmp.Or(os.Getenv("CAIRN_POWERCUTS"), "1000")}, o.StoreEnv...)
		return []command{goTest(lane, o, env, "-p=1", "-timeout=24h", packages)}, nil
	}
	if lane != "unit" {
		return []command{goTest(lane, o, []string{"CGO_ENABLED=0"}, "-p=1", "-timeout=80m", lanePackages[lane])}, nil
	}
	withoutStore, err := packagesWithoutStore(ctx)
	if err != nil {
		return nil, err
	}
	plain := []string{"CGO_ENABLED=0"}
	cmds := []command{
		{name: "vet", argv: slices.Concat([]string{"go", "vet", "-tags", binaries.Tags}, []string{"./..."}), env: plain},
		{name: "vet store", argv: slices.Concat([]string{"go", "vet", "-tags", binaries.Tags}, storePackages), env: o.StoreEnv},
		{name: "staticcheck", argv: slices.Concat([]string{"go", "tool", "staticcheck", "-tags", strings.ReplaceAll(binaries.Tags, " ", ",")}, checked), env: plain},
	}
	for _, arch := range []string{"arm64", "arm"} {
		cmds = append(cmds, command{
			name: "compile for " + arch,
			argv: []string{"go", "build", "-tags", binaries.Tags, "-o", os.DevNull, "./init", "./pkg/cmd/cairnctl"},
			env:  []string{"CGO_ENABLED=0", "GOARCH=" + arch, "GOARM=7"},
		})
	}
	return append(cmds,
		goTest("unit", o, plain, "-p=2", "-timeout=20m", withoutStore),
		goTest("store", o, o.StoreEnv, "-p=1", "-timeout=20m", storePackages),
		goTest("race", o, []string{"CGO_ENABLED=1"}, "-p=2", "-timeout=20m", append([]string{"-race"}, raced...)),
	), nil
}

// packagesWithoutStore lists what is tested without cgo. Without it most of
// the store's tests would compile to nothing, and look as if they had passed.
func packagesWithoutStore(ctx context.Context) ([]string, error) {
	out, err := exec.CommandContext(ctx, "go", "list", "-tags", binaries.Tags, "./...").Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w", err)
	}
	return slices.DeleteFunc(strings.Fields(string(out)), func(path string) bool {
		return slices.ContainsFunc(storePackages, func(pattern string) bool {
			return strings.Contains(path+"/", strings.TrimSuffix(strings.TrimPrefix(pattern, "."), "..."))
		})
	}), nil
}

// checked are the trees that staticcheck reads. The kubernetes layer is left
// to vet: staticcheck would analyse all of Kubernetes for it.
var checked = []string{
	"./init/...", "./pkg/cmdline/...", "./pkg/config/...", "./pkg/slot/...", "./pkg/partition/...", "./pkg/atomicfile/...",
	"./pkg/blockdev/...", "./pkg/verity/...", "./pkg/mount/...", "./pkg/supervise/...", "./pkg/reaper/...", "./pkg/initctl/...",
	"./pkg/network/...", "./pkg/provision/...", "./pkg/machine/...", "./pkg/cmd/cairnd/...", "./pkg/cmd/cairnctl/...",
	"./pkg/build/...", "./pkg/vm/...", "./pkg/nodens/...", "./pkg/sweep/...",
	"./pkg/bootloader/...", "./pkg/release/...", "./pkg/chunk/...", "./pkg/crashlog/...", "./pkg/update/...", "./pkg/health/...",
}

func goTest(name string, o Options, env []string, parallel, timeout string, packages []string) command {
	argv := []string{"go", "test", "-json", "-tags", binaries.Tags, parallel, timeout}
	if o.Run != "" {
		argv = append(argv, "-run", o.Run)
	}
	return command{name: "test " + name, argv: append(argv, packages...), env: env, test: true}
}

func run(ctx context.Context, o Options, lane string, c command, r *results) (err error) {
	step := progress.FromContext(ctx).Start(lane + ": " + c.name)
	defer step.Done(&err)
	cmd := exec.CommandContext(ctx, c.argv[0], c.argv[1:]...)
	cmd.Env = slices.Concat(os.Environ(), c.env, []string{Variable + "=" + lane, "CAIRN_IMAGES=" + o.Images})
	child.Bind(cmd) // tests start machines, which must not outlive a run
	if !c.test {
		out, err := cmd.CombinedOutput()
		if err != nil {
			fmt.Fprintf(o.Output, "%s", out)
		}
		return err
	}
	cmd.Stderr = o.Output
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	readErr := r.read(pipe, o.Output, step.Update)
	return errors.Join(cmd.Wait(), readErr)
}
