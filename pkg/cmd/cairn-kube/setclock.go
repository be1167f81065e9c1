package main

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cairn-os/cairn/pkg/join"
	"github.com/cairn-os/cairn/pkg/machine/adminapi"
	"github.com/cairn-os/cairn/pkg/status"
)

// machineClock is the kernel's clock, on a machine where cairnd keeps it.
type machineClock struct {
	keeper func(context.Context) (status.Status, error) // what cairnd says
	adjust func(*unix.Timex) (int, error)               // adjtimex(2)
	set    func(*unix.Timeval) error                    // settimeofday(2), which needs CAP_SYS_TIME
}

var _ join.Clock = machineClock{}

func newMachineClock() machineClock {
	return machineClock{keeper: adminapi.NewClient(adminapi.Path).Status, adjust: unix.Adjtimex, set: unix.Settimeofday}
}

// Unset asks cairnd, which tells whether a time server answered it, and keeps no clock in a container, where it is the
// host's; and the kernel, which any other program that keeps the time has told.
func (c machineClock) Unset(ctx context.Context) (bool, error) {
	st, err := c.keeper(ctx)
	if err != nil {
		return false, fmt.Errorf("ask cairnd for the clock: %w", err)
	}
	if st.Clock == nil || st.Clock.Synchronized {
		return false, nil
	}
	var tx unix.Timex
	if _, err := c.adjust(&tx); err != nil {
		return false, fmt.Errorf("ask the kernel for the clock: %w", err)
	}
	return tx.Status&unix.STA_UNSYNC != 0, nil
}

// Set leaves the kernel's mark that nobody vouches for the clock: the first time server that answers corrects it.
func (c machineClock) Set(t time.Time) error {
	tv := unix.NsecToTimeval(t.UnixNano())
	if err := c.set(&tv); err != nil {
		return fmt.Errorf("settimeofday: %w", err)
	}
	return nil
}
