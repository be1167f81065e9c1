package tunnel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
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
)

// session is one tunnel: the connection of a node. It is the identity that gRPC hands to each stream.
type session struct {
	node string

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
	log       *slog.Logger

	mu      sync.Mutex
	nodes   map[string][]*session // oldest first, each with at least one stream
	changed chan struct{}         // closed and replaced whenever nodes or idle streams change
}

func newPool(o ServerOptions) *pool {
	return &pool{own: o.Node, addresses: o.Addresses, log: o.Log, nodes: map[string][]*session{}, changed: make(chan struct{})}
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

// owner is the connected node that host is the name or an address of, "" when there is none. An address that several
// nodes have is nobody's: the network decides where it leads.
func (p *pool) owner(host string) string {
	p.mu.Lock()
	_, named := p.nodes[host]
	addr, err := netip.ParseAddr(host)
	addr = addr.Unmap()
	var claimants []string
	for node, sessions := range p.nodes {
		if err == nil && slices.ContainsFunc(sessions, func(e *session) bool { return slices.Contains(e.claims, addr) }) {
			claimants = append(claimants, node)
		}
	}
	p.mu.Unlock()
	if named {
		return host
	}
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

// take returns a free stream to the node that host belongs to, else to the own node, which is nearest, else to any. It
// waits a moment for streams and nodes to come. Sessions in avoid are not used.
func (p *pool) take(ctx context.Context, host string, avoid []*session) (*stream, error) {
	begin := time.Now()
	timeout := time.NewTimer(nodeTimeout)
	defer timeout.Stop()
	for {
		owner := p.owner(host)
		p.mu.Lock()
		chosen := p.choose(owner, avoid)
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
				return nil, errors.New("no node has a tunnel to this server")
			}
			return nil, fmt.Errorf("node %s opens no more streams in its tunnel", chosen.node)
		}
	}
}

// choose picks the session to use. Of a node's sessions it is the newest: a node keeps one to a server, so that an older
// one is dead and not noticed yet.
func (p *pool) choose(owner string, avoid []*session) *session {
	newest := func(node string) *session {
		for _, e := range slices.Backward(p.nodes[node]) {
			if !slices.Contains(avoid, e) {
				return e
			}
		}
		return nil
	}
	for _, node := range []string{owner, p.own} {
		if e := newest(node); e != nil {
			return e
		}
	}
	var all []*session
	for node := range p.nodes {
		if e := newest(node); e != nil {
			all = append(all, e)
		}
	}
	if len(all) == 0 {
		return nil
	}
	return all[rand.IntN(len(all))]
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
