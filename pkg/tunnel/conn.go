package tunnel

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// bufferedConn is a connection of which some bytes have been read already. As any connection it has one reader.
type bufferedConn struct {
	net.Conn
	rest []byte
}

// newBufferedConn takes over what r has read ahead from conn.
func newBufferedConn(conn net.Conn, r *bufio.Reader) (*bufferedConn, error) {
	rest, err := r.Peek(r.Buffered())
	if err != nil {
		return nil, fmt.Errorf("take over what has been read: %w", err)
	}
	return &bufferedConn{Conn: conn, rest: bytes.Clone(rest)}, nil
}

func (c *bufferedConn) Read(b []byte) (int, error) {
	if len(c.rest) == 0 {
		return c.Conn.Read(b)
	}
	n := copy(b, c.rest)
	if c.rest = c.rest[n:]; len(c.rest) == 0 {
		c.rest = nil
	}
	return n, nil
}

// NetConn lets tune find the socket.
func (c *bufferedConn) NetConn() net.Conn { return c.Conn }

// dialServer connects to a server and upgrades the connection to a tunnel.
func dialServer(ctx context.Context, address string, config *tls.Config) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	config = config.Clone()
	// An apiserver speaks HTTP/2 with whoever offers it, and there is no upgrade in HTTP/2.
	config.NextProtos = []string{"http/1.1"}
	dialer := tls.Dialer{Config: config}
	raw, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { raw.Close() })
	conn, err := requestUpgrade(raw, address)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		raw.Close()
		return nil, err
	}
	tune(conn)
	return conn, nil
}

func requestUpgrade(raw net.Conn, address string) (*bufferedConn, error) {
	if _, err := fmt.Fprintf(raw, "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", Path, address, upgrade); err != nil {
		return nil, fmt.Errorf("ask for a tunnel: %w", err)
	}
	r := bufio.NewReader(io.LimitReader(raw, http.DefaultMaxHeaderBytes))
	answer, err := http.ReadResponse(r, nil)
	if err != nil {
		return nil, fmt.Errorf("read the answer to the request for a tunnel: %w", err)
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusSwitchingProtocols || !strings.EqualFold(answer.Header.Get("Upgrade"), upgrade) {
		text, _ := io.ReadAll(io.LimitReader(answer.Body, 256)) // whatever came of it explains the status
		return nil, fmt.Errorf("the server gives no tunnel: %s: %s", answer.Status, strings.TrimSpace(string(text)))
	}
	return newBufferedConn(raw, r)
}

// tune lets the kernel notice a dead peer, also when packets pass in one direction only. A connection that hides its
// socket is left to gRPC's pings.
func tune(conn net.Conn) {
	for {
		inner, ok := conn.(interface{ NetConn() net.Conn })
		if !ok {
			break
		}
		conn = inner.NetConn()
	}
	if c, ok := conn.(*net.TCPConn); ok {
		_ = c.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: userTimeout / 2, Interval: userTimeout / 4, Count: 2})
	}
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(userTimeout/time.Millisecond))
	})
}

// hungUp reports whether the other end of a unix connection is closed, even when data that it sent is still unread.
func hungUp(conn net.Conn) bool {
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return errors.Is(err, net.ErrClosed)
	}
	gone := false
	err = raw.Control(func(fd uintptr) {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
		n, err := unix.Poll(fds, 0)
		gone = err == nil && n > 0 && fds[0].Revents&(unix.POLLRDHUP|unix.POLLHUP|unix.POLLERR) != 0
	})
	return gone || errors.Is(err, net.ErrClosed)
}
