package cluster

import (
	"context"
	"net"
	"time"

	"github.com/cairn-os/cairn/pkg/store/member"
	"github.com/cairn-os/cairn/pkg/store/peer"
)

const (
	// routeLimit is how long a connection waits for a leader. gRPC clients
	// give up after 20 s by themselves; a closed connection makes them try
	// again sooner.
	routeLimit = 10 * time.Second
	// rest is the pause between two attempts to reach a leader.
	rest = 50 * time.Millisecond
	// acceptRest is the pause after a connection could not be accepted.
	acceptRest = 200 * time.Millisecond
)

// route is where connections go.
type route struct {
	leader  uint64        // 0: unknown
	own     bool          // the own member knows it, not only others
	service *service      // not nil while this member serves
	changed chan struct{} // closed when the route is replaced
}

func (n *Node) route() *route {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.current
}

func (n *Node) setRoute(leader uint64, own bool, s *service) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.current.leader == leader && n.current.service == s {
		n.current = &route{leader: leader, own: own, service: s, changed: n.current.changed}
		return
	}
	close(n.current.changed)
	n.current = &route{leader: leader, own: own, service: s, changed: make(chan struct{})}
}

// accept takes local clients' connections until ctx ends.
func (n *Node) accept(ctx context.Context, l net.Listener) error {
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	for {
		conn, err := l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			// Too many open files, or a client that hung up: the next may do.
			n.log.Warn("store: accept a client", "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(acceptRest):
			}
			continue
		}
		n.tasks.Go(func() { n.carry(ctx, conn) })
	}
}

// carry gives a local client's connection to the Backend, here or at the
// leader. A connection that was carried ends when the leader changes: its
// client connects anew and goes on from the revision that it has.
func (n *Node) carry(ctx context.Context, conn net.Conn) {
	waiting, cancel := context.WithTimeout(ctx, routeLimit)
	defer cancel()
	for waiting.Err() == nil {
		r := n.route()
		switch {
		case r.service != nil:
			if r.service.inbox.offer(conn) {
				return
			}
		case r.leader != 0 && r.leader != n.member.ID():
			if n.carryTo(ctx, waiting, conn, r) {
				return
			}
		}
		select {
		case <-r.changed:
		case <-time.After(rest):
		case <-waiting.Done():
		}
	}
	_ = conn.Close() // The client tries again.
}

// carryTo bridges a connection to the leader of a route. It reports false when
// the leader could not be reached: nothing was sent then.
func (n *Node) carryTo(ctx, waiting context.Context, conn net.Conn, r *route) bool {
	far, err := n.network.Dial(waiting, r.leader, protocolEtcd)
	if err != nil {
		n.poke()
		return false
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	n.tasks.Go(func() {
		select {
		case <-r.changed:
			cancel()
		case <-ctx.Done():
		}
	})
	peer.Bridge(ctx, conn, far)
	n.poke() // It may have ended because the leader did.
	return true
}

// serveEtcd gives a peer's client to this member's Backend; it waits a moment
// for one, since the peer may have heard first that this member leads. Who is no
// member any more is not served.
func (n *Node) serveEtcd(ctx context.Context, from uint64, conn net.Conn) {
	waiting, cancel := context.WithTimeout(ctx, routeLimit/2)
	defer cancel()
	for waiting.Err() == nil {
		r := n.route()
		if r.service != nil {
			if !n.listed(waiting, r.service, from) {
				n.log.Debug("store: a client of who is no member is refused", "member", member.Name(from))
				return
			}
			tracked := &closing{Conn: conn, closed: make(chan struct{})}
			if r.service.inbox.offer(tracked) {
				// The network closes the connection when this returns.
				select {
				case <-tracked.closed:
				case <-ctx.Done():
				}
				return
			}
		}
		if r.leader != 0 && r.leader != n.member.ID() {
			return
		}
		select {
		case <-r.changed:
		case <-time.After(rest):
		case <-waiting.Done():
		}
	}
}
