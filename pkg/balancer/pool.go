package balancer

import (
	"context"
	"errors"
	"hash/fnv"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"
)

// server is one apiserver. Its fields are guarded by the pool's mutex, but for
// strict, which its watcher alone uses.
type server struct {
	address string
	// listed servers are what Set or the file said; others are here because
	// they are preferred or were known when the node joined.
	listed bool
	gone   bool // not in the pool any more
	health health
	heard  time.Time // when its kernel answered last, whatever it said
	proved time.Time // when the last check began that found it ready
	// sessions are the connections that go to it.
	sessions map[*session]struct{}
	kick     chan struct{} // asks for a check now; holds one
	strict   bool          // it wants other key exchanges than the classic ones
}

// pool holds the servers and decides which of them gets a connection, and
// which lose theirs. It starts nothing and waits for nothing.
type pool struct {
	prefer string
	last   []string // tried after all others: known when the node joined
	seed   string
	grace  time.Duration
	log    *slog.Logger
	now    func() time.Time

	mu          sync.Mutex
	servers     map[string]*server
	current     *server // gets new connections while it is usable; nil before the first
	unreachable bool    // the last client found no server, and the log has it
	changed     chan struct{}
}

// set makes servers the listed ones and cuts what went.
func (p *pool) set(servers []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	keep := slices.Concat(servers, p.last)
	if p.prefer != "" {
		keep = append(keep, p.prefer)
	}
	for _, address := range keep {
		if p.servers[address] == nil {
			p.servers[address] = &server{
				address: address, health: health{state: Unknown, since: p.now()},
				sessions: map[*session]struct{}{}, kick: make(chan struct{}, 1),
			}
		}
	}
	for address, s := range p.servers {
		was := s.listed
		s.listed = slices.Contains(servers, address)
		if was && !s.listed && address != p.prefer {
			p.cut(s, "server left the cluster")
		}
		if !slices.Contains(keep, address) {
			s.gone = true
			delete(p.servers, address)
		}
		if p.current == s && (s.gone || was && !s.listed) {
			p.current = nil
		}
	}
	notify(p.changed)
}

// notify leaves a note in a channel that holds one.
func notify(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// order lists the servers for a new connection: the preferred one and then the
// current one while they are usable, the others from the best to the worst. No
// server is left out, for health is an opinion and a connection is proof.
func (p *pool) order() []*server {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := make([]*server, 0, len(p.servers))
	for _, s := range p.servers {
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b *server) int {
		if ka, kb := p.class(a), p.class(b); ka != kb {
			return ka - kb
		}
		// Servers of one class in an order of the node's own, so that nodes
		// spread over servers, and over the rest when one fails.
		if ha, hb := spread(p.seed, a.address), spread(p.seed, b.address); ha != hb {
			if ha < hb {
				return -1
			}
			return 1
		}
		return strings.Compare(a.address, b.address)
	})
	return all
}

// class is the first criterion of order.
func (p *pool) class(s *server) int {
	switch {
	case s.health.usable() && s.address == p.prefer:
		return 0
	case s.health.usable() && s == p.current:
		return 1
	case !s.listed && s.address != p.prefer:
		return 10
	default:
		return 2 + s.health.rank()
	}
}

func spread(seed, address string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(seed + "\x00" + address))
	// FNV alone barely mixes the last bytes, where addresses differ.
	x := h.Sum64()
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	return x
}

// checked records what a check found that began then; err is check's.
func (p *pool) checked(s *server, began time.Time, err error) {
	p.change(s, func(now time.Time) {
		switch {
		case err == nil:
			s.proved = began
			s.health.ready(now)
		case errors.Is(err, errSlow):
			s.health.slow(began, now, err)
		case errors.Is(err, errNotReady):
			s.health.unready(began, now, err)
		case errors.Is(err, errSilent):
			s.health.vanished(began, now, err)
		default:
			s.health.silent(began, now, err)
		}
	})
}

// refused records that a connection to s could not be made, which was tried
// from began on.
func (p *pool) refused(s *server, began time.Time, err error) {
	p.change(s, func(now time.Time) { s.health.refused(began, now, err) })
}

// answered records that s took a connection.
func (p *pool) answered(s *server) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s.heard = p.now()
	p.sweep()
}

// doubt has the others asked whether they answer, so that it is known by the
// time that s is given up.
func (p *pool) doubt(s *server) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, other := range p.servers {
		if other != s && other.health.state == Ready {
			notify(other.kick)
		}
	}
}

// change lets something happen to s and acts on what follows from it.
func (p *pool) change(s *server, event func(now time.Time)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if s.gone {
		return
	}
	before := s.health.state
	event(p.now())
	if after := s.health.state; after != before {
		level := slog.LevelWarn
		if after == Ready {
			level = slog.LevelInfo
		}
		p.log.Log(context.Background(), level, "server's state changed", "server", s.address, "from", string(before), "to", string(after), "why", s.health.reason)
	}
	p.sweep()
}

// sweep cuts the connections that are better off elsewhere. With nowhere to go
// they stay: when all servers seem to fail, it is the network, or this machine
// is too busy to ask.
func (p *pool) sweep() {
	for _, s := range p.servers {
		if len(s.sessions) > 0 && s.health.hopeless(p.now(), p.grace) && p.refuge(s) {
			p.cut(s, s.health.reason)
		}
	}
}

// refuge reports whether there is a server to go to from s: one that is ready,
// has shown since s was in doubt that it does better than s from here, and was
// ready when the check began that s failed last. When this machine's own cable
// was out, or it was too busy for handshakes, connections live on when that is
// over. Others that could be a refuge are asked.
func (p *pool) refuge(s *server) bool {
	found := false
	for _, other := range p.servers {
		switch {
		case other == s || other.health.state != Ready:
		case !other.outdid(&s.health):
			notify(other.kick)
		case !s.health.failed.Before(other.health.since):
			found = true
		}
	}
	return found
}

// outdid reports whether s has done what a server that seems lost has not since
// it was first missed: beside one that no packet comes from it is enough that
// the kernel of s answers, beside any other only a whole check tells that this
// machine can still make one.
func (s *server) outdid(lost *health) bool {
	if !lost.unheard.IsZero() {
		return !s.heard.Before(lost.unheard)
	}
	return !s.proved.Before(lost.missed)
}

// cut ends all connections to s. Clients connect again, and come out
// elsewhere.
func (p *pool) cut(s *server, why string) {
	if len(s.sessions) == 0 {
		return
	}
	p.log.Warn("connections cut", "server", s.address, "connections", len(s.sessions), "why", why)
	for c := range s.sessions {
		c.cut()
		delete(s.sessions, c)
	}
}

// join enters a fresh session with s, which has just accepted it. It returns
// false when s has left meanwhile.
func (p *pool) join(s *server, c *session) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if s.gone {
		return false
	}
	if !s.health.usable() || len(s.sessions) == 0 {
		notify(s.kick) // it lives after all, or is asked more often from now on
	}
	s.sessions[c] = struct{}{}
	// A winner by chance, because one packet to the current server was lost,
	// does not take the rest along.
	if p.current == nil || !p.current.health.usable() {
		p.current = s
	}
	if p.unreachable {
		p.unreachable = false
		p.log.Info("a server answers again", "server", s.address)
	}
	return true
}

// leave is the end of a session. broken says that the server's side ended in
// an error, which is worth a check.
func (p *pool) leave(s *server, c *session, broken bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(s.sessions, c)
	if broken {
		notify(s.kick)
	}
}

// lost records that a client found no server at all.
func (p *pool) lost(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.unreachable {
		p.unreachable = true
		p.log.Warn("no server answers", "err", err)
	}
}

// rest is how long s is left alone between two checks: not long when somebody may wait for the answer, because it is ready
// no more or none is.
func (p *pool) rest(s *server, t timing) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	anyReady, another := false, false
	for _, other := range p.servers {
		ready := other.health.state == Ready
		anyReady, another = anyReady || ready, another || ready && other != s
	}
	inUse := s == p.active() || len(s.sessions) > 0
	switch {
	case s.health.doubtful() || !anyReady:
		return t.soon
	case s.health.state != Ready || s.address == p.prefer: // the preferred one is on this machine, and no way to it fails
		return t.interval
	case inUse && another:
		return t.brisk
	case inUse:
		return t.interval
	default:
		return t.spare
	}
}

// needless reports whether checking s can be left out: one that is known only
// from joining is of interest when nothing else works.
func (p *pool) needless(s *server) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if s.listed || s.address == p.prefer || len(s.sessions) > 0 {
		return false
	}
	for _, other := range p.servers {
		if other.health.state == Ready {
			return true
		}
	}
	return false
}

// all returns the servers there are.
func (p *pool) all() []*server {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := make([]*server, 0, len(p.servers))
	for _, s := range p.servers {
		all = append(all, s)
	}
	return all
}

// closeAll ends all sessions.
func (p *pool) closeAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.servers {
		for c := range s.sessions {
			c.cut()
		}
	}
}

// snapshot describes the servers for the status.
func (p *pool) snapshot() []Server {
	p.mu.Lock()
	defer p.mu.Unlock()
	var all []Server
	for _, s := range p.servers {
		if !s.listed && s.address != p.prefer && len(s.sessions) == 0 {
			continue
		}
		all = append(all, Server{
			Address: s.address, State: s.health.state, Healthy: s.health.state == Ready, Active: s == p.active(),
			Since: s.health.since, Reason: s.health.reason, Connections: len(s.sessions),
		})
	}
	slices.SortFunc(all, func(a, b Server) int { return strings.Compare(a.Address, b.Address) })
	return all
}

// active is the server that new connections go to now.
func (p *pool) active() *server {
	if s := p.servers[p.prefer]; s != nil && s.health.state == Ready {
		return s
	}
	return p.current
}
