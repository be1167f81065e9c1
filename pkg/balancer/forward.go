package balancer

import (
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// session is one client's connection and the one to the server that serves it.
type session struct {
	client, upstream *net.TCPConn
	once             sync.Once
}

// finish closes both sides when all is said.
func (s *session) finish() {
	s.once.Do(func() {
		s.upstream.Close()
		s.client.Close()
	})
}

// drop ends both sides now; copies under way end by it. What the server has
// not taken is dropped, so that the kernel does not go on sending it.
func (s *session) drop() {
	s.once.Do(func() {
		// The error would say that the connection is closed already.
		s.upstream.SetLinger(0)
		s.upstream.Close()
		s.client.Close()
	})
}

// cut is drop for a server that was lost. The client's side is reset, as the
// server's own end would have done: Kubernetes' clients repeat more of what
// ended so than of what ended in the middle as if it were complete.
func (s *session) cut() {
	s.once.Do(func() {
		s.upstream.SetLinger(0)
		s.client.SetLinger(0)
		s.upstream.Close()
		s.client.Close()
	})
}

// run copies both ways until both have ended or one has failed. It reports
// whether the network failed, and not somebody who said so.
func (s *session) run() (broken bool) {
	defer s.finish()
	sent := make(chan error, 1)
	go func() { sent <- s.pass(s.upstream, s.client) }()
	err := s.pass(s.client, s.upstream)
	return networkFailed(errors.Join(err, <-sent))
}

// pass copies until from has ended, and tells to about it: who is done
// speaking may still listen. The kernel splices, so that a connection takes no
// buffer in this process.
func (s *session) pass(to, from *net.TCPConn) error {
	_, err := io.Copy(to, from)
	if err == nil {
		err = to.CloseWrite()
	}
	switch { // the other direction may wait for what will not come
	case networkFailed(err):
		s.cut()
	case err != nil:
		s.drop()
	}
	return err
}

// networkFailed reports whether err is of a connection that was lost.
func networkFailed(err error) bool {
	for _, errno := range []unix.Errno{unix.ETIMEDOUT, unix.ECONNRESET, unix.EHOSTUNREACH, unix.ENETUNREACH} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}

// keepAlive asks a silent peer for a sign of life.
func (t timing) keepAlive() net.KeepAliveConfig {
	return net.KeepAliveConfig{Enable: true, Idle: t.vanish / 3, Interval: t.vanish / 3, Count: 2}
}

// notice makes the kernel end a connection whose peer has vanished: when what
// was sent, or the question whether it lives, stays unanswered for limit
// (tcp(7), TCP_USER_TIMEOUT). Without it, data in flight holds a connection
// for a quarter of an hour.
func notice(fd uintptr, limit time.Duration) error {
	return unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(limit.Milliseconds()))
}
