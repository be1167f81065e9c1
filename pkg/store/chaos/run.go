package chaos

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/cairn-os/cairn/pkg/store/chaos/history"
	"github.com/cairn-os/cairn/pkg/store/chaos/nodes"
)

// startPatience bounds the time until all nodes answer for the first time.
const startPatience = time.Minute

// Options describe a run.
type Options struct {
	Target Target
	Seed   uint64
	Nodes  int
	// Length is the time in which faults come.
	Length time.Duration
	// Dir holds the nodes' disks, Output what a failed run leaves, one in which
	// a program ended by itself, or each if Keep is set.
	Dir, Output string
	Keep        bool
}

// Report tells what a run did and what is wrong.
type Report struct {
	Seed     uint64
	Problems []string
	Faults   map[FaultKind]int
	// Requests that clients made, Unknown of them without an answer.
	Requests, Unknown, Changes int
	// Gap is the longest time in which no write was acknowledged, which began
	// at GapAt. Recovery is the time from the last fault until all was well.
	Gap, GapAt, Recovery time.Duration
	Elections            uint64   // by how much the term grew
	Exits                []string // of programs that nobody had killed
	Events               []string // the faults as they came, one line each
	Output               string   // where everything is, of a failed run
}

func (r Report) String() string {
	var faults []string
	for _, k := range slices.Sorted(maps.Keys(r.Faults)) {
		faults = append(faults, fmt.Sprintf("%s %d", k, r.Faults[k]))
	}
	s := fmt.Sprintf("seed %d: %d requests, %d unknown, %d changes; faults: %s; %.1fs without a write (at %.1fs), %d elections, recovered in %.1fs",
		r.Seed, r.Requests, r.Unknown, r.Changes, strings.Join(faults, ", "), r.Gap.Seconds(), r.GapAt.Seconds(), r.Elections, r.Recovery.Seconds())
	for _, exit := range r.Exits {
		s += "; " + exit
	}
	return s
}

// Run starts the nodes, breaks them as the seed says while clients work,
// heals them and judges. The error says why there is no judgement; what the
// store did wrong is in the report.
func Run(ctx context.Context, o Options) (r Report, err error) {
	r.Seed = o.Seed
	logs, err := openLogs(o)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, logs.close(r.Output != "" || err != nil)) }()
	set, err := nodes.New(ctx, o.Dir, o.Nodes, diskSize, func(i int) io.Writer { return logs.files[i] })
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, set.Close()) }()
	term, err := bringUp(ctx, o.Target, set)
	if err != nil {
		return r, err
	}
	h := history.New()
	b := newBreaker(set, o.Target, h)
	w := &workload{seed: o.Seed, clients: 5 + int(o.Seed%4), history: h}
	for _, n := range set.Nodes {
		w.sockets = append(w.sockets, Socket(n))
	}
	plan := Plan(o.Seed, o.Nodes, o.Length)
	// A program may end by itself after the last fault as well.
	supervising, stop := context.WithCancel(ctx)
	supervised := make(chan error, 1)
	go func() { supervised <- b.supervise(supervising) }()
	r.Recovery, err = w.run(ctx, func() error { return b.run(ctx, plan) })
	stop()
	err = errors.Join(err, <-supervised)
	if ctx.Err() != nil {
		return r, ctx.Err()
	}
	if err != nil {
		r.Problems = append(r.Problems, err.Error())
	}
	verdict := h.Check()
	r.Problems = append(r.Problems, verdict.Problems...)
	r.Requests, r.Unknown, r.Changes, r.Faults = verdict.Requests, verdict.Unknown, verdict.Changes, b.faults
	r.Gap, r.GapAt = gap(h)
	r.Events = events(h, b.told)
	_, now := leader(ctx, o.Target, set.Nodes)
	r.Elections = max(now.Term, term) - term
	for _, n := range set.Nodes {
		for _, exit := range n.Exits() {
			r.Exits = append(r.Exits, fmt.Sprintf("node %d: %s", n.Index, exit))
		}
	}
	if len(r.Problems) > 0 || len(r.Exits) > 0 || o.Keep {
		r.Output = logs.dir
		err = keep(logs.dir, r, plan, h, verdict)
	}
	return r, err
}

// diskSize is that of each node's disk: etcd allocates 64 MiB at once.
const diskSize = 512 << 20

// logs are the nodes' outputs, in a directory that is removed unless the run
// failed.
type logs struct {
	dir   string
	files []*os.File
}

func openLogs(o Options) (*logs, error) {
	l := &logs{dir: filepath.Join(o.Output, fmt.Sprintf("seed-%d", o.Seed))}
	if err := os.RemoveAll(l.dir); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(l.dir, 0o755); err != nil {
		return nil, err
	}
	for i := range o.Nodes {
		f, err := os.Create(filepath.Join(l.dir, fmt.Sprintf("node%d.log", i)))
		if err != nil {
			return nil, errors.Join(err, l.close(false))
		}
		l.files = append(l.files, f)
	}
	return l, nil
}

func (l *logs) close(keep bool) error {
	var errs []error
	for _, f := range l.files {
		errs = append(errs, f.Close())
	}
	if !keep {
		errs = append(errs, os.RemoveAll(l.dir))
	}
	return errors.Join(errs...)
}

// bringUp starts all nodes and waits until each answers and votes. It returns
// the term.
func bringUp(ctx context.Context, target Target, set *nodes.Set) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	for _, n := range set.Nodes {
		argv, env, err := target.Program(n, set.Nodes)
		if err != nil {
			return 0, fmt.Errorf("node %d: %w", n.Index, err)
		}
		n.SetProgram(argv, env)
		if err := n.Start(ctx); err != nil {
			return 0, err
		}
	}
	for _, n := range set.Nodes {
		if err := answers(ctx, n); err != nil {
			return 0, fmt.Errorf("node %d does not answer within %s of its start: %w (exits: %q)", n.Index, startPatience, err, n.Exits())
		}
	}
	for {
		found, status := leader(ctx, target, set.Nodes)
		if found != nil && status.Voters == len(set.Nodes) {
			return status.Term, nil
		}
		if err := pause(ctx, errorPause); err != nil {
			return 0, fmt.Errorf("the nodes do not all vote under one leader within %s: %+v", startPatience, status)
		}
	}
}

// answers waits until a node answers a read.
func answers(ctx context.Context, n *nodes.Node) error {
	c, err := dial(Socket(n))
	if err != nil {
		return err
	}
	defer c.Close()
	for {
		asking, cancel := context.WithTimeout(ctx, requestTimeout)
		_, err := c.Get(asking, prefix)
		cancel()
		if err == nil {
			return nil
		}
		if !n.Running() {
			return fmt.Errorf("the program ended: %w", err)
		}
		if pause(ctx, errorPause) != nil {
			return err
		}
	}
}

// events are the lines of what happened, with the time that the next write
// took.
func events(h *history.History, all []told) []string {
	var lines []string
	ops := h.Operations()
	for _, t := range all {
		next := time.Duration(-1)
		for _, o := range ops {
			if o.Done && o.Call >= t.at && (next < 0 || o.Return-t.at < next) {
				next = o.Return - t.at
			}
		}
		lines = append(lines, fmt.Sprintf("%8.3fs %s; a write %.2fs later", t.at.Seconds(), t.text, next.Seconds()))
	}
	return lines
}

// gap is the longest time between two acknowledged writes, and when it began.
func gap(h *history.History) (longest, at time.Duration) {
	var writes []time.Duration
	for _, o := range h.Operations() {
		if o.Done {
			writes = append(writes, o.Return)
		}
	}
	slices.Sort(writes)
	var last time.Duration
	for _, t := range writes {
		if t-last > longest {
			longest, at = t-last, last
		}
		last = t
	}
	return longest, at
}

// keep writes what there is to know about a failed run into dir.
func keep(dir string, r Report, plan []Fault, h *history.History, v history.Verdict) error {
	text := fmt.Sprintf("%s\n\n%s\n\nplan:\n%s\nhappened:\n%s\n", r, strings.Join(r.Problems, "\n"), describe(plan), strings.Join(r.Events, "\n"))
	if err := os.WriteFile(filepath.Join(dir, "report.txt"), []byte(text), 0o644); err != nil {
		return err
	}
	for name, write := range map[string]func(io.Writer) error{"history.txt": h.Write, "porcupine.html": v.Visualize} {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		if err := errors.Join(write(f), f.Close()); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}
