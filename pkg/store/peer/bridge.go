package peer

import (
	"context"
	"errors"
	"io"
	"net"
	"time"
)

// drainLimit is how long the second direction of a bridge may go on after the
// first has ended. What the store carries ends both soon after each other; an
// end that does not would keep two connections for ever.
const drainLimit = time.Minute

// Bridge copies between two connections in both directions until both have
// ended, and closes them. The end of one direction is passed on alone, so an
// answer to the last request arrives; an error, such as a reset, or the end of
// ctx ends both at once. It returns the first error, or ctx's.
func Bridge(ctx context.Context, a, b net.Conn) error { return bridge(ctx, a, b, drainLimit) }

func bridge(ctx context.Context, a, b net.Conn, drain time.Duration) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(ended)
		abort(a)
		abort(b)
	})
	done := make(chan error, 2)
	go func() { done <- carry(b, a) }()
	go func() { done <- carry(a, b) }()

	first := <-done
	if first != nil {
		cancel(first)
	}
	overdue := time.AfterFunc(drain, func() { cancel(errDrain) })
	second := <-done
	overdue.Stop()
	if second != nil {
		cancel(second)
	}
	if !stop() {
		<-ended
	}
	// In the orderly case both sides were told of the end already.
	_, _ = a.Close(), b.Close()
	return context.Cause(ctx)
}

var errDrain = errors.New("the other direction did not end")

// carry copies until src ends, and tells dst.
func carry(dst, src net.Conn) error {
	// Uses splice(2) where both are sockets.
	if _, err := io.Copy(dst, src); err != nil {
		return err
	}
	if half, ok := dst.(interface{ CloseWrite() error }); ok {
		return ignoreGone(half.CloseWrite())
	}
	return ignoreGone(dst.Close())
}

// ignoreGone drops what telling the end gives when the other side is gone
// already.
func ignoreGone(err error) error {
	var op *net.OpError
	if errors.Is(err, net.ErrClosed) || errors.As(err, &op) {
		return nil
	}
	return err
}

// abort resets a connection under its TLS, if any. Go's TLS takes an end
// without the alert that announces it for an orderly one, so only a reset tells
// the other side that something is missing; and a peer that takes nothing
// cannot delay it.
func abort(c net.Conn) {
	if t, ok := c.(interface{ NetConn() net.Conn }); ok {
		c = t.NetConn()
	}
	if t, ok := c.(*net.TCPConn); ok {
		_ = t.SetLinger(0)
	}
	_ = c.Close()
}
