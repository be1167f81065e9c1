// Package sequence runs a boot as a printed list of named phases.
//
// A sequence is data: a slice of Phase values, run strictly in order. Each one prints a line when it ends
// ("phase 4/15 data 38ms"), has a stated policy for its error, an optional time limit and an optional condition.
// A panic in a phase is that phase's error and never leaves the package, because the caller may be PID 1.
package sequence

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/cairn-os/cairn/pkg/status"
)

// Policy says what an error of a phase means for the sequence.
type Policy int

const (
	// Stop ends the sequence: what follows cannot work. It is the zero value, so that forgetting it is safe.
	Stop Policy = iota
	// Report prints the error and goes on.
	Report
)

func (p Policy) String() string {
	switch p {
	case Stop:
		return "stop"
	case Report:
		return "report"
	default:
		return fmt.Sprintf("policy(%d)", int(p))
	}
}

// Phase is one step of a sequence.
type Phase struct {
	Name    string
	Run     func(ctx context.Context) error
	Policy  Policy
	Timeout time.Duration // 0: none
	RunWhen func() bool   // nil: always; a skipped phase keeps its number and prints "skipped"
}

// Logf prints one line; (*log.Logger).Printf is one.
type Logf func(format string, args ...any)

// Error is a failed phase with policy Stop, or one whose context ended.
type Error struct {
	Phase  string
	Number int // from 1
	Total  int
	Err    error
}

func (e *Error) Error() string {
	return fmt.Sprintf("phase %d/%d %s: %v", e.Number, e.Total, e.Phase, e.Err)
}

func (e *Error) Unwrap() error { return e.Err }

// ErrTimeout is wrapped by the error of a phase that overran its Timeout.
var ErrTimeout = errors.New("timed out")

// PanicError is a recovered panic of a phase.
type PanicError struct {
	Value any
	Stack string
}

func (e *PanicError) Error() string { return fmt.Sprintf("panic: %v", e.Value) }

// Runner runs sequences. Logf is required.
type Runner struct {
	Logf  Logf
	Since func() time.Duration // time since power-on; nil: since Run was called
	// Done, when set, is told every finished phase at once, for a status that is asked for during the boot.
	Done func(status.Phase)
}

// Run runs phases in order with default options and returns what ran. The error is a *Error of the first phase that
// failed with policy Stop.
func Run(ctx context.Context, logf Logf, phases []Phase) ([]status.Phase, error) {
	return Runner{Logf: logf}.Run(ctx, phases)
}

// Run runs phases in order and returns one record per phase that was reached.
func (r Runner) Run(ctx context.Context, phases []Phase) ([]status.Phase, error) {
	if r.Since == nil {
		begin := time.Now()
		r.Since = func() time.Duration { return time.Since(begin) }
	}
	var done []status.Phase
	for i, p := range phases {
		rec, err := r.phase(ctx, i+1, len(phases), p)
		done = append(done, rec)
		if r.Done != nil {
			r.Done(rec)
		}
		if err != nil && (p.Policy == Stop || ctx.Err() != nil) {
			return done, &Error{Phase: p.Name, Number: i + 1, Total: len(phases), Err: err}
		}
	}
	return done, nil
}

func (r Runner) phase(ctx context.Context, n, total int, p Phase) (status.Phase, error) {
	start := r.Since()
	rec := status.Phase{Name: p.Name, StartS: status.InSeconds(start)}
	ran, err := false, ctx.Err()
	if err == nil {
		ran, err = r.call(ctx, p)
	}
	took := r.Since() - start
	rec.DurationS = status.InSeconds(took)
	switch {
	case err != nil:
		rec.Error = err.Error()
		r.Logf("phase %d/%d %s %s failed: %v", n, total, p.Name, short(took), err)
	case !ran:
		rec.Skipped = true
		r.Logf("phase %d/%d %s skipped", n, total, p.Name)
	default:
		r.Logf("phase %d/%d %s %s", n, total, p.Name, short(took))
	}
	return rec, err
}

// call runs p in a goroutine of its own, so that a phase which ignores its context cannot hold the boot past its
// Timeout. Such a phase's goroutine is left behind: there is no way to end it, and the alternative is a hung machine.
func (r Runner) call(ctx context.Context, p Phase) (ran bool, err error) {
	cancel := context.CancelFunc(func() {})
	if p.Timeout > 0 {
		ctx, cancel = context.WithTimeout(ctx, p.Timeout)
	}
	defer cancel()
	type result struct {
		ran bool
		err error
	}
	out := make(chan result, 1)
	go func() {
		var res result
		defer func() { out <- res }()
		defer func() {
			if v := recover(); v != nil {
				pe := &PanicError{Value: v, Stack: string(debug.Stack())}
				r.Logf("phase %s: %v\n%s", p.Name, pe, pe.Stack)
				res.err = pe
			}
		}()
		if p.RunWhen != nil && !p.RunWhen() {
			return
		}
		res.ran = true
		res.err = p.Run(ctx)
	}()
	select {
	case res := <-out:
		return res.ran, timeoutError(ctx, p, res.err)
	case <-ctx.Done():
	}
	// The phase gets a moment to say itself why it ended.
	grace := time.NewTimer(graceAfterDeadline)
	defer grace.Stop()
	select {
	case res := <-out:
		return res.ran, timeoutError(ctx, p, res.err)
	case <-grace.C:
		return true, timeoutError(ctx, p, fmt.Errorf("did not return: %w", ctx.Err()))
	}
}

const graceAfterDeadline = 2 * time.Second

// timeoutError names the limit when err came from it.
func timeoutError(ctx context.Context, p Phase, err error) error {
	if err == nil || p.Timeout == 0 || !errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return err
	}
	return fmt.Errorf("%w after %s: %w", ErrTimeout, p.Timeout, err)
}

// short rounds d for the boot log: microseconds below a millisecond, milliseconds above.
func short(d time.Duration) string {
	if d < time.Millisecond {
		return d.Round(time.Microsecond).String()
	}
	return d.Round(time.Millisecond).String()
}
