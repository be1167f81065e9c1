// Package watchdog keeps a hardware watchdog from resetting the machine for as long as it is fed.
//
// Reference: Documentation/watchdog/watchdog-api.rst. The machine is reset when nothing is written for the timeout,
// also after the device was closed, unless the last byte written was 'V' (Disarm).
package watchdog

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Path is the first watchdog of the machine.
const Path = "/dev/watchdog"

// Requests of <linux/watchdog.h>; the direction bits are the same on all architectures built for.
const (
	setTimeout = 0xc0045706
	getTimeout = 0x80045707
)

// Watchdog is an armed watchdog.
type Watchdog struct {
	file    *os.File
	timeout time.Duration
}

// Open arms the watchdog at path. The driver may grant another timeout than the one asked for; see Timeout. A missing
// device is an error that wraps fs.ErrNotExist.
func Open(path string, timeout time.Duration) (*Watchdog, error) {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return nil, fmt.Errorf("open watchdog: %w", err)
	}
	w := &Watchdog{file: f, timeout: timeout}
	seconds := int32(timeout / time.Second)
	if err := w.ioctl(setTimeout, &seconds); err != nil {
		// Some drivers have one fixed timeout: ask for it.
		if err := w.ioctl(getTimeout, &seconds); err != nil {
			return w, nil // not even that: what was asked for is the best guess, and feeding goes by it
		}
	}
	if seconds > 0 {
		w.timeout = time.Duration(seconds) * time.Second
	}
	return w, nil
}

func (w *Watchdog) ioctl(request uintptr, value *int32) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, w.file.Fd(), request, uintptr(unsafe.Pointer(value)))
	if errno != 0 {
		return errno
	}
	return nil
}

// Timeout is how long the machine lives without Feed.
func (w *Watchdog) Timeout() time.Duration { return w.timeout }

// Feed resets the watchdog's clock.
func (w *Watchdog) Feed() error {
	if _, err := w.file.Write([]byte{'1'}); err != nil {
		return fmt.Errorf("feed watchdog: %w", err)
	}
	return nil
}

// Run feeds the watchdog four times per timeout while alive returns nil, until ctx ends; it does not disarm. alive is
// asked first: what it reports is returned, and the machine is reset one timeout later unless someone feeds again.
func (w *Watchdog) Run(ctx context.Context, alive func(context.Context) error) error {
	tick := time.NewTicker(w.timeout / 4)
	defer tick.Stop()
	for {
		if err := alive(ctx); err != nil {
			return fmt.Errorf("the watchdog is no longer fed: %w", err)
		}
		if err := w.Feed(); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// Disarm closes the watchdog so that it does not fire. Drivers built "nowayout" fire all the same.
func (w *Watchdog) Disarm() error {
	_, err := w.file.Write([]byte{'V'})
	if err := errors.Join(err, w.file.Close()); err != nil {
		return fmt.Errorf("disarm watchdog: %w", err)
	}
	return nil
}
