// Package uevent receives the kernel's device events.
//
// Reference: lib/kobject_uevent.c. A message is "action@devpath" and then KEY=VALUE strings, each ended by a NUL byte.
package uevent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Event is one device event.
type Event struct {
	Action  string // "add", "remove", "change", "bind", ...
	DevPath string // below /sys
	Env     map[string]string
}

// ErrMalformed is wrapped by Parse's errors.
var ErrMalformed = errors.New("malformed device event")

// ErrOverrun says that the kernel dropped events because they were not read fast enough: look at sysfs again.
var ErrOverrun = errors.New("device events were lost")

// bufferSize takes the burst of a USB hub's tree; the kernel's messages are at most 2 KiB each.
const bufferSize = 1 << 20

// Parse reads one message.
func Parse(msg []byte) (Event, error) {
	fields := bytes.Split(bytes.TrimSuffix(msg, []byte{0}), []byte{0})
	action, path, ok := strings.Cut(string(fields[0]), "@")
	if !ok || action == "" || !strings.HasPrefix(path, "/") {
		return Event{}, fmt.Errorf("%w: starts with %.40q", ErrMalformed, fields[0])
	}
	e := Event{Action: action, DevPath: path, Env: make(map[string]string, len(fields)-1)}
	for _, f := range fields[1:] {
		key, value, ok := strings.Cut(string(f), "=")
		if !ok || key == "" {
			return Event{}, fmt.Errorf("%w: %.40q is no assignment", ErrMalformed, f)
		}
		e.Env[key] = value
	}
	return e, nil
}

// Subsystem is the device's subsystem: "block", "net", "input", ...
func (e Event) Subsystem() string { return e.Env["SUBSYSTEM"] }

// Listener is a subscription to all events of the kernel.
type Listener struct {
	file *os.File
}

// Listen subscribes. Events queue up from now on, so that a scan of sysfs that follows misses nothing.
func Listen() (*Listener, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return nil, fmt.Errorf("listen for device events: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}); err != nil {
		return nil, errors.Join(fmt.Errorf("listen for device events: %w", err), unix.Close(fd))
	}
	// Best effort: without the privilege the default of 208 KiB stays, and an overrun is noticed anyway.
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, bufferSize)
	return &Listener{os.NewFile(uintptr(fd), "uevents")}, nil
}

// Close ends the subscription and a Run that is under way.
func (l *Listener) Close() error { return l.file.Close() }

// Run calls handle for every event of the kernel until ctx ends. lost is called after an overrun and for messages that
// make no sense.
func (l *Listener) Run(ctx context.Context, handle func(Event), lost func(error)) error {
	stop := context.AfterFunc(ctx, func() { _ = l.file.Close() })
	defer stop()
	conn, err := l.file.SyscallConn()
	if err != nil {
		return fmt.Errorf("read device events: %w", err)
	}
	buf := make([]byte, 16<<10)
	for {
		n, from, err := receive(conn, buf)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, unix.ENOBUFS):
			lost(ErrOverrun)
			continue
		case err != nil:
			return fmt.Errorf("read device events: %w", err)
		}
		if a, ok := from.(*unix.SockaddrNetlink); !ok || a.Pid != 0 {
			continue // not from the kernel
		}
		e, err := Parse(buf[:n])
		if err != nil {
			lost(err)
			continue
		}
		handle(e)
	}
}

// receive waits for one message without holding a thread.
func receive(conn interface {
	Read(func(uintptr) bool) error
}, buf []byte) (n int, from unix.Sockaddr, err error) {
	waitErr := conn.Read(func(fd uintptr) bool {
		n, from, err = unix.Recvfrom(int(fd), buf, 0)
		return err != unix.EAGAIN && err != unix.EINTR
	})
	if waitErr != nil {
		return 0, nil, waitErr
	}
	return n, from, err
}
