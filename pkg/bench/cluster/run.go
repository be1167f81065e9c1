package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/cairn-os/cairn/pkg/bench"
	"github.com/cairn-os/cairn/pkg/build/binaries"
	"github.com/cairn-os/cairn/pkg/build/image"
	"github.com/cairn-os/cairn/pkg/build/progress"
)

// Plan says how much is measured. The two systems take turns in each round.
type Plan struct {
	Starts  int           // of each sort
	Settle  time.Duration // for how long a machine is left alone before it counts as idle
	Idle    time.Duration // for how long it is watched then
	Pods    int
	Rounds  int           // in which pods start and go, and in which clients ask
	Asked   time.Duration // how long clients ask the API in each round
	Cluster bool          // whether three servers and an agent are measured as well
}

// Full takes about 25 minutes.
var Full = Plan{Starts: 3, Settle: time.Minute, Idle: 3 * time.Minute, Pods: 50, Rounds: 3, Asked: 10 * time.Second, Cluster: true}

// Quick takes about three minutes.
var Quick = Plan{Starts: 1, Settle: 5 * time.Second, Idle: 15 * time.Second, Pods: 10, Rounds: 1, Asked: 3 * time.Second}

// Budgets of design.md, section 12.
const (
	agentMiB   = 128 // a whole agent, idle
	perPodMB   = 6   // a pod's shim and pause
	startGoal  = 1   // of vanilla's time
	halfOfEtcd = 0.5 // of what etcd writes
)

// PeerInit is the main that a vanilla machine starts with, for
// image.Builder.Upstream.
const PeerInit = "./pkg/bench/cluster/peerinit"

// Options say what is measured and where.
type Options struct {
	Built    *image.Output
	Upstream *binaries.Set // with PeerInit
	Plan     Plan
	Dir      string // the machines' trees and disks go below; on the disk that is to be measured
}

// pair is what was measured of Cairn and of vanilla Kubernetes.
type pair[T any] [2]T

// run is a measurement on its way.
type run struct {
	Options
	step    *progress.Step
	figures []bench.Figure
	notes   []string
}

// Run measures. It needs root.
func Run(ctx context.Context, o Options) (report *bench.Report, err error) {
	r := &run{Options: o}
	// The socket of containerd is reached through a path that must stay short.
	r.Dir = filepath.Join(o.Dir, "cluster")
	if err := os.RemoveAll(r.Dir); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(r.Dir)) }()
	peer, err := describe(ctx, o.Upstream)
	if err != nil {
		return nil, err
	}
	finish := bench.Begin(ctx, peer)
	if err := r.part(ctx, "single server", r.single); err != nil {
		return nil, err
	}
	if r.Plan.Cluster {
		if err := r.part(ctx, "three servers and an agent", r.three); err != nil {
			return nil, err
		}
	}
	report = finish()
	report.Figures = r.figures
	report.Notes = append(r.notes,
		fmt.Sprintf("starts: median of %d, on an empty disk; \"again\" is after a power cut, with the disk kept; cold is without the disk cache", r.Plan.Starts),
		fmt.Sprintf("pods: median of %d times; API: clients ask for %d times %s, with both systems and all pods on this machine", r.Plan.Rounds+1, r.Plan.Rounds, r.Plan.Asked),
		fmt.Sprintf("idle: after %s of settling, for %s; processor time and written bytes are scaled from that", r.Plan.Settle, r.Plan.Idle),
		"memory: anonymous and PSS are of smaps_rollup; the sums of a machine leave out pods, and vanilla's its service manager",
		"in use: what the machine's cgroup is charged without disk cache, kernel memory and files in memory included; nearest to a real machine's MemTotal - MemAvailable",
		"a LIST that is not from the cache waits, under writes, for the store to tell the cache of its progress: the apiserver asks each 100 ms",
		"vanilla's certificates are there before its first start; its pod network is two lines of CNI configuration",
	)
	return report, nil
}

// describe names what is measured beside, such as "vanilla Kubernetes v1.36.4,
// etcd 3.6.13".
func describe(ctx context.Context, upstream *binaries.Set) (string, error) {
	path := upstream.Files["usr/bin/etcd"]
	out, err := exec.CommandContext(ctx, path, "--version").Output()
	if err != nil {
		return "", fmt.Errorf("%s --version: %w", path, err)
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return "vanilla Kubernetes " + upstream.Kubernetes + ", " + strings.Replace(line, "etcd Version:", "etcd", 1), nil
}

func (r *run) part(ctx context.Context, name string, of func(context.Context) error) (err error) {
	r.step = progress.FromContext(ctx).Start("measure: " + name)
	defer r.step.Done(&err)
	return of(ctx)
}

// both makes a cluster of each kind, alike.
func (r *run) both(ctx context.Context, label string, first byte, roles ...role) (both pair[*cluster], err error) {
	for i, k := range []kind{&cairn{built: r.Built}, &vanilla{built: r.Built, upstream: r.Upstream}} {
		r.step.Update("install " + k.name())
		if both[i], err = newCluster(ctx, k, r.Dir, label, r.Built.Tree, first+byte(i*len(roles)), roles...); err != nil {
			return both, err
		}
	}
	return both, nil
}

// turns calls f for the first machines of both so many times, beginning with
// each in turn.
func (r *run) turns(times int, what string, both pair[*cluster], f func(i int, m *machine) error) error {
	for round := range times {
		for turn := range both {
			i := (round + turn) % 2
			r.step.Update(fmt.Sprintf("%s %d/%d, %s", what, round+1, times, both[i].kind.name()))
			if err := f(i, both[i].machines[0]); err != nil {
				return fmt.Errorf("%s: %w", both[i].kind.name(), err)
			}
		}
	}
	return nil
}

// sameVersion makes sure that the comparison is one.
func sameVersion(ctx context.Context, both pair[*cluster]) error {
	var versions pair[string]
	for i, c := range both {
		var err error
		if versions[i], err = c.version(ctx); err != nil {
			return err
		}
	}
	if versions[0] != versions[1] {
		return fmt.Errorf("compare Kubernetes %s with vanilla %s: build the image anew", versions[0], versions[1])
	}
	return nil
}

// endAll adds what went wrong at the end to err.
func endAll(both pair[*cluster], err *error) {
	for _, c := range both {
		if c != nil {
			*err = errors.Join(*err, c.end())
		}
	}
}

// single measures machines that are a cluster each.
func (r *run) single(ctx context.Context) (err error) {
	both, err := r.both(ctx, "one", 101, server)
	defer endAll(both, &err)
	if err != nil {
		return err
	}
	if err := r.starts(ctx, both); err != nil {
		return err
	}
	if err := r.idle(ctx, both, []roleName{{server, singleServer}}); err != nil {
		return err
	}
	return r.load(ctx, both)
}

// three measures clusters of three servers and an agent.
func (r *run) three(ctx context.Context) (err error) {
	both, err := r.both(ctx, "four", 111, server, server, server, agent)
	defer endAll(both, &err)
	if err != nil {
		return err
	}
	return r.idle(ctx, both, []roleName{{server, "server of three"}, {agent, "agent"}})
}
