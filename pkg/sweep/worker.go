package sweep

import (
	"context"
	"errors"
	"fmt"
	"io"
)

// worker judges its share of the states. Each worker goes through the whole
// recording by itself, which costs less than to share what they know.
type worker struct {
	number int
	o      Options
	rec    *Recording
	judge  *judge
	epoch  *epoch
	report Report
}

func newWorkers(rec Recording, o Options) ([]*worker, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	if err := rec.check(); err != nil {
		return nil, err
	}
	base, g, err := survey(rec, o.Releases)
	if err != nil {
		return nil, err
	}
	h := newHasher()
	targets, err := wholeRoots(rec, base, g, h, o.Releases)
	if err != nil {
		return nil, err
	}
	workers := make([]*worker, o.Workers)
	for i := range workers {
		j := &judge{
			o: o, g: g, base: base, hash: h, targets: targets,
			loaders: map[sum]bool{}, verdicts: map[digest]*Verdict{}, starts: map[digest]*start{}, files: map[fileKey]fileSum{},
		}
		workers[i] = &worker{number: i, o: o, rec: &rec, judge: j, epoch: &epoch{d: newMedium(&rec, g, h)}, report: newReport(rec, o)}
		workers[i].learn()
	}
	return workers, nil
}

// learn takes what the base and the releases have of boot loaders for good
// ones. A base without one is that of a machine without UEFI.
func (w *worker) learn() {
	d := &diskView{j: w.judge, v: w.view(choice{kind: prefix})}
	for _, name := range loaderPartitions {
		if known, err := d.Sum(name, loaderPath); err == nil {
			w.judge.loaders[known] = true
		}
	}
	for _, r := range w.o.Releases {
		if r.Loader != (sum{}) && len(w.judge.loaders) > 0 {
			w.judge.loaders[r.Loader] = true
		}
	}
}

func (w *worker) view(c choice) *view { return &view{d: w.epoch.d, e: w.epoch, c: c} }

func (w *worker) sweep(ctx context.Context) error {
	if w.number == 0 {
		verdict, err := w.judge.judge(w.view(choice{kind: prefix}), key{}, 0)
		if err != nil {
			return err
		}
		w.report.count(w.rec, base(), moments{}, verdict, w.o.Failures)
	}
	err := walk(w.rec, w.epoch, func(before int) error {
		if w.number == 0 && w.o.Progress != nil {
			w.o.Progress(before, len(w.rec.Entries))
		}
		return w.states(ctx, before)
	})
	w.report.Starts = len(w.judge.starts)
	return err
}

// states judges this worker's share of the states of an epoch.
func (w *worker) states(ctx context.Context, before int) error {
	seed := mix(w.o.Seed + uint64(w.epoch.number))
	index := uint64(w.epoch.number)
	for _, b := range plan(w.epoch.counts(), w.o, seed) {
		for i := range b.count {
			index++
			if index%uint64(w.o.Workers) != uint64(w.number) {
				continue
			}
			if err := ctx.Err(); err != nil {
				return err
			}
			c := b.get(i)
			verdict, err := w.state(c)
			if err != nil {
				return err
			}
			w.report.count(w.rec, State{w.epoch.number, c.String()}, moments{w.epoch.last(c), before, index}, verdict, w.o.Failures)
		}
	}
	return nil
}

func (w *worker) state(c choice) (*Verdict, error) {
	k, err := w.epoch.key(c)
	if err != nil {
		return nil, err
	}
	return w.judge.judge(w.view(c), k, 0)
}

// base is the state before the first entry.
func base() State { return State{0, choice{kind: prefix}.String()} }

// errFound ends a walk.
var errFound = errors.New("found")

// goTo calls f in the epoch of a state.
func (w *worker) goTo(s State, f func(c choice, before int) error) error {
	c, err := parseChoice(s.Choice)
	if err != nil {
		return err
	}
	if s == base() {
		return f(c, 0)
	}
	err = walk(w.rec, w.epoch, func(before int) error {
		if w.epoch.number != s.Epoch {
			return nil
		}
		if err := w.epoch.check(c); err != nil {
			return err
		}
		if err := f(c, before); err != nil {
			return err
		}
		return errFound
	})
	switch {
	case errors.Is(err, errFound):
		return nil
	case err == nil:
		return errors.New("the recording has no such state")
	}
	return err
}

// Judge judges one state again, with the options that the sweep had.
func Judge(rec Recording, o Options, s State) (v Verdict, err error) {
	o.Workers = 1
	workers, err := newWorkers(rec, o)
	if err != nil {
		return v, fmt.Errorf("judge state %s: %w", s, err)
	}
	err = workers[0].goTo(s, func(c choice, _ int) error {
		verdict, err := workers[0].state(c)
		if err == nil {
			v = *verdict
		}
		return err
	})
	if err != nil {
		return v, fmt.Errorf("judge state %s: %w", s, err)
	}
	return v, nil
}

// Make writes what the recording wrote until a state over out, which holds a
// copy of its base: the disk that a machine would find, to be booted for real.
// Of unflushed writes that the sweep leaves out, those before the state's last
// write are made.
func Make(rec Recording, o Options, s State, out io.WriterAt) error {
	o.Workers = 1
	workers, err := newWorkers(rec, o)
	if err != nil {
		return fmt.Errorf("make state %s: %w", s, err)
	}
	w := workers[0]
	if err := w.goTo(s, func(c choice, before int) error { return w.make(c, before, out) }); err != nil {
		return fmt.Errorf("make state %s: %w", s, err)
	}
	return nil
}

func (w *worker) make(c choice, before int, out io.WriterAt) error {
	open := map[int]int{} // entry to write
	for i, u := range w.epoch.writes {
		open[u.entry] = i
		before = max(before, u.entry+1) // one with FUA was under way
	}
	last := w.epoch.last(c)
	buf := make([]byte, SectorSize)
	for i, e := range w.rec.Entries[:before] {
		n, unflushed := open[i]
		if !e.writes() || !unflushed && i >= last && i >= w.epoch.since && !w.epoch.d.g.matters(e.Sector, e.Count) {
			continue
		}
		u := write{first: e.Sector, count: e.Count, data: e.Data}
		if e.Flags&Discard != 0 {
			u.data = zeros
		}
		for s := u.first; s < u.first+u.count; s++ {
			if unflushed && (w.epoch.writes[n].gone[s] || !w.epoch.keeps(c, n, s)) {
				continue
			}
			if err := w.epoch.d.content(buf, u.at(s)); err != nil {
				return err
			}
			if _, err := out.WriteAt(buf, s*SectorSize); err != nil {
				return err
			}
		}
	}
	return nil
}

// Pick chooses n states of a recording at random, the same ones for the same
// seed: moments spread evenly over those that matter, and of each what a
// sampled power cut leaves. They are for booting a sample for real.
func Pick(rec Recording, o Options, n int) ([]State, error) {
	o.Workers = 1
	workers, err := newWorkers(rec, o)
	if err != nil {
		return nil, fmt.Errorf("pick states: %w", err)
	}
	w := workers[0]
	var all []State
	err = walk(&rec, w.epoch, func(int) error {
		if n := w.epoch.number; len(w.epoch.writes) > 0 {
			all = append(all, State{n, choice{kind: sample, a: mix(o.Seed ^ mix(uint64(n)))}.String()})
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("pick states: %w", err)
	}
	if len(all) <= n || n < 1 {
		return all, nil
	}
	picked := make([]State, n)
	for i := range picked {
		picked[i] = all[i*(len(all)-1)/max(n-1, 1)]
	}
	return picked, nil
}
