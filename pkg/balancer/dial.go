package balancer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// dialer makes connections that notice when their peer vanishes.
func (b *Balancer) dialer() *net.Dialer {
	return &net.Dialer{KeepAliveConfig: b.timing.keepAlive(), Control: b.control}
}

// control prepares a socket before it is used.
func (b *Balancer) control(_, _ string, c syscall.RawConn) error {
	var err error
	if controlErr := c.Control(func(fd uintptr) { err = notice(fd, b.timing.vanish) }); controlErr != nil {
		return controlErr
	}
	return err
}

// attempt is how the connection to one server went.
type attempt struct {
	server *server
	conn   *net.TCPConn
	err    error
}

// errNoServer says that the list is empty, which only a node without any
// configuration can have.
var errNoServer = errors.New("no server known")

// connect makes a connection to the first server in order that takes one.
// Attempts overlap: the next begins when the one before has failed, or has
// been silent for a while. The first success ends the others.
func (b *Balancer) connect(ctx context.Context, order []*server) (*server, *net.TCPConn, error) {
	if len(order) == 0 {
		return nil, nil, errNoServer
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	results := make(chan attempt)
	next := time.NewTimer(0)
	defer next.Stop()
	var failures []error
	started, pending := 0, 0
	for {
		select {
		case <-next.C:
			if started == len(order) {
				break
			}
			s := order[started]
			started++
			pending++
			go func() { results <- b.dial(ctx, s) }()
			next.Reset(b.timing.stagger)
		case a := <-results:
			pending--
			if a.err == nil {
				cancel()
				b.suspect(order[:started], a.server)
				drain(results, pending)
				return a.server, a.conn, nil
			}
			failures = append(failures, fmt.Errorf("%s: %w", a.server.address, a.err))
			next.Reset(0)
		}
		if started == len(order) && pending == 0 {
			return nil, nil, errors.Join(failures...)
		}
	}
}

// drain waits for attempts that were overtaken, and undoes those that came
// through all the same. Their context has ended, so that it takes no time.
func drain(results <-chan attempt, pending int) {
	for range pending {
		if a := <-results; a.conn != nil {
			a.conn.Close()
		}
	}
}

// suspect has the servers checked that were asked before the winner and have
// not answered in time.
func (b *Balancer) suspect(asked []*server, winner *server) {
	for _, s := range asked {
		if s == winner {
			return
		}
		notify(s.kick)
	}
}

// dial is one attempt. Its failure counts against the server, unless the
// reason is on this side: a time that ran out while this process stood still
// has the server checked.
func (b *Balancer) dial(ctx context.Context, s *server) attempt {
	began := b.pool.now()
	start := time.Now()
	limit, cancel := context.WithTimeout(ctx, b.timing.dial)
	defer cancel()
	a := b.once(limit, s)
	switch {
	case a.err == nil:
		b.pool.answered(s)
	case ctx.Err() != nil || ownFault(a.err):
	case nobodySpoke(a.err) && overslept(time.Since(start), b.timing.dial):
		notify(s.kick)
	default:
		b.pool.refused(s, began, a.err)
	}
	return a
}

// once connects until ctx ends.
func (b *Balancer) once(ctx context.Context, s *server) attempt {
	conn, err := b.dialer().DialContext(ctx, "tcp", s.address)
	if err != nil {
		return attempt{server: s, err: err}
	}
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return attempt{server: s, err: errors.Join(fmt.Errorf("a %T, not a TCP connection", conn), conn.Close())}
	}
	return attempt{server: s, conn: tcp}
}

// mostAttempts overlap in a check.
const mostAttempts = 4

// reach connects to s for a check. While it is silent there are further
// attempts, staggered: each begins with a packet of its own, which the kernel
// repeats after a second alone. A line that loses some packets hardly loses
// them all, so that the error wraps errSilent only when there is no line; and
// only when this process was there all the time to see an answer.
func (b *Balancer) reach(ctx context.Context, s *server) (*net.TCPConn, error) {
	limit, cancel := context.WithTimeout(ctx, b.timing.silence)
	defer cancel()
	results := make(chan attempt)
	next := time.NewTimer(0)
	defer next.Stop()
	begin, last := time.Now(), time.Time{}
	for started, pending := 0, 0; ; {
		select {
		case <-next.C:
			if started == mostAttempts {
				b.pool.doubt(s)
				break
			}
			last = time.Now()
			go func() { results <- b.once(limit, s) }()
			started, pending = started+1, pending+1
			next.Reset(b.timing.again)
		case a := <-results:
			pending--
			silent := nobodySpoke(a.err)
			if silent && limit.Err() == nil && (pending > 0 || started < mostAttempts) {
				continue
			}
			unseen := limit.Err() != nil && (started < mostAttempts || b.timing.unseen(begin, last, time.Now()))
			cancel()
			drain(results, pending)
			switch {
			case silent && unseen:
				a.err = fmt.Errorf("this machine stood still while it waited: %w", a.err)
			case silent:
				a.err = fmt.Errorf("%w: %w", errSilent, a.err)
			}
			return a.conn, a.err
		}
	}
}

// unseen reports whether this process may not have seen an answer to a check
// that began then, tried for the last time and is over: when it got to run
// late, time is up before it looks at what the kernel has for it.
func (t timing) unseen(begin, last, over time.Time) bool {
	wanted := t.silence - (mostAttempts-1)*t.again // for the last attempt
	return overslept(over.Sub(begin), t.silence) || over.Sub(last) < wanted/2
}

// overslept reports whether something took much longer than its limit, as it
// does in a process that does not get to run.
func overslept(took, limit time.Duration) bool { return took > limit+limit/4 }

// nobodySpoke reports whether a connection failed for want of any answer of
// the other machine: a router's, or the failure to find it on the own network,
// may pass.
func nobodySpoke(err error) bool {
	var t net.Error
	return errors.As(err, &t) && t.Timeout() || errors.Is(err, unix.EHOSTUNREACH) || errors.Is(err, unix.ENETUNREACH)
}

// ownFault reports whether this machine could not even try.
func ownFault(err error) bool {
	return errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) || errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.EADDRNOTAVAIL)
}
