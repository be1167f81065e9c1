package peer

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"
)

const (
	// handshakeLimit bounds TLS handshake and preamble.
	handshakeLimit = 5 * time.Second
	// maxHandshakes may be in progress, maxHandshakesPerHost of one host, so
	// that one that opens connections and says nothing does not shut out the
	// others. A member's apiserver has some hundred connections that all come
	// again when the leader changes.
	maxHandshakes        = 512
	maxHandshakesPerHost = 384
	// acceptPause is the rest after an error such as too many open files.
	acceptPause = 100 * time.Millisecond
)

// accept takes connections until the Network ends.
func (n *Network) accept() {
	stop := context.AfterFunc(n.ctx, func() { _ = n.listener.Close() })
	defer stop()
	protocols := n.protocols()
	for {
		raw, err := n.listener.Accept()
		if n.ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
			if raw != nil {
				_ = raw.Close()
			}
			return
		}
		if err != nil {
			n.refuse("listener", err)
			select {
			case <-n.ctx.Done():
			case <-time.After(acceptPause):
			}
			continue
		}
		host := hostOf(raw)
		if !n.enter(host) {
			_ = raw.Close()
			n.refuse(host, errors.New("too many handshakes in progress"))
			continue
		}
		n.tasks.Go(func() { n.serve(raw, host, protocols) })
	}
}

// serve brings one connection from its handshake to its end.
func (n *Network) serve(raw net.Conn, host string, protocols []string) {
	conn, from, err := n.welcome(raw, protocols)
	n.leave(host)
	if err != nil {
		_ = raw.Close()
		if n.ctx.Err() == nil {
			n.refuse(host, err)
		}
		return
	}
	n.accepted.Add(1)
	stop := context.AfterFunc(n.ctx, func() { _ = raw.Close() })
	defer stop()
	defer conn.Close()
	defer n.hold(conn, from)()
	n.handlers[conn.ConnectionState().NegotiatedProtocol](n.ctx, from, conn)
}

// welcome does the acceptor's part of handshake and preamble.
func (n *Network) welcome(raw net.Conn, protocols []string) (*tls.Conn, uint64, error) {
	ctx, cancel := context.WithTimeout(n.ctx, handshakeLimit)
	defer cancel()
	conn := tls.Server(raw, n.keys.get().server(protocols))
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, 0, fmt.Errorf("TLS handshake: %w", n.explainHandshake(err))
	}
	stop := context.AfterFunc(ctx, func() { _ = raw.Close() })
	defer stop()
	c, err := readCall(conn)
	if err != nil {
		return nil, 0, err
	}
	verdict := c.judge(n.config.ID)
	refusal := n.refusal(conn, c.from)
	if verdict == statusWelcome && refusal != nil {
		verdict = statusRefused
	}
	if _, err := conn.Write(answer{verdict, n.config.ID}.bytes()); err != nil {
		return nil, 0, fmt.Errorf("answer the preamble: %w", err)
	}
	switch verdict {
	case statusWelcome:
	case statusSelf:
		_ = conn.Close()
		return nil, 0, fmt.Errorf("the dialer has this member's ID %s: is it this member, or does a copy of its data directory run elsewhere?", name(c.from))
	case statusRefused:
		_ = conn.Close()
		return nil, 0, refusal
	default:
		_ = conn.Close()
		return nil, 0, fmt.Errorf("%s wants %s, and this is %s: its address book is old", name(c.from), name(c.target), name(n.config.ID))
	}
	if !stop() {
		return nil, 0, fmt.Errorf("handshake: %w", ctx.Err())
	}
	return conn, c.from, nil
}

// refuse counts a failed handshake and logs it now and then.
func (n *Network) refuse(host string, err error) {
	n.refused.Add(1)
	if skipped, ok := n.notes.allow("refuse " + host); ok {
		n.log.Warn("store: a connection was refused", "from", host, "error", err, "unlogged", skipped)
	}
}

func (n *Network) enter(host string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.shaking >= maxHandshakes || n.handshakes[host] >= maxHandshakesPerHost {
		return false
	}
	n.shaking++
	n.handshakes[host]++
	return true
}

func (n *Network) leave(host string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.shaking--
	if n.handshakes[host]--; n.handshakes[host] == 0 {
		delete(n.handshakes, host)
	}
}

func hostOf(c net.Conn) string {
	address := c.RemoteAddr().String()
	if host, _, err := net.SplitHostPort(address); err == nil {
		return host
	}
	return address
}
