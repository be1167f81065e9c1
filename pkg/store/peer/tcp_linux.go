package peer

import (
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	keepAliveInterval = 3 * time.Second
	keepAliveCount    = 3
	// userTimeout is how long sent bytes may stay unacknowledged before the
	// connection breaks (TCP_USER_TIMEOUT, tcp(7)): as long as keepalive takes
	// on an idle connection. Without it retransmission goes on for a quarter
	// of an hour.
	userTimeout = 10 * time.Second
)

// keepAlive notices an idle connection's dead peer after 12 s. TCP_NODELAY is
// Go's default.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: keepAliveInterval, Interval: keepAliveInterval, Count: keepAliveCount}

// control prepares a socket before it connects or listens; accepted
// connections inherit the timeout from their listener.
func control(_, _ string, c syscall.RawConn) error {
	var err error
	if e := c.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(userTimeout.Milliseconds()))
	}); e != nil {
		return e
	}
	return err
}
