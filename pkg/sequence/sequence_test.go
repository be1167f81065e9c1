package sequence

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-os/cairn/pkg/status"
)

// lines collects what is printed.
type lines struct {
	mu sync.Mutex
	l  []string
}

func (l *lines) logf(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.l = append(l.l, fmt.Sprintf(format, args...))
}

func take(d time.Duration, err error) func(context.Context) error {
	return func(context.Context) error {
		time.Sleep(d)
		return err
	}
}

func TestRunPrintsAndStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out lines
		broken := errors.New("no disk")
		var told []string
		r := Runner{Logf: out.logf, Done: func(p status.Phase) { told = append(told, p.Name) }}
		recs, err := r.Run(t.Context(), []Phase{
			{Name: "mounts", Run: take(38*time.Millisecond, nil)},
			{Name: "hotplug", Run: take(2*time.Second, errors.New("slow bus")), Policy: Report},
			{Name: "modules", Run: take(0, nil), RunWhen: func() bool { return false }},
			{Name: "data", Run: take(time.Millisecond, broken)},
			{Name: "never", Run: take(0, nil)},
		})
		want := []string{
			"phase 1/5 mounts 38ms",
			"phase 2/5 hotplug 2s failed: slow bus",
			"phase 3/5 modules skipped",
			"phase 4/5 data 1ms failed: no disk",
		}
		if diff := cmp.Diff(want, out.l); diff != "" {
			t.Errorf("printed (-want +got):\n%s", diff)
		}
		wantRecs := []status.Phase{
			{Name: "mounts", DurationS: 0.038},
			{Name: "hotplug", StartS: 0.038, DurationS: 2, Error: "slow bus"},
			{Name: "modules", StartS: 2.038, Skipped: true},
			{Name: "data", StartS: 2.038, DurationS: 0.001, Error: "no disk"},
		}
		if diff := cmp.Diff(wantRecs, recs); diff != "" {
			t.Errorf("records (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff([]string{"mounts", "hotplug", "modules", "data"}, told); diff != "" {
			t.Errorf("told (-want +got):\n%s", diff)
		}
		var se *Error
		if !errors.As(err, &se) || se.Phase != "data" || se.Number != 4 || !errors.Is(err, broken) {
			t.Errorf("Run() = %v; want the error of phase data", err)
		}
	})
}

func TestPanicBecomesError(t *testing.T) {
	var out lines
	for _, p := range []Phase{
		{Name: "bad", Run: func(context.Context) error { var none []int; _ = none[len(none)]; return nil }},
		{Name: "bad", Run: take(0, nil), RunWhen: func() bool { panic("condition") }},
	} {
		_, err := Run(t.Context(), out.logf, []Phase{p})
		var pe *PanicError
		if !errors.As(err, &pe) {
			t.Fatalf("Run() = %v; want a PanicError", err)
		}
		if !strings.Contains(pe.Stack, "sequence_test.go") {
			t.Errorf("the stack does not name the phase's code:\n%s", pe.Stack)
		}
	}
	if !strings.Contains(strings.Join(out.l, "\n"), "goroutine") {
		t.Errorf("the log holds no stack: %q", out.l)
	}
}

func TestTimeout(t *testing.T) {
	tests := map[string]func(ctx context.Context) error{
		"heeds its context":   func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() },
		"ignores its context": func(context.Context) error { time.Sleep(time.Hour); return nil },
	}
	for name, run := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var out lines
				begin := time.Now()
				recs, err := Run(t.Context(), out.logf, []Phase{
					{Name: "data", Run: run, Timeout: 30 * time.Second, Policy: Report},
					{Name: "next", Run: take(0, nil)},
				})
				if err != nil || len(recs) != 2 {
					t.Fatalf("Run() = %v, %v; want both phases", recs, err)
				}
				if !strings.Contains(recs[0].Error, "timed out after 30s") {
					t.Errorf("error %q; want the limit in it", recs[0].Error)
				}
				if d := time.Since(begin); d > 33*time.Second {
					t.Errorf("took %s; want the limit and a little grace", d)
				}
				time.Sleep(2 * time.Hour) // the bubble wants the abandoned phase to end
			})
		})
	}
}

func TestCancelledSequenceStops(t *testing.T) {
	var out lines
	ctx, cancel := context.WithCancel(t.Context())
	recs, err := Run(ctx, out.logf, []Phase{
		{Name: "one", Run: func(context.Context) error { cancel(); return nil }, Policy: Report},
		{Name: "two", Run: take(0, nil), Policy: Report},
		{Name: "three", Run: take(0, nil), Policy: Report},
	})
	if !errors.Is(err, context.Canceled) || len(recs) != 2 {
		t.Errorf("Run() = %v, %v; want it cancelled at phase two", recs, err)
	}
}
