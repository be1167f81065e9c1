// Package trial keeps what a boot of a slot on trial says of itself, where the boot after it finds it: its report
// (slot.Report). And it is the door through which init looks at the slot state and, at the deadline, rolls it back.
//
// A boot of a confirmed slot writes nothing: Begin then returns nil, and a nil *Trial does nothing. No write may keep a
// machine from going on: each has a time limit, and its failure is a line on the console.
package trial

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/cairn-os/cairn/init/internal/guard"
	"github.com/cairn-os/cairn/pkg/bootloader"
	"github.com/cairn-os/cairn/pkg/bootloader/grubenv"
	"github.com/cairn-os/cairn/pkg/bootloader/sysfile"
	"github.com/cairn-os/cairn/pkg/sequence"
	"github.com/cairn-os/cairn/pkg/slot"
)

// limit is for one look or write: longer than a backend waits for another process.
const limit = 20 * time.Second

// Open makes CAIRN_SYS's backend there for the time of use, and returns use's error or its own.
type Open func(use func(bootloader.Backend) error) error

// At opens the backend on the CAIRN_SYS that is mounted at dir.
func At(dir string) Open {
	return func(use func(bootloader.Backend) error) error {
		return use(grubenv.New(sysfile.Dir{Path: dir, Writable: bootloader.Remount(dir)}))
	}
}

// Trial is the running boot of a slot on trial. Its methods may be called from any goroutine.
type Trial struct {
	open    Open
	logf    guard.Logf
	running slot.Slot
	state   slot.State // when the boot began

	mu     sync.Mutex // guards what follows
	report slot.Report
}

// Begin reads the state that the selector booted by. The Trial is nil when running is not on trial.
func Begin(open Open, running slot.Slot, logf guard.Logf) (*Trial, slot.State, error) {
	t := &Trial{open: open, logf: logf, running: running}
	state, err := t.read()
	if err != nil || state.Trial != running {
		return nil, state, err
	}
	t.state, t.report = state, state.Report(slot.StageEarly)
	t.report.BootID = bootID("/proc")
	return t, state, nil
}

// bootID is the running kernel's, or "".
func bootID(proc string) string {
	data, err := os.ReadFile(proc + "/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(data))
}

// TriesLeft is how many boots the slot has after this one.
func (t *Trial) TriesLeft() int {
	if t == nil {
		return 0
	}
	return t.state.Tries
}

// Reached writes that the boot came to stage.
func (t *Trial) Reached(stage slot.Stage) {
	t.write(func(r *slot.Report) { r.Stage = stage })
}

// Failed writes why the boot does not go on. A *sequence.Error names the phase; phase is for other errors.
func (t *Trial) Failed(phase string, err error) {
	if failed := (*sequence.Error)(nil); errors.As(err, &failed) {
		phase, err = failed.Phase, failed.Err
	}
	t.write(func(r *slot.Report) { r.Phase, r.Error = phase, err.Error() })
}

func (t *Trial) write(change func(*slot.Report)) {
	if t == nil {
		return
	}
	t.mu.Lock()
	change(&t.report)
	report := t.report
	t.mu.Unlock()
	err := t.within("report of the trial", func() error {
		return t.open(func(b bootloader.Backend) error { return b.WriteReport(report) })
	})
	if err != nil {
		t.logf("what this trial boot says of itself is not kept: %v", err)
	}
}

// Confirmed reads from the disk whether the running slot is confirmed by now.
func (t *Trial) Confirmed() (bool, error) {
	state, err := t.read()
	return err == nil && state.Confirmed == t.running && state.Trial == slot.None, err
}

// RollBack ends the trial in favour of the confirmed slot. A trial that somebody else ended is none any more.
func (t *Trial) RollBack() error {
	if t == nil {
		return nil
	}
	err := t.within("roll back", func() error {
		return t.open(func(b bootloader.Backend) error {
			state, err := b.RollBack()
			if err == nil {
				t.logf("rolled back: %s", state)
			}
			return err
		})
	})
	if errors.Is(err, slot.ErrNoTrial) {
		return nil
	}
	return err
}

func (t *Trial) read() (slot.State, error) {
	var state slot.State
	err := t.within("slot state", func() error {
		return t.open(func(b bootloader.Backend) (err error) {
			state, err = b.Read()
			return err
		})
	})
	if err != nil { // state may still be written to
		return slot.State{}, err
	}
	return state, nil
}

var errUnfinished = errors.New("it did not end")

// within runs fn, and leaves it behind when the disk hangs.
func (t *Trial) within(name string, fn func() error) error {
	result := make(chan error, 1)
	guard.Within(limit, t.logf, name, func() error { result <- guard.Call(fn); return nil })
	select {
	case err := <-result:
		return err
	default:
		return fmt.Errorf("%s: %w within %v", name, errUnfinished, limit)
	}
}
