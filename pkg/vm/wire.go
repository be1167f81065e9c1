package vm

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	// wireQueue is how many frames wait for a machine that is slow to take them. What comes on top is lost, as in a switch.
	wireQueue = 1024
	// longestFrame is QEMU's NET_BUFSIZE.
	longestFrame = 4096 + 65536
	frameHeader  = 4
	// wireFD is the number of QEMU's first file beside the standard ones.
	wireFD = 3
)

// Wire is an Ethernet that joins machines with each other and with nothing else, as a hub does: what one sends, all the
// others receive. It needs no rights on the host. A machine is on it from its start to its end.
type Wire struct {
	mu   sync.Mutex // guards ends, and lets tap see one frame at a time
	ends map[*wireEnd]bool
	tap  func(frame []byte)
}

// wireEnd is where a machine is plugged in.
type wireEnd struct {
	conn net.Conn
	out  chan []byte // frames with their headers; closed when the machine is gone
}

// NewWire returns a wire without machines. tap, unless it is nil, is shown each frame from its Ethernet header on, one at a
// time, and must be quick.
func NewWire(tap func(frame []byte)) *Wire {
	return &Wire{ends: map[*wireEnd]bool{}, tap: tap}
}

// plug adds an end. The file is QEMU's side of it: whoever closes it last, unplugs.
// Frames follow each other with their length in front, as in QEMU's net/socket.c.
func (w *Wire) plug() (*os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("plug into the wire: %w", err)
	}
	theirs, ours := os.NewFile(uintptr(fds[0]), "wire"), os.NewFile(uintptr(fds[1]), "wire")
	conn, err := net.FileConn(ours)
	err = errors.Join(err, ours.Close()) // conn has a copy
	if err != nil {
		return nil, fmt.Errorf("plug into the wire: %w", errors.Join(err, theirs.Close()))
	}
	e := &wireEnd{conn: conn, out: make(chan []byte, wireQueue)}
	w.mu.Lock()
	w.ends[e] = true
	w.mu.Unlock()
	go e.write()
	go w.read(e)
	return theirs, nil
}

// write hands frames to the machine until it is gone.
func (e *wireEnd) write() {
	for frame := range e.out {
		if _, err := e.conn.Write(frame); err != nil {
			break
		}
	}
	// read notices too, takes the end off the wire and closes it: until then frames fill the queue and are lost.
}

// read passes on what the machine sends until it is gone.
func (w *Wire) read(e *wireEnd) {
	defer func() {
		w.mu.Lock()
		delete(w.ends, e)
		close(e.out)
		w.mu.Unlock()
		e.conn.Close()
	}()
	in := bufio.NewReader(e.conn)
	for {
		var header [frameHeader]byte
		if _, err := io.ReadFull(in, header[:]); err != nil {
			return
		}
		size := binary.BigEndian.Uint32(header[:])
		if size > longestFrame {
			return // no frame begins here
		}
		frame := make([]byte, frameHeader+size)
		copy(frame, header[:])
		if _, err := io.ReadFull(in, frame[frameHeader:]); err != nil {
			return
		}
		w.send(e, frame)
	}
}

// send gives a frame to all ends but its sender's.
func (w *Wire) send(from *wireEnd, frame []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.tap != nil {
		w.tap(frame[frameHeader:])
	}
	for e := range w.ends {
		if e == from {
			continue
		}
		select {
		case e.out <- frame:
		default:
		}
	}
}
