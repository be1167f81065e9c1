package peer

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

const (
	// dialLimit bounds Dial, which dqlite calls from its disk threads: a dead
	// member must not stall it.
	dialLimit = time.Second
	// failPause is how long a failure answers further calls.
	failPause = 300 * time.Millisecond
	// stagger is how much later each further address is tried, unless those
	// before it failed sooner.
	stagger = 20 * time.Millisecond
)

// failure is a member's last failed Dial.
type failure struct {
	at        time.Time
	err       error
	addresses string // that were tried: others get their chance at once
}

// Dial connects to a member by the addresses in the Book, all of them in
// parallel, within a second or ctx's deadline. A failure is the answer to
// further calls for 300 ms, unless the addresses change. The connection's
// protocol is never another than the one asked for.
func (n *Network) Dial(ctx context.Context, id uint64, protocol string) (net.Conn, error) {
	addresses := n.book.addresses(id)
	if len(addresses) == 0 {
		return nil, fmt.Errorf("connect to %s: %w", name(id), ErrUnknown)
	}
	tried := fmt.Sprint(addresses)
	if err := n.failedOfLate(id, tried); err != nil {
		return nil, err
	}
	begun := time.Now()
	limited, cancel := context.WithTimeout(ctx, dialLimit)
	defer cancel()
	conn, err := n.race(limited, addresses, id, protocol)
	if err == nil {
		n.noteFailure(id, failure{})
		return conn, nil
	}
	err = fmt.Errorf("connect to %s: %w", name(id), err)
	// A caller who gave up soon and a protocol that is not spoken, or not with
	// this member, say nothing about whether the member can be reached.
	hasty := ctx.Err() != nil && time.Since(begun) < failPause
	if !hasty && !errors.Is(err, ErrProtocol) && !errors.Is(err, ErrRefused) {
		n.noteFailure(id, failure{time.Now(), err, tried})
	}
	return nil, err
}

// DialAddress connects to whoever has an address, within five seconds or ctx's
// deadline, and returns its ID.
func (n *Network) DialAddress(ctx context.Context, address, protocol string) (conn net.Conn, id uint64, err error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeLimit)
	defer cancel()
	c, id, err := n.connect(ctx, address, 0, protocol)
	if err != nil {
		return nil, 0, fmt.Errorf("connect to %w", err)
	}
	return c, id, nil
}

func (n *Network) failedOfLate(id uint64, tried string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if f := n.failures[id]; f.err != nil && f.addresses == tried && time.Since(f.at) < failPause {
		return f.err
	}
	return nil
}

func (n *Network) noteFailure(id uint64, f failure) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if f.err == nil {
		delete(n.failures, id)
	} else {
		n.failures[id] = f
	}
}

type attempt struct {
	conn *tls.Conn
	err  error
}

// race returns the first connection to the member id. All attempts have ended
// when it returns.
func (n *Network) race(ctx context.Context, addresses []string, id uint64, protocol string) (net.Conn, error) {
	ctx, cancel := context.WithCancel(ctx)
	var attempts sync.WaitGroup
	defer attempts.Wait()
	defer cancel()
	results := make(chan attempt)
	begin := func(address string) {
		attempts.Go(func() {
			conn, _, err := n.connect(ctx, address, id, protocol)
			select {
			case results <- attempt{conn, err}:
			case <-ctx.Done():
				if conn != nil {
					_ = conn.Close()
				}
			}
		})
	}
	begin(addresses[0])
	var problem error
	next := time.NewTicker(stagger)
	defer next.Stop()
	for begun, running := 1, 1; running > 0; {
		more := false
		select {
		case r := <-results:
			if r.err == nil {
				return r.conn, nil
			}
			running--
			problem = join(problem, r.err)
			more = true
		case <-next.C:
			more = true
		case <-ctx.Done():
			// The attempts tell better where they stood, but they may be many
			// and what counts is that none of them succeeded in time.
			return nil, join(problem, fmt.Errorf("no answer from %v: %w", addresses, ctx.Err()))
		}
		if more && begun < len(addresses) {
			begin(addresses[begun])
			begun++
			running++
		}
	}
	return nil, problem
}

// join keeps errors on one line, as they are logged.
func join(a, b error) error {
	if a == nil {
		return b
	}
	return fmt.Errorf("%w; %w", a, b)
}

// connect makes one connection; target 0 takes whoever answers.
func (n *Network) connect(ctx context.Context, address string, target uint64, protocol string) (_ *tls.Conn, from uint64, err error) {
	defer func() {
		if err != nil {
			n.failed.Add(1)
			err = fmt.Errorf("%s: %w", address, err)
		}
	}()
	keys := n.keys.get()
	if err := keys.dates(n.config.Credentials, time.Now()); err != nil {
		return nil, 0, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(n.ctx, cancel)()
	dialer := net.Dialer{Control: control, KeepAliveConfig: keepAlive}
	raw, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, 0, err
	}
	conn := tls.Client(raw, keys.client(protocol))
	stop := context.AfterFunc(ctx, func() { _ = raw.Close() })
	id, err := n.introduce(ctx, conn, target)
	if err == nil && !stop() {
		err = ctx.Err()
	}
	if err != nil {
		stop()
		_ = raw.Close()
		return nil, 0, err
	}
	n.dialed.Add(1)
	return conn, id, nil
}

// introduce does the dialer's part of handshake and preamble.
func (n *Network) introduce(ctx context.Context, conn *tls.Conn, target uint64) (uint64, error) {
	if err := conn.HandshakeContext(ctx); err != nil {
		return 0, fmt.Errorf("TLS handshake: %w", n.explainHandshake(err))
	}
	c := call{target, n.config.ID}
	// A refusal of our certificate comes after the handshake: in TLS 1.3 the
	// dialer is done first.
	if _, err := conn.Write(c.bytes()); err != nil {
		return 0, n.explainHandshake(err)
	}
	a, err := readAnswer(conn)
	if err != nil {
		return 0, n.explainHandshake(err)
	}
	if err := a.check(c); err != nil {
		return a.id, err
	}
	who, _ := IdentityOf(conn, a.id)
	return a.id, n.distrust(who)
}
