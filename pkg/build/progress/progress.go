// Package progress tells a person what a build is doing: a line when a step
// starts, its state every five seconds while it runs, and how long it took.
package progress

import (
	"context"
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

// Interval is the time between two lines of a running step.
const Interval = 5 * time.Second

// Printer writes the steps of one command. It is safe for concurrent use.
type Printer struct {
	mu sync.Mutex // guards w
	w  io.Writer
}

// New returns a Printer that writes to w.
func New(w io.Writer) *Printer { return &Printer{w: w} }

type contextKey struct{}

// NewContext returns a context that carries p.
func NewContext(ctx context.Context, p *Printer) context.Context {
	return context.WithValue(ctx, contextKey{}, p)
}

// FromContext returns the Printer of ctx, or one that writes to standard
// error when there is none.
func FromContext(ctx context.Context) *Printer {
	if p, ok := ctx.Value(contextKey{}).(*Printer); ok {
		return p
	}
	return New(os.Stderr)
}

func (p *Printer) print(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fmt.Fprintf(p.w, format+"\n", args...)
}

// Step is one named piece of work. Its methods are safe for concurrent use.
type Step struct {
	p     *Printer
	name  string
	start time.Time
	stop  chan struct{}
	ended sync.WaitGroup

	mu    sync.Mutex // guards state
	state string
}

// Start prints that name has begun and returns its step, which must be ended
// by Done.
func (p *Printer) Start(name string) *Step {
	s := &Step{p: p, name: name, start: time.Now(), stop: make(chan struct{})}
	p.print("==> %s", name)
	s.ended.Go(s.tick)
	return s
}

func (s *Step) tick() {
	t := time.NewTicker(Interval)
	defer t.Stop()
	for {
		select {
		case <-s.stop:
			return
		case <-t.C:
			s.mu.Lock()
			state := s.state
			s.mu.Unlock()
			s.p.print("    %s: %s %s", s.name, since(s.start), state)
		}
	}
}

// Update sets what the next lines say of the step, such as "1234/9000 files".
func (s *Step) Update(state string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state = state
}

// Done ends the step and prints its duration, and that it failed when *err is
// set. It is meant to be deferred with a named result.
func (s *Step) Done(err *error) {
	close(s.stop)
	s.ended.Wait()
	if err != nil && *err != nil {
		s.p.print("    %s: failed after %s", s.name, since(s.start))
		return
	}
	s.p.print("    %s: done in %s", s.name, since(s.start))
}

func since(t time.Time) string {
	return time.Since(t).Round(100 * time.Millisecond).String()
}
