package vm

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"
)

// Pace makes the clocks of emulated machines run slower than real time, all by
// the same factor. Between two ticks of their clocks they get done what a real
// machine gets done, so that several can be emulated at once on few processors
// without timeouts that no real machine would see. The zero value is real time.
type Pace struct {
	factor  int
	since   time.Time // when the machines' clocks showed the real time
	library string
}

// NewPace returns a pace at which factor seconds are one to the machines. By
// KVM machines are fast and the pace is real time. The error says what to
// install.
func NewPace(ctx context.Context, factor int) (Pace, error) {
	if factor < 1 {
		return Pace{}, fmt.Errorf("pace 1/%d: want a factor of 1 or more", factor)
	}
	if factor == 1 || KVM(ctx) {
		return Pace{}, nil
	}
	// Preloaded into QEMU, faketime scales the host's clocks and timeouts. The
	// guest's processor still counts its cycles in real time, so its kernel
	// measures it as faster by the factor.
	found, err := filepath.Glob("/usr/lib/*/faketime/libfaketimeMT.so.1")
	if err != nil {
		return Pace{}, err
	}
	if len(found) == 0 {
		return Pace{}, errors.New("slow clocks: install libfaketime")
	}
	return Pace{factor: factor, since: time.Now(), library: found[0]}, nil
}

// At converts a moment to what the machines' clocks show then.
func (p Pace) At(t time.Time) time.Time {
	if p.factor == 0 {
		return t
	}
	return p.since.Add(t.Sub(p.since) / time.Duration(p.factor))
}

// Real is how long a duration of the machines lasts.
func (p Pace) Real(d time.Duration) time.Duration { return d * time.Duration(max(p.factor, 1)) }

// Machines is how much of a duration passes for the machines.
func (p Pace) Machines(d time.Duration) time.Duration { return d / time.Duration(max(p.factor, 1)) }

// String tells the pace to a person.
func (p Pace) String() string {
	if p.factor == 0 {
		return "real time"
	}
	return fmt.Sprintf("clocks at 1/%d of real time", p.factor)
}

// arguments and environment are QEMU's, of a machine that starts now.
func (p Pace) arguments() []string {
	if p.factor == 0 {
		return nil
	}
	return []string{"-rtc", "base=" + p.At(time.Now()).UTC().Format("2006-01-02T15:04:05")}
}

func (p Pace) environment() []string {
	if p.factor == 0 {
		return nil
	}
	return []string{"LD_PRELOAD=" + p.library, fmt.Sprintf("FAKETIME=+0 x%g", 1/float64(p.factor))}
}
