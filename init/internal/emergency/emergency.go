// Package emergency is what a person sees when the boot cannot go on: which phase failed, why, and what to do about it.
//
// Nobody may be near, so the machine starts again by itself after a while: a cause outside of it (a slow disk, a late
// cable) may be gone by then, and a slot on trial is rolled back by the boot selector once its tries are used up.
package emergency

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/cairn-os/cairn/init/internal/feeder"
	"github.com/cairn-os/cairn/init/internal/guard"
	"github.com/cairn-os/cairn/pkg/cmdline"
	"github.com/cairn-os/cairn/pkg/sequence"
)

// RestartAfter is how long the screen stays. On trial it is shorter: nobody needs to do anything, and the shop should
// have its old version back soon.
const (
	RestartAfter      = time.Minute
	TrialRestartAfter = 10 * time.Second
)

// OnTrial is a failure of a slot on trial.
type OnTrial struct {
	Err       error
	TriesLeft int // boots after this one
}

func (e OnTrial) Error() string { return e.Err.Error() }

// Unwrap returns what failed.
func (e OnTrial) Unwrap() error { return e.Err }

// advice says what happens next.
func (e OnTrial) advice() string {
	const back = "Nothing. This version was on trial, and the old one comes back by itself"
	switch e.TriesLeft {
	case 0:
		return back + " with the next start."
	case 1:
		return back + ", after one more try."
	}
	return fmt.Sprintf("%s, after %d more tries at most.", back, e.TriesLeft)
}

// advice says per phase what the owner can do.
var advice = map[string]string{
	"boot entry": "The boot selector's entry is incomplete. Choose the other slot in the boot menu, or flash the image again.",
	"boot disk":  "Check that the disk or card is seated and whole, and that no second disk holds a copy of the same image.",
	"verity":     "The system partition does not hold what was installed: it was damaged or changed. Choose the other slot in the boot menu, or flash the image again. Data is on another partition.",
	"root":       "The system partition cannot be read. Choose the other slot in the boot menu, or flash the image again.",
	"switch":     "The system partition cannot be used. Choose the other slot in the boot menu, or flash the image again.",
	"data":       "The data partition CAIRN_DATA cannot be used. Connect the disk to another machine and check it with e2fsck, or replace the disk. Nothing was formatted.",
	"config":     "Correct the configuration: on the card's first partition (CAIRN_SYS) in seed/config.yaml, or with ssh from another boot in /var/lib/cairn/config.yaml.",
	"etc":        "The system partition lacks parts that belong to every release. Choose the other slot in the boot menu.",
}

const noAdvice = "This should not happen. Note down the text above, choose the other slot in the boot menu, and report it."

// Screen is the text for a failed stage.
func Screen(stage string, err error) string {
	phase, cause := "start", err
	if failed := (*sequence.Error)(nil); errors.As(err, &failed) {
		phase, cause = failed.Phase, failed.Err
	}
	todo, ok := advice[phase]
	if !ok {
		todo = noAdvice
	}
	if trial := (OnTrial{}); errors.As(err, &trial) {
		todo = trial.advice()
	}
	var b strings.Builder
	b.WriteString("================ CAIRN CANNOT START ================\n")
	fmt.Fprintf(&b, "What failed: phase %q of %s\n", phase, stage)
	lines := strings.Split(strings.TrimSpace(cause.Error()), "\n")
	for i, line := range lines {
		label := "       Why: "
		if i > 0 {
			label = "            "
		}
		b.WriteString(label + line + "\n")
	}
	fmt.Fprintf(&b, "What to do: %s\n", todo)
	b.WriteString("====================================================")
	return b.String()
}

// Waiter shows the screen and waits.
type Waiter struct {
	Logf guard.Logf
	// Console is read for the Enter key; nil: nobody can press one.
	Console io.Reader
	// Signals end the wait: Ctrl-Alt-Del and the power button's.
	Signals <-chan os.Signal
	After   time.Duration // 0: RestartAfter, or TrialRestartAfter
	// Watchdog is fed meanwhile; nil: none.
	Watchdog *feeder.Feeder
}

// after is how long the screen of err stays; 0: until somebody asks for the restart.
func (w Waiter) after(line cmdline.Line, err error) time.Duration {
	if how, _ := line.Get("cairn.emergency"); how == "wait" {
		return 0
	}
	if w.After != 0 {
		return w.After
	}
	if trial := (OnTrial{}); errors.As(err, &trial) {
		return TrialRestartAfter
	}
	return RestartAfter
}

// Wait prints the screen and returns when the machine shall start again. With cairn.emergency=wait on the command
// line that is only when somebody asks for it.
func (w Waiter) Wait(ctx context.Context, line cmdline.Line, stage string, err error) {
	for text := range strings.SplitSeq(Screen(stage, err), "\n") {
		w.Logf("%s", text)
	}
	var expired <-chan time.Time
	if after := w.after(line, err); after == 0 {
		w.Logf("Press Enter or Ctrl-Alt-Del to restart.")
	} else {
		timer := time.NewTimer(after)
		defer timer.Stop()
		expired = timer.C
		// Should even this screen hang, the watchdog ends it.
		w.Watchdog.EndAfter(after + feeder.Timeout)
		w.Logf("The machine restarts in %v, or when Enter or Ctrl-Alt-Del is pressed.", after)
	}
	select {
	case <-ctx.Done():
	case <-expired:
	case <-w.Signals:
	case <-enter(w.Console):
	}
	w.Logf("restarting")
}

// enter is closed when a line was read. Without a console, or at its end, it stays open.
func enter(console io.Reader) <-chan struct{} {
	pressed := make(chan struct{})
	if console == nil {
		return pressed
	}
	go func() {
		if n, err := console.Read(make([]byte, 1)); err == nil && n > 0 {
			close(pressed)
		}
	}()
	return pressed
}
