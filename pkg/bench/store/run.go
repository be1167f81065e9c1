package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/cairn-os/cairn/pkg/bench"
	"github.com/cairn-os/cairn/pkg/build/progress"
)

// Plan says how much is measured. The two systems take turns in each round.
type Plan struct {
	Data    int64         // bytes of keys and values, besides history
	Clients []int         // numbers of clients that write
	Rounds  int           // of writes for each of these
	Slice   time.Duration // how long a round's writes last
	Listed  int           // keys of a list
	Lists   int
	Watchers,
	Starts,
	Kills int
}

// Full takes about eight minutes.
var Full = Plan{
	Data: 25e6, Clients: []int{1, 8, 64}, Rounds: 3, Slice: 4 * time.Second,
	Listed: 10_000, Lists: 9, Watchers: 100, Starts: 5, Kills: 5,
}

// Quick takes about a minute.
var Quick = Plan{
	Data: 3e6, Clients: []int{1, 8, 64}, Rounds: 1, Slice: time.Second,
	Listed: 1000, Lists: 3, Watchers: 100, Starts: 1, Kills: 1,
}

const (
	// memoryClients is the number of clients under whose load memory is told.
	memoryClients = 8
	// mixedClients is the number of those that read as well.
	mixedClients = 8
)

// run is a measurement on its way.
type run struct {
	Plan
	mix      *mix
	programs Programs
	dir      string
	step     *progress.Step
	figures  []bench.Figure
	notes    []string
}

// Run measures the store beside etcd. Their data goes below dir, on the disk
// that is to be measured.
func Run(ctx context.Context, p Programs, plan Plan, dir string) (report *bench.Report, err error) {
	recording, err := Recorded()
	if err != nil {
		return nil, err
	}
	r := &run{Plan: plan, programs: p, dir: filepath.Join(dir, "data")}
	if r.mix, err = newMix(recording); err != nil {
		return nil, err
	}
	if err := os.RemoveAll(r.dir); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(r.dir)) }()
	finish, err := startReport(ctx, p)
	if err != nil {
		return nil, err
	}
	for _, nodes := range []int{1, 3} {
		if err := r.measure(ctx, nodes); err != nil {
			return nil, err
		}
	}
	report = finish()
	report.Figures, report.Notes = r.figures, r.notes
	report.Notes = append(report.Notes, fmt.Sprintf(
		"objects and requests of an apiserver %s, recorded for %.0f s; data set %.3g MB; %d rounds of %s, in turns",
		recording.Kubernetes, recording.Seconds, float64(plan.Data)/1e6, plan.Rounds, plan.Slice))
	return report, nil
}

// pair is what was measured of Cairn and of etcd.
type pair[T any] [2]T

// measure starts both systems with so many nodes and takes all their figures.
func (r *run) measure(ctx context.Context, nodes int) (err error) {
	name := map[int]string{1: "1 node", 3: "3 nodes"}[nodes]
	r.step = progress.FromContext(ctx).Start("measure " + name)
	defer r.step.Done(&err)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var both pair[*subject]
	defer func() {
		for _, u := range both {
			if u != nil {
				err = errors.Join(err, u.close(context.WithoutCancel(ctx)))
			}
		}
	}()
	entries := 0
	for i, k := range []kind{cairn{r.programs.Store}, etcd{r.programs.Etcd}} {
		r.step.Update("load " + k.name())
		s, err := newSystem(k, nodes, filepath.Join(r.dir, fmt.Sprintf("%s-%d", k.name(), nodes)))
		if err != nil {
			return err
		}
		both[i] = &subject{system: s, mix: r.mix}
		data, values := r.mix.dataset(r.Data)
		entries = len(data)
		if err := errors.Join(s.start(ctx), both[i].load(ctx, data, values), both[i].watch(ctx), both[i].settle(ctx)); err != nil {
			return err
		}
	}
	r.step.Update(fmt.Sprintf("%d objects loaded", entries))
	if err := r.writes(ctx, name, both); err != nil {
		return err
	}
	if err := r.requests(ctx, name, both); err != nil {
		return err
	}
	if nodes == 1 {
		return errors.Join(r.lists(ctx, both), r.fans(ctx, both), r.starts(ctx, both))
	}
	return r.kills(ctx, both)
}

// turns calls f for both systems so many times, beginning with each in turn.
func (r *run) turns(times int, what string, both pair[*subject], f func(i int, u *subject) error) error {
	for round := range times {
		for turn := range both {
			i := (round + turn) % 2
			r.step.Update(fmt.Sprintf("%s, round %d/%d, %s", what, round+1, times, both[i].name()))
			if err := f(i, both[i]); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r *run) writes(ctx context.Context, name string, both pair[*subject]) error {
	rounds := pair[map[int][]*slice]{{}, {}} // by number of clients
	for round := range r.Rounds {
		for _, clients := range r.Clients {
			what := fmt.Sprintf("writes by %d clients, round %d/%d", clients, round+1, r.Rounds)
			for turn := range both {
				i := (round + turn) % 2
				r.step.Update(what + ", " + both[i].name())
				s, err := both[i].request(ctx, clients, r.Slice, 0)
				if err != nil {
					return err
				}
				rounds[i][clients] = append(rounds[i][clients], s)
			}
		}
	}
	for _, clients := range r.Clients {
		r.writeFigures(name, clients, pair[[]*slice]{rounds[0][clients], rounds[1][clients]}, both)
	}
	var kept pair[float64]
	for i, u := range both {
		size, err := u.size()
		if err != nil {
			return err
		}
		kept[i] = megabytes(size)
	}
	r.add(name+": on disk after the writes, all nodes", "MB", bench.Budget{}, kept[0], kept[1])
	return nil
}

// writeFigures tells of rounds with so many clients.
func (r *run) writeFigures(name string, clients int, rounds pair[[]*slice], both pair[*subject]) {
	label := fmt.Sprintf("%s, %d clients: ", name, clients)
	if clients == 1 {
		label = fmt.Sprintf("%s, 1 client: ", name)
	}
	add := func(what, unit string, budget bench.Budget, value func([]*slice) float64) {
		r.add(label+what, unit, budget, value(rounds[0]), value(rounds[1]))
	}
	add("writes", "1/s", bench.AtLeastPeer(1), perSecond)
	add("write p50", "ms", bench.Budget{}, latency(0.5))
	add("write p99", "ms", bench.Budget{}, latency(0.99))
	add("disk written per write", "kB", bench.AtMostPeer(1), medianOf(func(s *slice) float64 { return float64(s.written) / 1e3 / float64(len(s.latencies)) }))
	add("processor time per write", "us", bench.Budget{}, medianOf(func(s *slice) float64 { return float64(s.cpu.Microseconds()) / float64(len(s.latencies)) }))
	if clients == memoryClients {
		add("resident, peak", "MB", bench.AtMost(90), peakOf(func(m memory) int64 { return m.resident }))
		add("resident anonymous, peak", "MB", bench.Budget{}, peakOf(func(m memory) int64 { return m.anonymous }))
	}
	r.noteFailures(label, rounds, both)
}

// noteFailures tells of requests that failed.
func (r *run) noteFailures(label string, rounds pair[[]*slice], both pair[*subject]) {
	for i, all := range rounds {
		failed := 0
		for _, s := range all {
			failed += s.failed
		}
		if failed > 0 {
			r.notes = append(r.notes, fmt.Sprintf("%s%d requests to %s failed, the last with: %v", label, failed, both[i].name(), both[i].lastError))
		}
	}
}

// requests measures reads and writes together, in the proportions recorded.
func (r *run) requests(ctx context.Context, name string, both pair[*subject]) error {
	var rounds pair[[]*slice]
	err := r.turns(r.Rounds, "reads and writes", both, func(i int, u *subject) error {
		s, err := u.request(ctx, mixedClients, r.Slice, r.mix.reads)
		rounds[i] = append(rounds[i], s)
		return err
	})
	if err != nil {
		return err
	}
	label := fmt.Sprintf("%s, %d clients, %.0f %% reads: ", name, mixedClients, 100*r.mix.reads)
	r.add(label+"requests", "1/s", bench.Budget{}, perSecond(rounds[0]), perSecond(rounds[1]))
	for _, p := range []float64{0.5, 0.99} {
		r.add(fmt.Sprintf("%srequest p%.0f", label, 100*p), "ms", bench.Budget{}, latency(p)(rounds[0]), latency(p)(rounds[1]))
	}
	r.noteFailures(label, rounds, both)
	return nil
}

func (r *run) lists(ctx context.Context, both pair[*subject]) error {
	var took pair[[]time.Duration]
	err := r.turns(r.Lists, "lists", both, func(i int, u *subject) error {
		d, err := u.list(ctx, r.Listed)
		took[i] = append(took[i], d)
		return err
	})
	r.addTimes(fmt.Sprintf("1 node: list of %d keys, p50", r.Listed), 0.5, bench.Budget{}, took)
	return err
}

func (r *run) fans(ctx context.Context, both pair[*subject]) error {
	var rates pair[[]float64]
	var delays pair[[]time.Duration]
	err := r.turns(r.Rounds, "watches", both, func(i int, u *subject) error {
		rate, d, err := u.fanOut(ctx, r.Watchers, r.Slice)
		rates[i], delays[i] = append(rates[i], rate), append(delays[i], d...)
		return errors.Join(err, u.settle(ctx))
	})
	if err != nil {
		return err
	}
	label := fmt.Sprintf("1 node, %d watchers: ", r.Watchers)
	r.add(label+"events delivered", "1/s", bench.Budget{}, bench.Median(rates[0]), bench.Median(rates[1]))
	r.addTimes(label+"write to last delivery, p50", 0.5, bench.Budget{}, delays)
	r.addTimes(label+"write to last delivery, p99", 0.99, bench.Budget{}, delays)
	return nil
}

func (r *run) starts(ctx context.Context, both pair[*subject]) error {
	var took pair[[]time.Duration]
	err := r.turns(r.Starts, "starts", both, func(i int, u *subject) error {
		d, err := u.restart(ctx)
		took[i] = append(took[i], d)
		return errors.Join(err, u.settle(ctx))
	})
	r.addTimes("1 node: start to first answer, median", 0.5, bench.Budget{}, took)
	return err
}

func (r *run) kills(ctx context.Context, both pair[*subject]) error {
	var took pair[[]time.Duration]
	err := r.turns(r.Kills, "leader killed", both, func(i int, u *subject) error {
		d, err := u.failOver(ctx)
		took[i] = append(took[i], d)
		return errors.Join(err, u.settle(ctx))
	})
	fiveSeconds := bench.AtMost(5000)
	r.addTimes("3 nodes: leader killed to next accepted write, median", 0.5, fiveSeconds, took)
	r.addTimes("3 nodes: leader killed to next accepted write, max", 1, fiveSeconds, took)
	return err
}

func (r *run) add(name, unit string, budget bench.Budget, cairn, peer float64) {
	r.figures = append(r.figures, bench.Figure{Name: name, Unit: unit, Cairn: cairn, Peer: peer, Budget: budget})
}

func (r *run) addTimes(name string, p float64, budget bench.Budget, took pair[[]time.Duration]) {
	r.add(name, "ms", budget, bench.Milliseconds(bench.Percentile(took[0], p)), bench.Milliseconds(bench.Percentile(took[1], p)))
}

// latency returns a function that tells a percentile over all rounds, in ms.
func latency(p float64) func([]*slice) float64 {
	return func(all []*slice) float64 {
		var pooled []time.Duration
		for _, s := range all {
			pooled = append(pooled, s.latencies...)
		}
		return bench.Milliseconds(bench.Percentile(pooled, p))
	}
}

// perSecond is how many requests a second were answered.
func perSecond(all []*slice) float64 {
	return medianOf(func(s *slice) float64 { return float64(len(s.latencies)) / s.elapsed.Seconds() })(all)
}

// medianOf is the median of rounds.
func medianOf(value func(*slice) float64) func([]*slice) float64 {
	return func(all []*slice) float64 {
		var values []float64
		for _, s := range all {
			values = append(values, value(s))
		}
		return bench.Median(values)
	}
}

func peakOf(value func(memory) int64) func([]*slice) float64 {
	return func(all []*slice) float64 {
		var peak int64
		for _, s := range all {
			peak = max(peak, value(s.peak))
		}
		return megabytes(peak)
	}
}
