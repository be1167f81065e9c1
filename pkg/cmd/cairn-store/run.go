package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/cairn-os/cairn/pkg/membership"
	"github.com/cairn-os/cairn/pkg/store/admin"
	"github.com/cairn-os/cairn/pkg/store/cluster"
	"github.com/cairn-os/cairn/pkg/store/external"
	"github.com/cairn-os/cairn/pkg/store/peer"
)

const usage = `usage: cairn-store [serve|restore|recover|verify] [FLAGS]

  serve    serve Kubernetes' state as an etcd endpoint on a unix socket (default)
  restore  make this server the only member of a new store with what is in a snapshot
  recover  make this server the only member of a new store with its own data, when the
           majority of the voters is lost for good
  verify   read a snapshot, ours or an etcd's, and say what is in it

Examples:
  cairn-store --dir /var/lib/cairn/store --socket /run/cairn/store.sock
      (on a machine that belongs to a cluster, with the other members of its store)
  cairn-store --name b --listen :2380 --advertise 10.0.0.2:2380 --join 10.0.0.1:2380 \
      --ca ca.crt --cert store.crt --key store.key
  cairn-store restore --from snapshot.db
  cairn-store recover --dry-run
  cairn-store verify snapshot.db

Flags of serve:
`

// run does what the arguments say, until ctx ends.
func run(ctx context.Context, args []string, t terminal) error {
	command := "serve"
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		command, args = args[0], args[1:]
	}
	switch command {
	case "serve":
		return serve(ctx, args, t.err)
	case "restore":
		return restore(ctx, args, t)
	case "recover":
		return recoverStore(ctx, args, t)
	case "verify":
		return verify(args, t)
	}
	return fmt.Errorf("unknown command %q; see cairn-store --help", command)
}

// serve runs a node of the store.
func serve(ctx context.Context, args []string, stderr io.Writer) error {
	flags := flag.NewFlagSet("cairn-store", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() {
		fmt.Fprint(stderr, usage)
		flags.PrintDefaults()
	}
	c, debug, err := parse(flags, args)
	if err != nil {
		return err
	}
	level := slog.LevelInfo
	if debug {
		level = slog.LevelDebug
	}
	c.Logger = slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: level}))
	cfg, err := loadConfig(flags.Lookup("config").Value.String())
	if err != nil {
		return err
	}
	if served, err := serveExternal(ctx, cfg.Cairn.Datastore, c.Socket, c.Logger); served {
		return err
	}
	var own *certificate
	if c.Network == nil {
		f := files{membership: flags.Lookup("membership").Value.String(), tls: flags.Lookup("tls-dir").Value.String(), server: cfg.Cairn.Server(), own: ownHosts}
		if own, err = f.certificate(cfg.Cairn.Cluster.Life()); err != nil {
			return err
		}
		if own != nil {
			own.ensure(c.Logger)
		}
		if err := f.connect(&c, cfg.Cairn.Cluster); err != nil {
			return err
		}
	}
	defer external.Attach(c.Logger, nil)() // kine's front answers here as well
	waiting, served := context.WithCancel(ctx)
	var telling sync.WaitGroup
	defer telling.Wait()
	defer served()
	c.Ready = func() {
		served()
		c.Logger.Info("store: serving", "socket", c.Socket)
		if _, err := daemon.SdNotify(false, daemon.SdNotifyReady); err != nil {
			c.Logger.Warn("store: notify readiness", "error", err)
		}
	}
	telling.Go(func() { tellWaiting(waiting, c.AdminSocket, c.Logger) })
	if own != nil {
		telling.Go(func() { own.keep(waiting, c.Logger) })
	}
	if err := cluster.Run(ctx, c); err != nil {
		return fmt.Errorf("run: %w", err)
	}
	c.Logger.Info("store: stopped")
	return nil
}

// parse reads the flags of serve.
func parse(flags *flag.FlagSet, args []string) (c cluster.Config, debug bool, err error) {
	var n cluster.Network
	var join, advertise string
	host, _ := os.Hostname() // The flag overrides it.
	flags.String("config", defaultConfig, "the node's configuration: cairn.datastore names a database to use instead")
	flags.String("membership", membership.Path, "what the machine knows of its cluster: without --listen it names the other members, if it exists")
	flags.String("tls-dir", defaultTLS, "directory of the certificates with which a member of a cluster shows itself")
	flags.StringVar(&c.Dir, "dir", defaultDir, "data directory")
	flags.StringVar(&c.Socket, "socket", "/run/cairn/store.sock", "unix socket to serve on")
	flags.StringVar(&c.AdminSocket, "admin-socket", "", "unix socket for the operator (on a node: "+admin.Socket+")")
	flags.StringVar(&c.Name, "name", host, "name of this machine, unique in the cluster")
	flags.StringVar(&n.Listen, "listen", "", "host:port for the other members; none: this member stays alone")
	flags.StringVar(&advertise, "advertise", "", "comma-separated host:port under which the others reach this member (default: --listen's)")
	flags.StringVar(&n.Credentials.CA, "ca", "", "PEM file of the CA that issues the members' certificates")
	flags.StringVar(&n.Credentials.Certificate, "cert", "", "PEM file of this member's certificate, with --name as its common name and the DNS name cairn-store")
	flags.StringVar(&n.Credentials.Key, "key", "", "PEM file of its key, mode 0600")
	flags.StringVar(&join, "join", "", "comma-separated host:port of members; a node without data joins their cluster")
	flags.BoolVar(&c.Witness, "witness", false, "vote, but leave leading to servers where possible")
	flags.StringVar(&c.Zone, "zone", "", "failure domain: voters are spread over zones")
	flags.IntVar(&c.Voters, "voters", 3, "how many members should vote: 3 or 5")
	flags.DurationVar(&c.SnapshotInterval, "snapshot-interval", 6*time.Hour, "how often the leader takes a snapshot, if anything changed")
	flags.IntVar(&c.SnapshotKeep, "snapshot-keep", 5, "how many of the newest snapshots a member keeps")
	flags.BoolVar(&debug, "debug", false, "log more")
	if err := flags.Parse(args); err != nil {
		return c, false, err
	}
	if flags.NArg() > 0 {
		return c, false, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if c.SnapshotInterval <= 0 || c.SnapshotKeep <= 0 {
		return c, false, errors.New("--snapshot-interval and --snapshot-keep must be greater than 0")
	}
	c.Join, n.Advertise = list(join), list(advertise)
	if n.Listen == "" {
		if len(c.Join) > 0 {
			return c, false, errors.New("--join needs --listen and the certificates: the other members connect to this one as well")
		}
		return c, debug, nil
	}
	if n.Credentials == (peer.Credentials{}) || n.Credentials.CA == "" || n.Credentials.Certificate == "" || n.Credentials.Key == "" {
		return c, false, errors.New("--listen needs --ca, --cert and --key: members speak to each other with certificates only")
	}
	c.Network = &n
	return c, debug, nil
}

// list splits a comma-separated list.
func list(text string) []string {
	var all []string
	for item := range strings.SplitSeq(text, ",") {
		if item = strings.TrimSpace(item); item != "" {
			all = append(all, item)
		}
	}
	return all
}
