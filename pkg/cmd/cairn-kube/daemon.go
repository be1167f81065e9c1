package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/client-go/transport"

	"github.com/cairn-os/cairn/pkg/config"
	"github.com/cairn-os/cairn/pkg/containerd"
	"github.com/cairn-os/cairn/pkg/control"
	"github.com/cairn-os/cairn/pkg/membership"
	"github.com/cairn-os/cairn/pkg/node"
	"github.com/cairn-os/cairn/pkg/pki"
	"github.com/cairn-os/cairn/pkg/release"
)

// stateDir keeps what a machine remembers of its cluster.
const stateDir = "/var/lib/cairn"

// daemon is what the long-running parts have in common.
type daemon struct {
	log    *slog.Logger
	cfg    *config.Config
	name   string    // of the machine and its node
	floor  time.Time // when the release was built
	notify func(message string) error
	member bool // of a cluster, when joining began
}

// runDaemon runs one of the long-running parts until SIGTERM or SIGINT.
func runDaemon(log *slog.Logger, name string, args []string) error {
	flags := flag.NewFlagSet(name, flag.ContinueOnError)
	path := flags.String("config", "/run/cairn/config.yaml", "effective configuration of the machine")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return err
	}
	d, err := newDaemon(log, *path)
	if err != nil {
		return err
	}
	ctx, cancel := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer cancel()
	switch name {
	case "containerd":
		return containerd.Run(ctx, log, containerd.DefaultOptions(), d.ready)
	case "join":
		return d.runJoin(ctx)
	}
	m, err := membership.Load(membership.Path)
	if err != nil {
		return fmt.Errorf("this machine belongs to no cluster yet; see 'cairnctl logs join': %w", err)
	}
	find := func() ([]netip.Addr, error) { return pki.Addresses(d.cfg.Cairn.Cluster.NodeIPs()...) }
	if err := d.awaitNetwork(ctx, find, networksOf(name, m.Settings)); err != nil || ctx.Err() != nil {
		return err
	}
	if name == "node" {
		return node.Run(ctx, log, d.nodeOptions(m), d.ready)
	}
	o, err := d.controlOptions(m)
	if err != nil {
		return err
	}
	return control.Run(ctx, log, o, d.ready)
}

// networksOf returns those of whose families the part needs an address of the machine.
func networksOf(part string, s membership.Settings) []netip.Prefix {
	if part == "node" {
		return s.PodCIDRs
	}
	return s.ServiceCIDRs[:min(1, len(s.ServiceCIDRs))]
}

// awaitNetwork waits until the machine has an address of the family of each of the networks, or ctx ends: a cable may come
// later than the power, and an address of IPv6 later than one of IPv4.
func (d *daemon) awaitNetwork(ctx context.Context, find func() ([]netip.Addr, error), networks []netip.Prefix) error {
	for said := ""; ; {
		addresses, err := find()
		if err == nil {
			_, err = pki.NodeAddresses(addresses, networks)
		}
		if err != nil && !errors.Is(err, pki.ErrNoAddress) {
			return err
		}
		if err == nil {
			if said != "" {
				d.log.Info("the machine has an address", "addresses", addresses)
				d.status("")
			}
			return nil
		}
		if text := "waiting for a network address: " + err.Error(); text != said {
			said = text
			d.log.Warn("waiting for a network address", "error", err)
			d.status(said)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(addressPause):
		}
	}
}

func newDaemon(log *slog.Logger, path string) (*daemon, error) {
	cfg, err := config.Load(path)
	if err != nil {
		return nil, err
	}
	hostname, err := os.Hostname()
	if err != nil {
		return nil, fmt.Errorf("node name: %w", err)
	}
	floor, err := clockFloor()
	if err != nil {
		return nil, err
	}
	notify, err := notifier()
	if err != nil {
		return nil, err
	}
	// Clients look for a renewed certificate of theirs as often as it is renewed: with an old one they are refused.
	transport.CertCallbackRefreshDuration = min(transport.CertCallbackRefreshDuration, pki.Interval(cfg.Cairn.Cluster.Life()))
	return &daemon{log: log, cfg: cfg, name: strings.ToLower(hostname), floor: floor, notify: notify}, nil
}

func (d *daemon) ready() error { return d.notify("READY=1") }

// status tells init, and by it the machine's owner, what is being waited for.
func (d *daemon) status(message string) {
	if err := d.notify("STATUS=" + message); err != nil {
		d.log.Warn("notify status", "error", err)
	}
}

// notifier takes the notification socket out of the environment and returns what sends a message to it. The
// components would report their own readiness, each as if it were the whole process.
func notifier() (func(message string) error, error) {
	path := os.Getenv("NOTIFY_SOCKET")
	if err := os.Unsetenv("NOTIFY_SOCKET"); err != nil {
		return nil, err
	}
	return func(message string) error {
		if path == "" {
			return nil
		}
		c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Write([]byte(message))
		return err
	}, nil
}

// clockFloor is when the release was built; zero where there is none, as in tests.
func clockFloor() (time.Time, error) {
	info, err := release.Load(release.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return time.Time{}, nil
	}
	if err != nil {
		return time.Time{}, err
	}
	return time.Unix(info.BuildTime, 0), nil
}
