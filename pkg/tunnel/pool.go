package tunnel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"sigs.k8s.io/apiserver-network-proxy/proto/agent"
)

const (
	// spareTimeout bounds the wait for the next stream of a node all of whose streams are in use: one round trip, unless
	// its tunnel is dying.
	spareTimeout = 5 * time.Second
	// nodeTimeout bounds the wait for any node at all: after a start, the first are back within it.
	nodeTimeout = 3 * time.Second
	// maxSessions bounds the tunnels of one node. It keeps one; a few more are dead ones that are not noticed yet.
	maxSessions = 4
)

// session is one tunnel: the connection of a node. It is the identity that gRPC hands to each stream.
type session struct {
	node string
	conn net.Conn

	// The pool guards these.
	claims []netip.Addr
	idle   []*stream
	live   int // streams that did not end yet, idle or not
}

// AuthType makes session a credentials.AuthInfo.
func (*session) AuthType() string { return upgrade }

// stream carries one connection, once it is taken from the pool.
type stream struct {
	sender
	session *session
	wire    agent.AgentService_ConnectServer
	id      int64         // of the dial request
	done    chan struct{} // closed by end: Connect returns, which ends the stream
	once    sync.Once
}

func (s *stream) end() { s.once.Do(func() { close(s.done) }) }

// pool knows the tunnels and which streams of them are free.
type pool struct {
	own       string
	addresses func(node string) []netip.Addr
	isServer  func(node string) bool
	log       *slog.Logger

	mu      sync.Mutex
	conns   map[string][]*session // oldest first, from the upgrade to the end of the connection
	nodes   map[string][]*session // oldest first, each with at least one stream
	changed chan struct{}         // closed and replaced whenever nodes or idle streams change
}

func newPool(o ServerOptions) *pool {
	return &pool{
		own: o.Node, addresses: o.Addresses, isServer: o.IsServer, log: o.Log,
		conns: map[string][]*session{}, nodes: map[string][]*session{}, changed: make(chan struct{}),
	}
}

// enter counts a tunnel that begins, and ends the oldest of its node when there are too many.
func (p *pool) enter(e *session) {
	p.mu.Lock()
	all := append(p.conns[e.node], e)
	var ended []*session
	if n := len(all) - maxSessions; n > 0 {
		ended = slices.Clone(all[:n])
		all = slices.Clone(all[n:])
	}
	p.conns[e.node] = all
	p.mu.Unlock()
	for _, old := range ended {
		p.log.Warn("node has too many tunnels: its oldest is ended", "node", e.node, "most", maxSessions)
		old.conn.Close() // gRPC ends its streams
	}
}

// leave forgets a tunnel whose connection is closed. It may be called again.
func (p *pool) leave(e *session) {
	p.mu.Lock()
	defer p.mu.Unlock()
	rest := slices.DeleteFunc(p.conns[e.node], func(i *session) bool { return i == e })
	if p.conns[e.node] = rest; len(rest) == 0 {
		delete(p.conns, e.node)
	}
}

// end ends all tunnels of a node.
func (p *pool) end(node string) {
	p.mu.Lock()
	all := slices.Clone(p.conns[node])
	p.mu.Unlock()
	for _, e := range all {
		e.conn.Close()
	}
}

func (p *pool) known(node string) []netip.Addr {
	if p.addresses == nil {
		return nil
	}
	return p.addresses(node)
}

// add makes a new stream free for use. It reports whether it is the first of its session.
func (p *pool) add(s *stream, claims []netip.Addr) (first bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := s.session
	e.claims, e.live, e.idle = claims, e.live+1, append(e.idle, s)
	if e.live == 1 {
		p.nodes[e.node] = append(p.nodes[e.node], e)
	}
	p.notify()
	return e.live == 1
}

// remove forgets a stream that ends. It reports whether it was the last of its session.
func (p *pool) remove(s *stream) (last bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := s.session
	e.live--
	e.idle = slices.DeleteFunc(e.idle, func(i *stream) bool { return i == s })
	if e.live == 0 {
		rest := slices.DeleteFunc(p.nodes[e.node], func(i *session) bool { return i == e })
		if p.nodes[e.node] = rest; len(rest) == 0 {
			delete(p.nodes, e.node)
		}
	}
	p.notify()
	return e.live == 0
}

func (p *pool) notify() {
	close(p.changed)
	p.changed = make(chan struct{})
}

// connected lists the nodes that have a tunnel, sorted.
func (p *pool) connected() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var all []string
	for node := range p.nodes {
		all = append(all, node)
	}
	slices.Sort(all)
	return all
}

// owner is the connected node that host is an address of, or the name, "" when there is none. A host that is an address
// is never taken for a name: a node may be called "10.43.0.10". An address that several nodes have is nobody's: the
// network decides where it leads.
func (p *pool) owner(host string) string {
	addr, err := netip.ParseAddr(host)
	if err != nil {
		p.mu.Lock()
		defer p.mu.Unlock()
		if _, named := p.nodes[host]; named {
			return host
		}
		return ""
	}
	addr = addr.Unmap()
	var claimants []string
	p.mu.Lock()
	for node, sessions := range p.nodes {
		if slices.ContainsFunc(sessions, func(e *session) bool { return slices.Contains(e.claims, addr) }) {
			claimants = append(claimants, node)
		}
	}
	p.mu.Unlock()
	claimants = slices.DeleteFunc(claimants, func(node string) bool { return !slices.Contains(p.known(node), addr) })
	if len(claimants) > 1 {
		slices.Sort(claimants)
		p.log.Warn("address of several nodes is taken for nobody's", "address", host, "nodes", claimants)
	}
	if len(claimants) != 1 {
		return ""
	}
	return claimants[0]
}

// errNobody is what a user of the apiserver reads when nothing can carry the connection.
var errNobody = errors.New("no node that may carry it has a tunnel to this server: neither the one it is for nor a server's, " +
	"which carry what is for pods and Services")

// take returns a free stream to the node that host belongs to, else to the own node, which is nearest, else to that of
// another server. Agents carry nothing but what is for themselves: they could read it. It waits a moment for streams and
// nodes to come. Sessions in avoid are not used.
func (p *pool) take(ctx context.Context, host string, avoid []*session) (*stream, error) {
	begin := time.Now()
	timeout := time.NewTimer(nodeTimeout)
	defer timeout.Stop()
	for {
		owner := p.owner(host)
		p.mu.Lock()
		chosen := p.choose([]string{owner, p.own}, avoid)
		if chosen == nil {
			p.mu.Unlock()
			others := p.servers()
			p.mu.Lock()
			chosen = p.choose(others, avoid)
		}
		if chosen != nil && len(chosen.idle) > 0 {
			s := chosen.idle[len(chosen.idle)-1]
			chosen.idle = chosen.idle[:len(chosen.idle)-1]
			p.mu.Unlock()
			return s, nil
		}
		changed := p.changed
		p.mu.Unlock()
		if chosen != nil {
			timeout.Reset(spareTimeout - time.Since(begin))
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-timeout.C:
			if chosen == nil {
				return nil, errNobody
			}
			return nil, fmt.Errorf("node %s opens no more streams in its tunnel", chosen.node)
		}
	}
}

// servers lists the connected nodes that are servers, in any order.
func (p *pool) servers() []string {
	if p.isServer == nil {
		return nil
	}
	all := slices.DeleteFunc(p.connected(), func(node string) bool { return !p.isServer(node) })
	rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	return all
}

// choose picks the session to use: of the first of the nodes that has one. Of a node's sessions it is the newest: a node
// keeps one to a server, so that an older one is dead and not noticed yet.
func (p *pool) choose(nodes []string, avoid []*session) *session {
	for _, node := range nodes {
		for _, e := range slices.Backward(p.nodes[node]) {
			if !slices.Contains(avoid, e) {
				return e
			}
		}
	}
	return nil
}

// abandon tells the node of s, by another stream, to give up the connection of s. s itself may be full of data that the
// target does not read, and nothing sent in it would arrive.
func (p *pool) abandon(s *stream) {
	p.mu.Lock()
	var by *stream
	if idle := s.session.idle; len(idle) > 0 {
		by = idle[0]
	}
	p.mu.Unlock()
	if by != nil {
		_ = by.send(closeDial(s.id)) // a tunnel that fails ends the connection as well
	}
}
