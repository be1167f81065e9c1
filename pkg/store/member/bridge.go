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
	// queues what it cannot send without a bound, and learns from a closed
	// connection only.
	stallLimit = 10 * time.Second
	// dialLimit bounds an attempt to connect, retryDelay is the pause after
	// one that failed. See [bridges.dial].
	dialLimit  = 5 * time.Second
	retryDelay = 250 * time.Millisecond
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
// dqlite dials in libuv's thread pool, which the disk shares, and go-dqlite under a lock that the
// whole process shares: a peer that does not answer would keep dqlite from
// the others for the length of each attempt. What dqlite writes meanwhile
// waits in the socket, or is lost with it, which raft expects of messages. dqlite notices
// a closed socket when it sends next, and dials anew then: it sends to a
// silent peer one message per heartbeat, and retryDelay bounds the rest.
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
		b.carry(ours, peer)
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

// carry copies in both directions until either side ends, a peer takes no
// bytes for stallLimit, or close; then it closes both.
func (b *bridges) carry(local, peer net.Conn) {
	closeBoth := sync.OnceFunc(func() {
		_ = local.Close() // How a connection ended is told by what ended it.
		_ = peer.Close()
	})
	defer closeBoth()
	defer context.AfterFunc(b.ctx, closeBoth)()
	var back sync.WaitGroup
	back.Go(func() {
		defer closeBoth()
		_ = copyStalling(local, peer)
	})
	_ = copyStalling(peer, local)
	closeBoth()
	back.Wait()
}

// copyStalling copies until an error or the end, and gives up when a
// write takes longer than stallLimit.
func copyStalling(to, from net.Conn) error {
	buf := make([]byte, 32<<10)
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

// socketPair returns the two ends of a unix socket that has no name.
func socketPair() (ours, theirs net.Conn, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	if ours, err = connOf(fds[0]); err != nil {
		return nil, nil, errors.Join(err, unix.Close(fds[1]))
	}
	if theirs, err = connOf(fds[1]); err != nil {
		return nil, nil, errors.Join(err, ours.Close())
	}
	return ours, theirs, nil
}

// connOf makes a connection of a socket and takes it over.
func connOf(fd int) (net.Conn, error) {
	f := os.NewFile(uintptr(fd), "socketpair")
	conn, err := net.FileConn(f)
	return conn, errors.Join(err, f.Close())
}
