package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/cairn-os/cairn/pkg/config"
	"github.com/cairn-os/cairn/pkg/containerd"
	"github.com/cairn-os/cairn/pkg/control"
	"github.com/cairn-os/cairn/pkg/node"
	"github.com/cairn-os/cairn/pkg/release"
)

// daemon runs one of the long-running parts until SIGTERM or SIGINT.
func daemon(log *slog.Logger, name string, args []string) error {
	flags := flag.NewFlagSet(name, flag.ContinueOnError)
	path := flags.String("config", "/run/cairn/config.yaml", "effective configuration of the machine")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return err
	}
	cfg, err := config.Load(*path)
	if err != nil {
		return err
	}
	hostname, err := os.Hostname()
	if err != nil {
		return fmt.Errorf("node name: %w", err)
	}
	notify, err := notifier()
	if err != nil {
		return err
	}
	ready := func() error { return notify("READY=1") }
	ctx, cancel := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer cancel()
	if name == "containerd" {
		return containerd.Run(ctx, log, containerd.DefaultOptions(), ready)
	}
	hostname = strings.ToLower(hostname)
	if name == "node" {
		return node.Run(ctx, log, nodeOptions(hostname, cfg), ready)
	}
	floor, err := clockFloor()
	if err != nil {
		return err
	}
	o := controlOptions(hostname, cfg)
	o.ClockFloor = floor
	o.Status = func(message string) {
		if err := notify("STATUS=" + message); err != nil {
			log.Warn("notify status", "error", err)
		}
	}
	return control.Run(ctx, log, o, ready)
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

func controlOptions(name string, cfg *config.Config) control.Options {
	o := control.DefaultOptions(name)
	o.Labels = cfg.Cairn.Labels
	d := cfg.Cairn.Datastore
	if servers := d.EtcdServers(); servers != nil { // an SQL database is served by the store, as its own data would be
		o.Etcd = control.Etcd{Servers: servers, CAFile: d.CAFile, CertFile: d.CertFile, KeyFile: d.KeyFile}
	}
	for _, t := range taints(cfg) {
		o.Taints = append(o.Taints, control.Taint{Key: t.Key, Value: t.Value, Effect: string(t.Effect)})
	}
	return o
}

func nodeOptions(name string, cfg *config.Config) node.Options {
	o := node.DefaultOptions(name)
	o.Labels = cfg.Cairn.Labels
	o.Taints = taints(cfg)
	return o
}

// taints parses key=value:effect or key:effect, whose form config has checked.
func taints(cfg *config.Config) []corev1.Taint {
	var all []corev1.Taint
	for _, text := range cfg.Cairn.Taints {
		left, effect, _ := strings.Cut(text, ":")
		key, value, _ := strings.Cut(left, "=")
		all = append(all, corev1.Taint{Key: key, Value: value, Effect: corev1.TaintEffect(effect)})
	}
	return all
}
