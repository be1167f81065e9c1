package power

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Constants of <linux/input-event-codes.h>.
const (
	evKey    = 0x01
	keyPower = 116
)

// eventSize is that of struct input_event: a timeval of the architecture, type, code, value.
const eventSize = int(unsafe.Sizeof(unix.Timeval{})) + 8

// ErrNoButton says that an input device has no power button.
var ErrNoButton = errors.New("no power button")

// WatchButton reads the input device at path (/dev/input/event*) and calls pressed each time its power button goes
// down, until ctx ends (nil) or the device goes away. It returns ErrNoButton at once for other devices.
func WatchButton(ctx context.Context, path string, pressed func()) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	if !hasPowerKey(fd) {
		return fmt.Errorf("%s: %w", path, ErrNoButton)
	}
	stop := context.AfterFunc(ctx, func() { _ = f.Close() })
	defer stop()
	err = readPresses(f, pressed)
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("read %s: %w", path, err)
}

// hasPowerKey asks the device for the keys it can send: EVIOCGBIT(EV_KEY).
func hasPowerKey(fd int) bool {
	var bits [96]byte // KEY_CNT is 768
	const read = uintptr(2) << 30
	request := read | uintptr(len(bits))<<16 | 'E'<<8 | (0x20 + evKey)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(unsafe.Pointer(&bits[0])))
	return errno == 0 && bits[keyPower/8]&(1<<(keyPower%8)) != 0
}

// readPresses reads events until r ends.
func readPresses(r io.Reader, pressed func()) error {
	buf := make([]byte, 64*eventSize)
	for {
		n, err := r.Read(buf)
		for b := buf[:n]; len(b) >= eventSize; b = b[eventSize:] {
			e := b[eventSize-8:]
			kind, code := binary.NativeEndian.Uint16(e), binary.NativeEndian.Uint16(e[2:])
			if kind == evKey && code == keyPower && binary.NativeEndian.Uint32(e[4:]) == 1 {
				pressed()
			}
		}
		if err != nil {
			return err
		}
	}
}
