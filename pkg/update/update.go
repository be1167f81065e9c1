// Package update brings another release to this machine: it writes the inactive slot, reads it back, and hands it to the
// boot selector for a trial. It never writes to the running slot.
//
// What a run does, and what the machine has when power is cut there:
//
//	prepare    signed lists are fetched, both slots are read     nothing was changed
//	write      4 KiB of zeros at the start of the inactive boot  from here on the inactive slot has no boot file system
//	           partition, flushed, before any other write
//	           root: chunks from the running slot, then the source; dm-verity tree; all of it read back and hashed
//	           boot: all but its first 4 KiB, read back; then these, read back
//	ready      the inactive slot is whole; snapshot of the store nothing is armed: the old release boots
//	arm        one write of the boot selector's state            the old release boots, or the new one on trial
//	armed      drain, reboot                                     the new release boots on trial
//
// A run that was cut short, at any of these, is simply run again: it reads what is in the slot, and fetches what is not
// there. A slot that is whole already is not written at all.
//
// Nothing but signed lists is trusted: each chunk must hash to the id in the index, and each image as a whole to the
// manifest's digest after it was read back from the medium.
//
// Memory: 13 MiB at most in an upgrade with a root of 126 MB and chunks of the default length (measured 2026-11); by
// design at most 28 MiB and 1/64 of the root: four chunks on their way, four being split, one being decompressed and one
// being written (up to 1 MiB each), a delta's dictionary twice (up to 4 MiB), and the verity tree.
package update

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/cairn-os/cairn/pkg/release"
	"github.com/cairn-os/cairn/pkg/slot"
	"github.com/cairn-os/cairn/pkg/update/history"
)

// Errors that callers tell apart.
var (
	// ErrRefused says that the machine must not go to the release now; nothing was changed.
	ErrRefused = errors.New("upgrade refused")
	// ErrCurrent says that there is nothing to do: the release runs already.
	ErrCurrent = errors.New("this version runs already")
	// ErrBusy says that another run is under way.
	ErrBusy = errors.New("another upgrade is under way")
	// ErrMedium says that the medium does not give back what was written to it.
	ErrMedium = errors.New("the disk does not hold what was written to it")
)

// Trust gives what is signed. Errors are for people; one that wraps fs.ErrNotExist says that the release has no such
// file. Implementations check signatures, expiry and length.
type Trust interface {
	// Channel returns the machine's channel.
	Channel(ctx context.Context) (release.Channel, error)
	// Manifest returns the release of that version for the machine's target.
	Manifest(ctx context.Context, version string) (release.Manifest, error)
	// Target returns the file at path, of at most limit bytes.
	Target(ctx context.Context, path string, limit int64) ([]byte, error)
}

// Chunks gives files that are not signed: what they hold is checked here. It is used by several goroutines.
type Chunks interface {
	// Get returns the file at path of the release directory, of at most limit bytes.
	Get(ctx context.Context, path string, limit int64) ([]byte, error)
}

// Bootloader is what of bootloader.Backend the engine needs.
type Bootloader interface {
	Read() (slot.State, error)
	Arm(trial slot.Slot, tries int) (slot.State, error)
	RollBack() (slot.State, error)
}

// Running is what the machine runs now.
type Running struct {
	release.Info
	Target string // "amd64"
	Slot   slot.Slot
}

// Callbacks are the parts of an upgrade that are others' work. Each may be nil.
type Callbacks struct {
	// Check says in words what else stands in the way of going to m now, one string for each thing.
	Check func(ctx context.Context, m release.Manifest) ([]string, error)
	// Snapshot keeps the Kubernetes store as it is before the upgrade and returns the snapshot's name; "" when there is no
	// store here. An error stops the upgrade.
	Snapshot func(ctx context.Context) (string, error)
	// Drain moves the workload away, after the slot was armed. An error disarms it and stops the upgrade.
	Drain func(ctx context.Context) error
	// Reboot asks for an orderly reboot and returns.
	Reboot func(ctx context.Context) error
}

// Options are what an Engine works with.
type Options struct {
	Trust      Trust
	Chunks     Chunks
	Slots      Slots
	Bootloader Bootloader
	History    *history.Store
	Running    Running
	Callbacks  Callbacks
	// Tries is how often the new release may boot before it must have confirmed itself; slot.DefaultTries when 0.
	Tries int
	// Progress is called from the run's goroutine, at most a few times a second's worth of work; nil for none.
	Progress func(Progress)
	Log      *slog.Logger
	Now      func() time.Time
}

// Engine upgrades one machine. Its methods are safe for concurrent use; one of them works at a time, the others return
// ErrBusy.
type Engine struct {
	o  Options
	mu sync.Mutex // held while a method works
}

// New returns an engine. It touches nothing.
func New(o Options) *Engine {
	if o.Tries == 0 {
		o.Tries = slot.DefaultTries
	}
	if o.Progress == nil {
		o.Progress = func(Progress) {}
	}
	return &Engine{o: o}
}

// Request is what somebody wants.
type Request struct {
	Version  string // "" for the newest of the channel
	NoReboot bool   // arm, and leave the reboot to somebody else
}

// Plan says what Run would do, and changes nothing. It reads both slots to know what there is to download. A plan that
// says Refused is returned without an error.
func (e *Engine) Plan(ctx context.Context, q Request) (Plan, error) {
	if !e.mu.TryLock() {
		return Plan{}, ErrBusy
	}
	defer e.mu.Unlock()
	r := newRun(e.o, q)
	err := r.prepare(ctx)
	return r.plan, errors.Join(err, r.close())
}

// Run upgrades, or goes on with an upgrade that was cut short. When it returns nil the slot is armed, and the reboot was
// asked for unless the request says otherwise. Errors wrap ErrRefused or ErrCurrent when nothing was begun; after any
// other the next Run goes on.
func (e *Engine) Run(ctx context.Context, q Request) (Plan, error) {
	if !e.mu.TryLock() {
		return Plan{}, ErrBusy
	}
	defer e.mu.Unlock()
	r := newRun(e.o, q)
	err := r.prepare(ctx)
	switch {
	case err != nil:
	case r.plan.Current:
		err = fmt.Errorf("upgrade to %s: %w", r.plan.To.Version, ErrCurrent)
	case len(r.plan.Refused) > 0:
		err = r.plan.refusal()
	default:
		err = r.begin()
		if err == nil {
			err = r.note(r.upgrade(ctx))
		}
	}
	return r.plan, errors.Join(err, r.close())
}

// Cancel gives up the upgrade that is under way, for text, an operator's reason. A slot that is armed and was not booted
// yet is disarmed. It wraps ErrRefused when the new release runs on trial: that takes a rollback.
func (e *Engine) Cancel(text string) error {
	if !e.mu.TryLock() {
		return ErrBusy
	}
	defer e.mu.Unlock()
	st, found, err := e.o.History.State()
	if err != nil {
		return err
	}
	if !found {
		return fmt.Errorf("cancel: %w: no upgrade is under way", ErrRefused)
	}
	now, err := e.o.Bootloader.Read()
	if err != nil {
		return fmt.Errorf("cancel: %w", err)
	}
	if now.Trial != slot.None {
		if now.Trial == e.o.Running.Slot {
			return fmt.Errorf("cancel: %w: version %s runs on trial now; roll back instead", ErrRefused, st.Version)
		}
		if _, err := e.o.Bootloader.RollBack(); err != nil {
			return fmt.Errorf("cancel: %w", err)
		}
	}
	return e.o.History.Close(st.Attempt, history.End{Verdict: history.Abandoned, Reason: history.Operator, Text: text, Time: e.o.Now()})
}
