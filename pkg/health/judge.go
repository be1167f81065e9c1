package health

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/cairn-os/cairn/pkg/config"
)

// Interval is the time from the begin of one look at a check to the next.
const Interval = 5 * time.Second

// rest is the least time from the end of a look that took long to the next.
const rest = time.Second

// Access is how to reach an API server: a client that is known to it, and its address. It is asked for before each request
// and may give the same client again; nobody closes it.
type Access func(ctx context.Context) (*http.Client, *url.URL, error)

// Options configure a Judge. What is nil is not looked at: a witness has no node and no pods, and an agent no store.
type Options struct {
	// Health is the owner's part. Its deadline is not heeded: Run is told what is left of it.
	Health config.Health
	// NodeName is the name of this machine's node. Needed with API.
	NodeName string
	// Node tells what is seen of the node. It must not block.
	Node func() Node
	// API reaches the cluster by the kubelet's credentials. With it, critical pods are looked at.
	API Access
	// Containers are the IDs of those that run on this machine: Containers of the cgroup tree. nil: a pod's status is believed
	// even when it may be of an earlier boot.
	Containers func() (map[string]bool, error)
	// Before is what Census told before the upgrade. Critical pods of which there were some must be here again. nil: none need be.
	Before map[string]int
	// ControlPlane reaches this machine's own API server.
	ControlPlane Access
	// Store tells how the machine's member of the store is.
	Store func(ctx context.Context) (Store, error)
	// More are further looks.
	More []Look
	// Uptime is the time since power-on. nil: since New.
	Uptime func() time.Duration
	// Progress is called from Run when there is news, in order. It must not block for long. nil: nobody wants to know.
	Progress func(Progress)
}

// Judge looks at a machine. Its methods must not be called at the same time.
type Judge struct {
	opt     Options
	lookers []*looker
	begin   time.Time
	kept    *course // of Look
}

// New prepares a Judge. It is an error when there is nothing to look at.
func New(opt Options) (*Judge, error) {
	j := &Judge{opt: opt, begin: time.Now()}
	if opt.Uptime == nil {
		begin := j.begin
		j.opt.Uptime = func() time.Duration { return time.Since(begin) }
	}
	for _, l := range j.opt.looks() {
		if slices.ContainsFunc(j.lookers, func(have *looker) bool { return have.Name == l.Name }) {
			return nil, fmt.Errorf("judge health: two checks are called %s", l.Name)
		}
		j.lookers = append(j.lookers, newLooker(l))
	}
	if len(j.lookers) == 0 {
		return nil, errors.New("judge health: nothing to look at")
	}
	j.kept = newCourse(j.lookers, 0, j.opt.Uptime())
	return j, nil
}

// looks are all that there is to look at, in the order in which they are told: what others depend on comes first.
func (o Options) looks() []Look {
	var all []Look
	if o.Node != nil {
		all = append(all, nodeLook(o.Node))
	}
	if o.Store != nil {
		all = append(all, storeLook(o.Store))
	}
	if o.ControlPlane != nil {
		all = append(all, planeLook(o.ControlPlane))
	}
	if o.API != nil {
		for _, p := range o.pods() {
			all = append(all, p.look())
		}
	}
	for _, p := range o.Health.Probes {
		all = append(all, probeLook(p))
	}
	return append(all, o.More...)
}

// found is the outcome of one look.
type found struct {
	check        int
	began, ended time.Time
	finding      Finding
}

// Run judges the release that was just booted, until it is healthy, or cannot become so, or so much time as is left of the
// deadline has passed. It fails only when ctx ends first: then there is no verdict. What hangs when it returns is left behind.
func (j *Judge) Run(ctx context.Context, left time.Duration) (Verdict, error) {
	begin := time.Now()
	c := newCourse(j.lookers, j.opt.Health.Settle(), j.opt.Uptime())
	deadline := time.NewTimer(left)
	defer deadline.Stop()
	looking, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	all := make(chan found)
	for i := range j.lookers {
		wg.Go(func() { j.follow(looking, i, all) })
	}
	said := ""
	for {
		select {
		case <-ctx.Done():
			return Verdict{}, fmt.Errorf("judge health: %w", ctx.Err())
		case <-deadline.C:
			return c.verdict(time.Now(), time.Since(begin)), nil
		case f := <-all:
			news := c.add(f.check, f.began.Sub(begin), f.ended.Sub(begin), f.finding)
			if c.settled() || c.hopeless() {
				return c.verdict(time.Now(), time.Since(begin)), nil
			}
			if c.begins() && time.Since(begin) < Interval {
				continue // one line for all first looks that are quick
			}
			if text := c.waiting(); j.opt.Progress != nil && (news || text != said) {
				said = text
				j.opt.Progress(Progress{Text: text, Checks: slices.Clone(c.checks), Left: left - time.Since(begin)})
			}
		}
	}
}

// follow looks at one check until ctx ends.
func (j *Judge) follow(ctx context.Context, i int, all chan<- found) {
	for {
		began := time.Now()
		f := j.lookers[i].try(ctx)
		if ctx.Err() != nil {
			return // a look that was cut off says nothing
		}
		select {
		case all <- found{i, began, time.Now(), f}:
		case <-ctx.Done():
			return
		}
		again := time.NewTimer(max(rest, Interval-time.Since(began)))
		select {
		case <-again.C:
		case <-ctx.Done():
			again.Stop()
			return
		}
	}
}

// Look looks at everything once, all at the same time, and returns what it found; when ctx ends first, what it found before.
// The Judge remembers: counts and times go on from call to call, and the store needs two, for its index must be seen to grow.
func (j *Judge) Look(ctx context.Context) []Check {
	all := make(chan found)
	for i, l := range j.lookers {
		go func() {
			began := time.Now()
			f := l.try(ctx)
			all <- found{i, began, time.Now(), f}
		}()
	}
	for range j.lookers {
		if f := <-all; ctx.Err() == nil {
			j.kept.add(f.check, f.began.Sub(j.begin), f.ended.Sub(j.begin), f.finding)
		}
	}
	return slices.Clone(j.kept.checks)
}
