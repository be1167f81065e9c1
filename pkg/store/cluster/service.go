package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/cairn-os/cairn/pkg/store"
)

const (
	// openLimit bounds the opening of the database by a new leader: entries
	// of its predecessor are applied meanwhile.
	openLimit = 30 * time.Second
	// inboxSize is how many connections wait to be accepted.
	inboxSize = 64
)

// errSameTerm ends a node that lost leadership and has it again in the same
// term.
var errSameTerm = errors.New("this member is the only voter and lost its leadership for a moment, perhaps because its disk failed a write: it starts anew to begin a raft term")

// inbox is a net.Listener for connections that were accepted elsewhere.
type inbox struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
	name   addr
}

// addr is where an inbox's connections come from, for messages.
type addr string

func (a addr) Network() string { return "cairn" }
func (a addr) String() string  { return string(a) }

func newInbox(name string) *inbox {
	return &inbox{conns: make(chan net.Conn, inboxSize), closed: make(chan struct{}), name: addr(name)}
}

// offer hands a connection over; false means that nobody accepts any more.
func (i *inbox) offer(conn net.Conn) bool {
	select {
	case <-i.closed:
		return false
	default:
	}
	select {
	case i.conns <- conn:
	case <-i.closed:
		return false
	}
	select {
	case <-i.closed:
		i.drain() // It may have come after Close looked.
	default:
	}
	return true
}

// drain closes the connections that nobody accepted.
func (i *inbox) drain() {
	for {
		select {
		case conn := <-i.conns:
			_ = conn.Close() // It never reached anybody.
		default:
			return
		}
	}
}

// Accept implements net.Listener.
func (i *inbox) Accept() (net.Conn, error) {
	select {
	case conn := <-i.conns:
		return conn, nil
	case <-i.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener. Connections that were not accepted are closed.
func (i *inbox) Close() error {
	i.once.Do(func() {
		close(i.closed)
		i.drain()
	})
	return nil
}

// Addr implements net.Listener.
func (i *inbox) Addr() net.Addr { return i.name }

// service is what a leader runs while it leads: one Backend and its front.
type service struct {
	term      uint64
	pin       *pin
	confirmer *confirmer
	backend   *store.Backend
	inbox     *inbox
	roll      roll
	cancel    context.CancelFunc
	tasks     sync.WaitGroup

	unsure int // how often in a row nobody said who leads; of lead alone

	over chan struct{} // closed when the leadership turns out to be lost
	once sync.Once
}

// openService opens the database for this member, which leads. It fails when
// it does not, or no longer does.
func (n *Node) openService(ctx context.Context) (_ *service, err error) {
	ctx, cancel := context.WithTimeout(ctx, openLimit)
	defer cancel()
	s := &service{over: make(chan struct{}), inbox: newInbox("etcd")}
	connector, err := n.member.Connector()
	if err != nil {
		return nil, err
	}
	if s.pin, err = newPin(ctx, connector, s.lost); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.pin.close())
		}
	}()
	if s.term, err = n.member.Term(); err != nil {
		return nil, err
	}
	s.confirmer = &confirmer{self: n.member.ID(), term: s.term, own: n.member.Term, ask: n.ask, lost: s.lost}
	if err := n.loadVoters(ctx, s.confirmer); err != nil {
		return nil, err
	}
	// dqlite makes a sole voter the leader of the same term again when a write
	// of its log failed. The entry that it lost may be a standby's by now, and
	// must not be followed by another of its index and term: only a start
	// begins a new one (member.Options.NewTerm).
	if n.network != nil && s.term == n.tried && s.confirmer.alone() && !n.alone(ctx) {
		n.fatal(errSameTerm)
		return nil, errSameTerm
	}
	n.tried = s.term
	// The term and the voters belong to this leadership only if it was
	// unbroken while they were read.
	if err := s.pin.check(ctx); err != nil {
		return nil, err
	}
	if s.backend, err = store.Open(ctx, store.Options{Connector: s.pin, Logger: n.log, Confirm: s.confirmer.confirm}); err != nil {
		return nil, err
	}
	run, stop := context.WithCancel(context.Background())
	s.cancel = stop
	front := store.NewServer(s.backend)
	s.tasks.Go(func() {
		if err := front.Serve(run, s.inbox); err != nil {
			n.log.Warn("store: serve", "error", err)
			s.lost()
		}
		_ = s.inbox.Close() // Who comes from now on is sent to the next leader.
	})
	s.tasks.Go(func() { n.manage(run, s) })
	n.tasks.Go(func() { n.keepSnapshots(run, s) }) // Of the node: the next leader's clients do not wait for a disk.
	return s, nil
}

// loadVoters tells the confirmer who votes now.
func (n *Node) loadVoters(ctx context.Context, c *confirmer) error {
	voters, err := n.voters(ctx)
	if err != nil {
		return err
	}
	c.setVoters(voters)
	return nil
}

// lost ends the service, soon: the loop that opened it closes it.
func (s *service) lost() { s.once.Do(func() { close(s.over) }) }

// close ends watches, waits for requests that are answered still and closes
// the database.
func (s *service) close() error {
	s.cancel() // The front closes the inbox, once it has begun to stop.
	s.tasks.Wait()
	if err := errors.Join(s.backend.Close(), s.pin.close()); err != nil {
		return fmt.Errorf("end of term %d: %w", s.term, err)
	}
	return nil
}
