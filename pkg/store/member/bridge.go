package member

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// stallLimit bounds the time for which a peer may take no bytes. dqlite
	// goes on sending each new entry to a follower that answered once, and
	// keeps all of them in memory until a write fails (PROGRESS__PIPELINE).
	stallLimit = 5 * time.Second
	// dialLimit bounds an attempt to connect, for the same reason. retryDelay
	// is the pause after one that failed. See [bridges.dial].
	dialLimit  = 3 * time.Second
	retryDelay = 250 * time.Millisecond
	// Raft's messages go one way; nothing is expected of the other.
	forward, backward = 32 << 10, 512
)

// bridges carries bytes between dqlite, which needs sockets with file
// descriptors, and connections of any kind.
type bridges struct {
	ctx    context.Context // Ends with close.
	cancel context.CancelFunc
	tasks  sync.WaitGroup

	mu     sync.Mutex
	closed bool
	failed map[uint64]time.Time // When the last attempt to reach a peer failed.
}

func newBridges() *bridges {
	b := &bridges{failed: map[uint64]time.Time{}}
	b.ctx, b.cancel = context.WithCancel(context.Background())
	return b
}

// run calls f in a goroutine that close waits for. It reports false, and does
// not call f, after close.
func (b *bridges) run(f func()) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return false
	}
	b.tasks.Go(f)
	return true
}

// dial returns a socket at once, and connects it to the peer in the
// background; if that fails, the socket closes.
//
// dqlite dials in libuv's thread pool, which the disk shares, and go-dqlite
// under a lock that the whole process shares: a peer that does not answer
// would keep dqlite from the others for the length of each attempt. What
// dqlite writes meanwhile waits in the socket, or is lost with it, which raft
// expects of messages. dqlite notices a closed socket when it sends next, and
// dials anew then without a pause of its own: retryDelay is that pause.
func (b *bridges) dial(id uint64, dial DialFunc) (net.Conn, error) {
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", Name(id), err)
	}
	running := b.run(func() {
		defer ours.Close()
		peer, err := b.connect(id, dial)
		if err != nil {
			return
		}
		b.carry(peer, ours)
	})
	if !running {
		return nil, errors.Join(fmt.Errorf("dial %s: %w", Name(id), net.ErrClosed), ours.Close(), theirs.Close())
	}
	return theirs, nil
}

// connect makes one attempt, not sooner than retryDelay after one that
// failed.
func (b *bridges) connect(id uint64, dial DialFunc) (net.Conn, error) {
	b.mu.Lock()
	wait := time.Until(b.failed[id].Add(retryDelay))
	b.mu.Unlock()
	ctx, cancel := context.WithTimeout(b.ctx, max(wait, 0)+dialLimit)
	defer cancel()
	if wait > 0 {
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	conn, err := dial(ctx, id)
	b.mu.Lock()
	defer b.mu.Unlock()
	if err != nil {
		b.failed[id] = time.Now()
		return nil, err
	}
	delete(b.failed, id)
	return conn, nil
}

// carry copies bytes from the side that sends to the side that receives, and
// back, until either ends, one takes no bytes for stallLimit, or close; then
// it closes both.
func (b *bridges) carry(to, from net.Conn) {
	closeBoth := sync.OnceFunc(func() {
		_ = to.Close() // How a connection ended is told by what ended it.
		_ = from.Close()
	})
	defer closeBoth()
	defer context.AfterFunc(b.ctx, closeBoth)()
	var back sync.WaitGroup
	back.Go(func() {
		defer closeBoth()
		_ = copyStalling(from, to, backward)
	})
	_ = copyStalling(to, from, forward)
	closeBoth()
	back.Wait()
}

// copyStalling copies until an error or the end, and gives up when a write
// takes longer than stallLimit.
func copyStalling(to, from net.Conn, size int) error {
	buf := make([]byte, size)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			if err := to.SetWriteDeadline(time.Now().Add(stallLimit)); err != nil {
				return err
			}
			if _, err := to.Write(buf[:n]); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// close ends all bridges and waits for them.
func (b *bridges) close() {
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
	b.cancel()
	b.tasks.Wait()
}

// socketPair returns the two ends of a unix socket that has no name: a
// connection, and one for go-dqlite.
func socketPair() (ours, theirs net.Conn, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	f := os.NewFile(uintptr(fds[0]), "socketpair")
	ours, err = net.FileConn(f) // Has a copy of the descriptor.
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, nil, errors.Join(err, unix.Close(fds[1]))
	}
	return ours, handedOver{osFile: os.NewFile(uintptr(fds[1]), "socketpair")}, nil
}

type osFile = os.File

// handedOver is a connection for go-dqlite, which calls File, copies the
// file's descriptor and calls Close. A net.UnixConn's File is a copy itself,
// which go-dqlite leaves to the garbage collector: the other side would not
// see the end before minutes have passed.
type handedOver struct{ *osFile }

func (h handedOver) File() (*os.File, error) { return h.osFile, nil }
func (h handedOver) LocalAddr() net.Addr     { return &net.UnixAddr{Net: "unix"} }
func (h handedOver) RemoteAddr() net.Addr    { return &net.UnixAddr{Net: "unix"} }
