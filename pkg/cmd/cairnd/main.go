// Command cairnd is the machine daemon: administration interface, clock, and the watch over the Kubernetes node.
// Init starts it; its interface is the configuration file.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/cairn-os/cairn/pkg/config"
	"github.com/cairn-os/cairn/pkg/initctl"
	"github.com/cairn-os/cairn/pkg/machine"
	"github.com/cairn-os/cairn/pkg/machine/adminapi"
	"github.com/cairn-os/cairn/pkg/machine/logfile"
	"github.com/cairn-os/cairn/pkg/machine/stamp"
	"github.com/cairn-os/cairn/pkg/membership"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	err := run(ctx, os.Stderr, os.Args[1:])
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "cairnd:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, stderr io.Writer, args []string) error {
	flags := flag.NewFlagSet("cairnd", flag.ContinueOnError)
	flags.SetOutput(stderr)
	path := flags.String("config", "/run/cairn/config.yaml", "the effective cloud-config `file`")
	keepTime := flags.Bool("clock", true, "keep the machine's clock by NTP (off in container mode)")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	cfg, err := config.Load(*path)
	if err != nil && !errors.Is(err, config.ErrNoConfig) {
		return err
	}
	if cfg == nil {
		cfg = &config.Config{}
	}
	kubelet := "/run/cairn/node/kubelet-client.kubeconfig"
	role := membership.RoleOf(membership.Path, membership.Role(cfg.EffectiveRole()))
	if role == membership.Witness {
		kubelet = "" // it is no node of Kubernetes
	}
	host, err := os.Hostname() // init has set it, from the configuration or the machine's own
	if err != nil {
		return fmt.Errorf("host name: %w", err)
	}
	m, err := machine.New(machine.Options{
		Node: host, Kubeconfig: kubelet, Membership: membership.Path, Socket: adminapi.Path, InitSocket: initctl.Path,
		LogDir: logfile.Dir, NTPServers: cfg.Cairn.NTPServers, KeepTime: *keepTime, TimeStamp: stamp.Path,
		Upgrades: machine.Upgrades{
			Upgrade: cfg.Cairn.Upgrade, Health: cfg.Cairn.Health, Server: role == membership.Server, Witness: role == membership.Witness,
		},
		Log: slog.New(slog.NewTextHandler(stderr, nil)),
	})
	if err != nil {
		return err
	}
	return m.Run(ctx)
}
