package main

import (
	"context"
	"errors"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/cairn-os/cairn/pkg/bench"
	"github.com/cairn-os/cairn/pkg/bench/cluster"
	"github.com/cairn-os/cairn/pkg/bench/store"
	"github.com/cairn-os/cairn/pkg/build/image"
	"github.com/cairn-os/cairn/pkg/nodens"
)

// recording is where the sources keep the apiserver's requests.
const recording = "pkg/bench/store/apiserver.gob.zst"

func benchCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "bench NAME",
		Short: "Measure beside the peer, on this machine and in the same run",
		Long: "Measure beside the peer, on this machine and in the same run: print a table and write out/bench/NAME.json.\n\n" +
			"A missed budget is told in the table and is no failure of the command.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return errors.New("what is to be measured? See ./build.sh bench --help")
		},
	}
	cmd.AddCommand(benchStoreCommand(), benchClusterCommand())
	return cmd
}

// benchStoreOptions are the flags of "build.sh bench store".
type benchStoreOptions struct {
	quick, record bool
	idle          time.Duration
	out           string
}

func benchStoreCommand() *cobra.Command {
	var o benchStoreOptions
	cmd := &cobra.Command{
		Use:   "store",
		Short: "Measure the store beside etcd: one and three nodes, eight minutes",
		Long: "Measure the store beside etcd: real processes of both take turns, with the requests and objects of a recorded\n" +
			"apiserver. Writes and their latency, bytes written, lists, watches, memory, start and fail-over, on one node\n" +
			"and on three, all on this machine and its one disk.",
		Example: "  ./build.sh bench store\n  ./build.sh bench store --quick\n  ./build.sh bench store --idle 1h",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return benchStore(cmd, o) },
	}
	f := cmd.Flags()
	f.BoolVar(&o.quick, "quick", false, "about a minute: shows that it works, its figures are no basis for anything")
	f.DurationVar(&o.idle, "idle", 0, "instead: what an idle apiserver makes each store do for this long (needs root)")
	f.BoolVar(&o.record, "record", false, "instead: record an apiserver's requests anew, into "+recording+" (needs root)")
	f.StringVar(&o.out, "out", "out/bench", "directory of the outputs")
	cmd.MarkFlagsMutuallyExclusive("quick", "idle", "record")
	return cmd
}

func benchStore(cmd *cobra.Command, o benchStoreOptions) error {
	ctx := cmd.Context()
	b, err := image.New(ctx, image.Options{})
	if err != nil {
		return err
	}
	out, err := filepath.Abs(o.out)
	if err != nil {
		return err
	}
	work := filepath.Join(out, "work")
	if o.record {
		built, err := b.Image(ctx, false)
		if err != nil {
			return err
		}
		return store.Record(ctx, built, work, recording)
	}
	report, name, err := measureStore(ctx, b, o, work)
	if err != nil {
		return err
	}
	return errors.Join(report.Print(cmd.OutOrStdout()), report.Write(filepath.Join(out, name+".json")))
}

func measureStore(ctx context.Context, b *image.Builder, o benchStoreOptions, work string) (*bench.Report, string, error) {
	env, err := b.StoreEnv(ctx)
	if err != nil {
		return nil, "", err
	}
	programs, err := store.Compile(ctx, work, env)
	if err != nil {
		return nil, "", err
	}
	if o.idle > 0 {
		built, err := b.Image(ctx, false)
		if err != nil {
			return nil, "", err
		}
		report, err := store.Idle(ctx, programs, built, work, o.idle)
		return report, "store-idle", err
	}
	plan := store.Full
	if o.quick {
		plan = store.Quick
	}
	report, err := store.Run(ctx, programs, plan, work)
	return report, "store", err
}

// benchClusterOptions are the flags of "build.sh bench cluster".
type benchClusterOptions struct {
	quick bool
	idle  time.Duration
	out   string
}

func benchClusterCommand() *cobra.Command {
	var o benchClusterOptions
	cmd := &cobra.Command{
		Use:   "cluster",
		Short: "Measure machines and clusters beside vanilla Kubernetes: 25 minutes (needs root)",
		Long: "Measure machines and clusters beside vanilla Kubernetes of the same version, from the same modules: etcd, containerd\n" +
			"and Kubernetes' own programs with kubeadm's flags. Both run as machines in namespaces of this one. Power-on to Ready,\n" +
			"what idle machines use, pods started and deleted, and the API's latency meanwhile.",
		Example: "  ./build.sh bench cluster\n  ./build.sh bench cluster --quick\n  ./build.sh bench cluster --idle 1h",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return benchCluster(cmd, o) },
	}
	f := cmd.Flags()
	f.BoolVar(&o.quick, "quick", false, "a single server each, a few minutes: shows that it works, its figures are no basis for anything")
	f.DurationVar(&o.idle, "idle", cluster.Full.Idle, "for how long idle machines are watched")
	f.StringVar(&o.out, "out", "out/bench", "directory of the outputs")
	cmd.MarkFlagsMutuallyExclusive("quick", "idle")
	return cmd
}

func benchCluster(cmd *cobra.Command, o benchClusterOptions) error {
	ctx := cmd.Context()
	if err := nodens.Available(); err != nil {
		return err
	}
	out, err := filepath.Abs(o.out)
	if err != nil {
		return err
	}
	b, err := image.New(ctx, image.Options{})
	if err != nil {
		return err
	}
	measured := cluster.Options{Plan: cluster.Full, Dir: filepath.Join(out, "work")}
	measured.Plan.Idle = o.idle
	if o.quick {
		measured.Plan = cluster.Quick
	}
	if measured.Built, err = b.Image(ctx, false); err != nil {
		return err
	}
	if measured.Upstream, err = b.Upstream(ctx, cluster.PeerInit); err != nil {
		return err
	}
	report, err := cluster.Run(ctx, measured)
	if err != nil {
		return err
	}
	return errors.Join(report.Print(cmd.OutOrStdout()), report.Write(filepath.Join(out, "cluster.json")))
}
