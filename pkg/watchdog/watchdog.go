// Package watchdog keeps a hardware watchdog from resetting the machine for as long as it is fed.
//
// Reference: Documentation/watchdog/watchdog-api.rst. The machine is reset when nothing is written for the timeout,
// also after the device was closed, unless the last byte written was 'V' (Disarm).
package watchdog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Path is the first watchdog of the machine.
const Path = "/dev/watchdog"

// Requests of <linux/watchdog.h>; the direction bits are the same on all architectures built for.
const (
	getSupport    = 0x80285700
	getBootStatus = 0x80045702
	setTimeout    = 0xc0045706
	getTimeout    = 0x80045707
)

// cardReset is WDIOF_CARDRESET: the watchdog was what last reset the machine.
const cardReset = 0x20

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
	return armed(f, timeout), nil
}

// Inherit takes over the watchdog at path that an earlier program of this process armed and handed on by HandOn. It
// stays armed. Without one it returns nil. fds is where the process finds its open files: /proc/self/fd.
func Inherit(fds, path string, timeout time.Duration) (*Watchdog, error) {
	entries, err := os.ReadDir(fds)
	if err != nil {
		return nil, fmt.Errorf("inherit watchdog: %w", err)
	}
	for _, e := range entries {
		if to, err := os.Readlink(filepath.Join(fds, e.Name())); err != nil || to != path {
			continue
		}
		fd, err := strconv.Atoi(e.Name())
		if err != nil {
			return nil, fmt.Errorf("inherit watchdog: %w", err)
		}
		unix.CloseOnExec(fd) // for the processes that this one starts
		return armed(os.NewFile(uintptr(fd), path), timeout), nil
	}
	return nil, nil
}

// armed asks the open watchdog for the timeout.
func armed(f *os.File, timeout time.Duration) *Watchdog {
	w := &Watchdog{file: f, timeout: timeout}
	seconds := int32(timeout / time.Second)
	if err := w.ioctl(setTimeout, &seconds); err != nil {
		// Some drivers have one fixed timeout: ask for it.
		if err := w.ioctl(getTimeout, &seconds); err != nil {
			return w // not even that: what was asked for is the best guess, and feeding goes by it
		}
	}
	if seconds > 0 {
		w.timeout = time.Duration(seconds) * time.Second
	}
	return w
}

// HandOn feeds the watchdog and keeps it open over the next execve(2), for Inherit. Whoever calls it executes at once.
func (w *Watchdog) HandOn() error {
	if err := w.Feed(); err != nil {
		return err
	}
	if _, err := unix.FcntlInt(w.file.Fd(), unix.F_SETFD, 0); err != nil {
		return fmt.Errorf("hand on watchdog: %w", err)
	}
	return nil
}

// BootStatus reports whether this watchdog is what last reset the machine. Only some drivers know: those of QEMU's
// i6300esb, of ACPI's generic watchdog and of AMD's chipsets do, that of Intel's iTCO never does. So true can be
// believed, and false says nothing.
func (w *Watchdog) BootStatus() (reset bool, err error) {
	var flags int32
	if err := w.ioctl(getBootStatus, &flags); err != nil {
		return false, fmt.Errorf("ask watchdog for its boot status: %w", err)
	}
	return flags&cardReset != 0, nil
}

// Name is what the driver calls the device, or "" when it does not say.
func (w *Watchdog) Name() string {
	// struct watchdog_info: options, firmware version, identity.
	var info struct {
		options, firmware uint32
		identity          [32]byte
	}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, w.file.Fd(), getSupport, uintptr(unsafe.Pointer(&info))); errno != 0 {
		return ""
	}
	name, _, _ := bytes.Cut(info.identity[:], []byte{0})
	return string(name)
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
