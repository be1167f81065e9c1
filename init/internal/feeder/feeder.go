// Package feeder keeps the hardware watchdog fed for as long as init is well, through both of init's stages.
//
//	early stage           Arm, feeding ── HandOn ─┐ execve(2): the watchdog stays armed
//	system stage          Arm takes it over ◀─────┘ feeding
//	shutdown              EndAfter: a shutdown that hangs is not fed for ever
//	reboot                Stop: no more feeding, still armed until the kernel restarts the machine
//	power off             Disarm
package feeder

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"time"

	"github.com/cairn-os/cairn/init/internal/guard"
	"github.com/cairn-os/cairn/pkg/status"
	"github.com/cairn-os/cairn/pkg/watchdog"
)

// Timeout is how long the machine lives without being fed, where the hardware can count so far.
const Timeout = time.Minute

// fds is where a process finds its open files.
const fds = "/proc/self/fd"

var errOver = errors.New("the time for what was to be done is over")

// Feeder feeds the machine's watchdog. A nil *Feeder, and one that found no watchdog, do nothing. Its methods may be
// called from any goroutine.
type Feeder struct {
	logf guard.Logf
	path string

	mu   sync.Mutex // guards what follows
	dog  *watchdog.Watchdog
	told status.Watchdog
	well func() error
	end  time.Time // of the feeding; zero: none
	stop context.CancelFunc
	fed  <-chan struct{} // closed when the feeding is over
}

// New returns a Feeder of the watchdog at path, which need not be there.
func New(logf guard.Logf, path string) *Feeder { return &Feeder{logf: logf, path: path} }

// Arm arms the watchdog, or takes over the one that the stage before handed on, and begins to feed it. Once it is armed
// that changes nothing. found is false when the machine has none.
func (f *Feeder) Arm() (found bool, err error) {
	if f == nil {
		return false, nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.dog != nil {
		return true, nil
	}
	dog, err := watchdog.Inherit(fds, f.path, Timeout)
	if err != nil {
		f.logf("%v", err) // with no /proc there is no stage before, either
	}
	if dog == nil {
		dog, err = watchdog.Open(f.path, Timeout)
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
	}
	reset, err := dog.BootStatus()
	if err != nil {
		f.logf("%v", err)
	}
	if reset {
		f.logf("the watchdog has reset this machine: it hung before this boot")
	}
	f.dog, f.told = dog, status.Watchdog{Name: dog.Name(), TimeoutS: status.InSeconds(dog.Timeout()), CausedReset: reset}
	f.feed()
	return true, nil
}

// feed begins to feed. mu is held.
func (f *Feeder) feed() {
	feeding, stop := context.WithCancel(context.Background())
	dog := f.dog
	f.stop = stop
	f.fed = guard.Go(f.logf, "watchdog", func() error {
		err := dog.Run(feeding, func(context.Context) error { return f.alive() })
		if feeding.Err() != nil {
			return nil
		}
		return err
	})
}

// alive says why the machine should be fed no more.
func (f *Feeder) alive() error {
	f.mu.Lock()
	well, end := f.well, f.end
	f.mu.Unlock()
	if !end.IsZero() && !time.Now().Before(end) {
		return errOver
	}
	if well != nil {
		return well()
	}
	return nil
}

// Ask has well asked before each feeding: after its error the machine is fed no more, and is reset.
func (f *Feeder) Ask(well func() error) {
	if f == nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.well = well
}

// EndAfter ends the feeding after d, for what must be through by then.
func (f *Feeder) EndAfter(d time.Duration) {
	if f == nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.end = time.Now().Add(d)
}

// Stop ends the feeding and leaves the watchdog armed: what comes next has one timeout at most.
func (f *Feeder) Stop() {
	if f == nil {
		return
	}
	f.mu.Lock()
	stop, fed := f.stop, f.fed
	f.stop, f.fed = nil, nil
	f.mu.Unlock()
	if stop != nil {
		stop()
		<-fed
	}
}

// HandOn ends the feeding and keeps the watchdog open for the program that this process executes next, at once. When
// that fails, Resume.
func (f *Feeder) HandOn() error {
	f.Stop()
	if f == nil {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.dog == nil {
		return nil
	}
	return f.dog.HandOn()
}

// Resume feeds again after Stop or HandOn.
func (f *Feeder) Resume() {
	if f == nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.dog != nil && f.stop == nil {
		f.feed()
	}
}

// Disarm ends the feeding and the watchdog with it.
func (f *Feeder) Disarm() error {
	f.Stop() // before: a feeding would arm it again
	if f == nil {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.dog == nil {
		return nil
	}
	dog := f.dog
	f.dog = nil
	return dog.Disarm()
}

// Status is what the node tells of the watchdog; nil when none is armed.
func (f *Feeder) Status() *status.Watchdog {
	if f == nil {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.dog == nil {
		return nil
	}
	told := f.told
	return &told
}

// String names the watchdog for the console.
func (f *Feeder) String() string {
	s := f.Status()
	switch {
	case s == nil:
		return "no watchdog"
	case s.Name == "":
		return fmt.Sprintf("a watchdog of %v", s.TimeoutS)
	}
	return fmt.Sprintf("%s of %v", s.Name, s.TimeoutS)
}
