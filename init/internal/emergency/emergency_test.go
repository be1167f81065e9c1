package emergency

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cairn-os/cairn/pkg/cmdline"
	"github.com/cairn-os/cairn/pkg/sequence"
	"github.com/google/go-cmp/cmp"
)

func TestScreen(t *testing.T) {
	err := &sequence.Error{Phase: "config", Number: 7, Total: 17, Err: errors.New("seed/config.yaml:3: hostnam: unknown key\nseed/config.yaml:9: cairn.labels: want a mapping")}
	want := `================ CAIRN CANNOT START ================
What failed: phase "config" of the system
       Why: seed/config.yaml:3: hostnam: unknown key
            seed/config.yaml:9: cairn.labels: want a mapping
What to do: Correct the configuration: on the card's first partition (CAIRN_SYS) in seed/config.yaml, or with ssh from another boot in /var/lib/cairn/config.yaml.
====================================================`
	if diff := cmp.Diff(want, Screen("the system", fmt.Errorf("boot: %w", err))); diff != "" {
		t.Errorf("Screen (-want +got):\n%s", diff)
	}
	if got := Screen("the system", errors.New("a bug in init")); !strings.Contains(got, "a bug in init") || !strings.Contains(got, noAdvice) {
		t.Errorf("Screen of an unknown failure = %q", got)
	}
}

// TestScreenOnTrial: whatever failed, nobody needs to do anything.
func TestScreenOnTrial(t *testing.T) {
	failed := &sequence.Error{Phase: "verity", Number: 4, Total: 5, Err: errors.New("CAIRN_ROOT_B (/dev/vda5): damaged")}
	for left, want := range map[int]string{0: "with the next start.", 1: "after one more try.", 2: "after 2 more tries at most."} {
		got := Screen("early boot", OnTrial{Err: failed, TriesLeft: left})
		if !strings.Contains(got, "the old one comes back by itself") || !strings.Contains(got, want) || !strings.Contains(got, `phase "verity"`) {
			t.Errorf("Screen with %d tries left:\n%s", left, got)
		}
		if strings.Contains(got, advice["verity"]) {
			t.Errorf("Screen with %d tries left sends somebody to the machine:\n%s", left, got)
		}
	}
}

// TestHowLong goes by a fake clock.
func TestHowLong(t *testing.T) {
	failed := errors.New("x")
	for want, err := range map[time.Duration]error{time.Minute: failed, 10 * time.Second: fmt.Errorf("boot: %w", OnTrial{Err: failed})} {
		synctest.Test(t, func(t *testing.T) {
			begin := time.Now()
			Waiter{Logf: t.Logf}.Wait(t.Context(), cmdline.Line{}, "early boot", err)
			if took := time.Since(begin); took != want {
				t.Errorf("the screen of %#v stayed %v; want %v", err, took, want)
			}
		})
	}
}

// TestWait has each thing that may end the wait end it.
func TestWait(t *testing.T) {
	signals := make(chan os.Signal, 1)
	signals <- syscall.SIGINT
	tests := []struct {
		name, line string
		w          Waiter
	}{
		{"time", "", Waiter{After: time.Millisecond}},
		{"enter", "cairn.emergency=wait", Waiter{Console: strings.NewReader("\n"), After: time.Millisecond}},
		{"signal", "cairn.emergency=wait", Waiter{Signals: signals, After: time.Millisecond}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var out strings.Builder
			tt.w.Logf = func(format string, args ...any) { fmt.Fprintf(&out, format+"\n", args...) }
			tt.w.Wait(t.Context(), cmdline.Parse(tt.line), "early boot", errors.New("x"))
			if !strings.HasSuffix(out.String(), "restarting\n") {
				t.Errorf("the console said %q", out.String())
			}
		})
	}
}
