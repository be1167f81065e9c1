package cluster

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

const (
	// roundLimit bounds one round of questions, confirmLimit all of them for
	// one reader: beyond it there is no quorum to speak of.
	roundLimit   = time.Second
	confirmLimit = 5 * time.Second
	// answerLimit is how long a peer may owe an answer before the connection
	// is taken for dead.
	answerLimit = 2 * time.Second
	// viewSize is an answer's: a raft term, the ID of the leader and a flag.
	viewSize = 17
)

// errDeposed says that a voter knows a newer term.
var errDeposed = errors.New("another member leads")

// view is what a member says of the cluster: the newest raft term that it has
// stored, the leader that it knows, 0 for none, and whether its disk is full.
type view struct {
	term   uint64
	leader uint64
	full   bool
}

func (v view) append(to []byte) []byte {
	to = binary.BigEndian.AppendUint64(to, v.term)
	to = binary.BigEndian.AppendUint64(to, v.leader)
	if v.full {
		return append(to, 1)
	}
	return append(to, 0)
}

func parseView(b [viewSize]byte) view {
	return view{binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:16]), b[16] != 0}
}

// answerViews serves a peer's questions: for every byte that it sends it gets
// a view that was taken after the byte arrived.
func answerViews(conn net.Conn, look func() (view, error)) error {
	r := bufio.NewReader(conn)
	for {
		if _, err := r.ReadByte(); err != nil {
			return err
		}
		questions := 1 + r.Buffered()
		if _, err := r.Discard(questions - 1); err != nil {
			return err
		}
		v, err := look()
		if err != nil {
			return err
		}
		answer := make([]byte, 0, questions*viewSize)
		for range questions {
			answer = v.append(answer)
		}
		if _, err := conn.Write(answer); err != nil {
			return err
		}
	}
}

// asker asks one peer for its view over a kept connection. Many may ask at
// once: questions are answered in order.
type asker struct {
	dial func(ctx context.Context) (net.Conn, error)

	mu      sync.Mutex
	conn    net.Conn
	dialing chan struct{} // not nil while one caller dials for all; closed then
	waiting []question
}

// question waits for an answer; its channel is closed without one when the
// connection breaks.
type question struct {
	at     time.Time
	answer chan<- view
}

// ask returns the peer's view at some time after the call.
func (a *asker) ask(ctx context.Context) (view, error) {
	answer := make(chan view, 1)
	if err := a.send(ctx, answer); err != nil {
		return view{}, err
	}
	select {
	case v, ok := <-answer:
		if !ok {
			return view{}, errors.New("connection broke")
		}
		return v, nil
	case <-ctx.Done():
		return view{}, ctx.Err()
	}
}

func (a *asker) send(ctx context.Context, answer chan<- view) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.waiting) > 0 && time.Since(a.waiting[0].at) > answerLimit {
		a.drop() // A peer that is stopped keeps its connection.
	}
	for a.conn == nil {
		if err := a.connect(ctx); err != nil {
			return err
		}
	}
	a.waiting = append(a.waiting, question{time.Now(), answer})
	err := a.conn.SetWriteDeadline(time.Now().Add(roundLimit))
	if err == nil {
		_, err = a.conn.Write([]byte{'?'})
	}
	if err != nil {
		a.drop()
	}
	return err
}

// connect dials, or waits for who does. a.mu is held, but not meanwhile.
func (a *asker) connect(ctx context.Context) error {
	if dialing := a.dialing; dialing != nil {
		a.mu.Unlock()
		defer a.mu.Lock()
		select {
		case <-dialing:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	a.dialing = make(chan struct{})
	a.mu.Unlock()
	conn, err := a.dial(ctx)
	a.mu.Lock()
	close(a.dialing)
	a.dialing = nil
	if err != nil {
		return err
	}
	a.conn = conn
	go a.receive(conn)
	return nil
}

func (a *asker) receive(conn net.Conn) {
	r := bufio.NewReader(conn)
	var buf [viewSize]byte
	for {
		_, err := io.ReadFull(r, buf[:])
		a.mu.Lock()
		if a.conn != conn {
			a.mu.Unlock()
			return
		}
		if err != nil || len(a.waiting) == 0 {
			a.drop()
			a.mu.Unlock()
			return
		}
		first := a.waiting[0]
		a.waiting = a.waiting[1:]
		a.mu.Unlock()
		first.answer <- parseView(buf)
	}
}

// close ends the connection.
func (a *asker) close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.drop()
}

// drop gives the connection up; a.mu is held.
func (a *asker) drop() {
	if a.conn == nil {
		return
	}
	_ = a.conn.Close() // Nothing more is expected of it.
	for _, q := range a.waiting {
		close(q.answer)
	}
	a.conn, a.waiting = nil, nil
}

// confirmer makes certain that this member still leads: ReadIndex of the raft
// dissertation (section 6.4), with the terms that members have stored in the
// place of a heartbeat's answers. A voter stores a newer term before it votes
// in it. So when a majority answers with this leader's term, no newer leader
// had been elected when they were asked. Its own term counts like the others':
// it may have voted for a newer leader that the one that answers has not heard
// of.
type confirmer struct {
	self uint64
	term uint64
	own  func() (uint64, error) // the term that this member has stored
	ask  func(ctx context.Context, id uint64) (view, error)
	lost func() // called when a voter knows a newer term

	mu sync.Mutex
	// voters are the configurations of which each must agree: two while one
	// replaces the other.
	voters [][]uint64
	next   *round // the round that has not begun; whoever comes joins it
	busy   bool
}

// round is one round of questions with its result.
type round struct {
	done chan struct{}
	err  error
}

// setVoters says whose majorities must agree from now on.
func (c *confirmer) setVoters(configurations ...[]uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.voters = configurations
}

// confirm returns nil when this member led at some time after the call.
func (c *confirmer) confirm(ctx context.Context) error {
	if c.alone() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, confirmLimit)
	defer cancel()
	for {
		r := c.join()
		select {
		case <-r.done:
		case <-ctx.Done():
			return rpctypes.ErrGRPCTimeoutDueToConnectionLost
		}
		if r.err == nil {
			return nil
		}
		if errors.Is(r.err, errDeposed) {
			return rpctypes.ErrGRPCLeaderChanged
		}
		if ctx.Err() != nil {
			return rpctypes.ErrGRPCTimeoutDueToConnectionLost
		}
	}
}

func (c *confirmer) alone() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, voters := range c.voters {
		if len(voters) != 1 || voters[0] != c.self {
			return false
		}
	}
	return len(c.voters) > 0
}

// join returns the next round to begin, and begins it when none is running.
func (c *confirmer) join() *round {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.next == nil {
		c.next = &round{done: make(chan struct{})}
	}
	r := c.next
	if !c.busy {
		c.busy = true
		go c.run()
	}
	return r
}

// run works rounds off until nobody waits for one.
func (c *confirmer) run() {
	for {
		c.mu.Lock()
		r, voters := c.next, c.voters
		c.next = nil
		if r == nil {
			c.busy = false
			c.mu.Unlock()
			return
		}
		c.mu.Unlock()
		r.err = c.question(voters)
		close(r.done)
	}
}

// question asks all voters and returns as soon as the result is certain.
func (c *confirmer) question(configurations [][]uint64) error {
	ctx, cancel := context.WithTimeout(context.Background(), roundLimit)
	defer cancel()
	if own, err := c.own(); err != nil {
		return err
	} else if own != c.term {
		c.lost()
		return errDeposed
	}
	type reply struct {
		id   uint64
		view view
		err  error
	}
	asked := map[uint64]bool{c.self: true}
	replies := make(chan reply)
	for _, voters := range configurations {
		for _, id := range voters {
			if asked[id] {
				continue
			}
			asked[id] = true
			go func() {
				v, err := c.ask(ctx, id)
				select {
				case replies <- reply{id, v, err}:
				case <-ctx.Done():
				}
			}()
		}
	}
	agreed := map[uint64]bool{c.self: true}
	var problems []error
	for range len(asked) - 1 {
		var r reply
		select {
		case r = <-replies:
		case <-ctx.Done():
			return errors.Join(append(problems, ctx.Err())...)
		}
		switch {
		case r.err != nil:
			problems = append(problems, fmt.Errorf("member %016x: %w", r.id, r.err))
		case r.view.term > c.term:
			c.lost()
			return errDeposed
		case r.view.term == c.term:
			agreed[r.id] = true
		}
		if majorities(configurations, agreed) {
			return nil
		}
	}
	if majorities(configurations, agreed) {
		return nil
	}
	// A voter that answers with an older term has not heard of this leader
	// yet; one that does not answer may do so shortly. The caller asks again,
	// but not without a pause.
	select {
	case <-ctx.Done():
	case <-time.After(20 * time.Millisecond):
	}
	return errors.Join(append(problems, errors.New("no majority of the voters"))...)
}

// majorities reports whether more than half of each configuration agreed.
func majorities(configurations [][]uint64, agreed map[uint64]bool) bool {
	for _, voters := range configurations {
		n := 0
		for _, id := range voters {
			if agreed[id] {
				n++
			}
		}
		if 2*n <= len(voters) {
			return false
		}
	}
	return len(configurations) > 0
}
