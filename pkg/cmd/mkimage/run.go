package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/cairn-os/cairn/pkg/build/image"
	"github.com/cairn-os/cairn/pkg/runner"
	"github.com/cairn-os/cairn/pkg/vm"
)

// runOptions are the flags of "build.sh run".
type runOptions struct {
	check    bool
	native   bool
	keep     bool
	firmware string
	memory   int
	diskGiB  int64
	timeout  time.Duration
	config   string
	dir      string
}

func runCommand() *cobra.Command {
	var o runOptions
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Build the image and boot it",
		Long: "Build the image and boot it: in QEMU, or with --native in namespaces of this machine.\n\n" +
			"Without --check the console stays attached until the machine is off. Meanwhile, in a\n" +
			"second terminal:\n\n" +
			"  export KUBECONFIG=out/run/kubeconfig\n  out/run/kubectl get nodes\n" +
			"  ssh -i out/run/ssh_key -p 2222 -o NoHostAuthenticationForLocalhost=yes root@127.0.0.1 cairnctl status\n\n" +
			"Ctrl-A X leaves the console and pulls the plug.",
		Example: "  ./build.sh run --check\n  ./build.sh run --firmware uefi --memory 512\n  ./build.sh run --native --check",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return run(cmd.Context(), o, cmd.OutOrStdout()) },
	}
	f := cmd.Flags()
	f.BoolVar(&o.check, "check", false, "deploy a pod, fetch its page through a Service, print the timeline, power off; exit code 0 if all of it worked")
	f.BoolVar(&o.native, "native", false, "run the root tree in namespaces of this machine instead of QEMU (needs root)")
	f.BoolVar(&o.keep, "keep", false, "boot the machine of the last run again instead of a new one")
	f.StringVar(&o.firmware, "firmware", "bios", "what QEMU starts with: bios or uefi")
	f.IntVar(&o.memory, "memory", 1024, "memory of the QEMU machine in MiB")
	f.Int64Var(&o.diskGiB, "disk", 8, "size of the QEMU machine's disk in GiB (sparse)")
	f.DurationVar(&o.timeout, "timeout", 15*time.Minute, "how long --check waits")
	f.StringVar(&o.config, "config", "", "cloud-config to merge over the demonstration's")
	f.StringVar(&o.dir, "dir", "out/run", "where the machine's files go")
	return cmd
}

func run(ctx context.Context, o runOptions, out io.Writer) (err error) {
	if o.firmware != string(vm.BIOS) && o.firmware != string(vm.UEFI) {
		return fmt.Errorf("--firmware %q: want bios or uefi", o.firmware)
	}
	b, err := image.New(ctx, image.Options{})
	if err != nil {
		return err
	}
	built, err := b.Image(ctx, false)
	if err != nil {
		return err
	}
	if o.check {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, o.timeout)
		defer cancel()
	}
	var input io.Reader
	if !o.check {
		var restore func() error
		if ctx, input, restore, err = terminal(ctx); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, restore()) }()
	}
	// The machine does not end with ctx: it is ended in order, below.
	m, stop, err := start(context.WithoutCancel(ctx), o, built, input, out)
	if err != nil {
		return err
	}
	if o.check {
		return errors.Join(runner.Check(ctx, m, built, o.dir, out), stop())
	}
	go func() {
		if _, err := runner.Access(ctx, m, built, o.dir); err == nil {
			fmt.Fprintf(out, "\r\n==> KUBECONFIG=%s/kubeconfig %s/kubectl get nodes\r\n", o.dir, o.dir)
		}
	}()
	select {
	case <-m.Done():
		return nil
	case <-ctx.Done():
		return m.Kill()
	}
}

// start starts the machine. stop ends it in order and returns when it is off.
func start(ctx context.Context, o runOptions, built *image.Output, input io.Reader, out io.Writer) (m runner.Machine, stop func() error, err error) {
	if err := os.MkdirAll(o.dir, 0o755); err != nil {
		return nil, nil, err
	}
	log, err := os.Create(filepath.Join(o.dir, "console.log"))
	if err != nil {
		return nil, nil, err
	}
	console := io.Writer(log)
	if !o.check {
		console = io.MultiWriter(log, out)
	}
	end := func(stop func(context.Context) error) func() error {
		return func() error {
			ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
			defer cancel()
			return errors.Join(stop(ctx), log.Close())
		}
	}
	if o.native {
		n, err := startNative(ctx, o, built, console, input)
		if err != nil {
			return nil, nil, err
		}
		return n, end(n.Stop), nil
	}
	v, err := startVM(ctx, o, built, console, input)
	if err != nil {
		return nil, nil, err
	}
	fmt.Fprintf(out, "==> boots by %s on %s\n", o.firmware, v.Emulated())
	return v, end(v.Stop), nil
}

func startNative(ctx context.Context, o runOptions, built *image.Output, console io.Writer, input io.Reader) (*runner.Native, error) {
	state := filepath.Join(o.dir, "native")
	if !o.keep {
		if err := os.RemoveAll(state); err != nil {
			return nil, err
		}
	}
	extra, err := readConfig(o.config)
	if err != nil {
		return nil, err
	}
	return runner.StartNative(ctx, built, runner.NativeOptions{
		Name: "cairn-1", Address: netip.MustParsePrefix("10.88.0.2/24"), State: state, Console: console, Input: input, Config: extra,
	})
}

func startVM(ctx context.Context, o runOptions, built *image.Output, console io.Writer, input io.Reader) (*runner.VM, error) {
	extra, err := readConfig(o.config)
	if err != nil {
		return nil, err
	}
	options := runner.VMOptions{
		Name: "cairn-1", Dir: o.dir, DiskSize: o.diskGiB << 30, Firmware: vm.Firmware(o.firmware), MemoryMiB: o.memory,
		Console: console, Input: input, Config: extra, APIPort: 6443, SSHPort: 2222, PagePort: 8080, Watchdog: true,
	}
	create := runner.NewVM
	if o.keep {
		create = runner.OpenVM
	}
	v, err := create(built, options)
	if err != nil {
		return nil, err
	}
	return v, v.Start(ctx)
}

func readConfig(path string) ([]byte, error) {
	if path == "" {
		return nil, nil
	}
	return os.ReadFile(path)
}

// terminal puts the terminal into raw mode, so that keys reach the machine,
// and returns a context that ends at Ctrl-A X.
func terminal(ctx context.Context) (context.Context, io.Reader, func() error, error) {
	nothing := func() error { return nil }
	fd := int(os.Stdin.Fd())
	if !term.IsTerminal(fd) {
		return ctx, nil, nothing, nil
	}
	state, err := term.MakeRaw(fd)
	if err != nil {
		return nil, nil, nil, err
	}
	ctx, leave := context.WithCancel(ctx)
	return ctx, &escapeReader{r: os.Stdin, leave: leave}, func() error { return term.Restore(fd, state) }, nil
}

// escapeReader passes keys on and watches for Ctrl-A X.
type escapeReader struct {
	r      io.Reader
	leave  func()
	prefix bool
}

// Read implements io.Reader.
func (e *escapeReader) Read(p []byte) (int, error) {
	n, err := e.r.Read(p)
	for _, c := range p[:n] {
		if e.prefix && (c == 'x' || c == 'X') {
			e.leave()
			return 0, io.EOF
		}
		e.prefix = c == 'A'-'@'
	}
	return n, err
}
