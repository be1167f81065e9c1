package control

import (
	"net/netip"
	"sync"
	"time"
)

// What a request of anybody may cost before pkg/join, which counts failures too, sees it whole: so many may send their
// bodies at a time, in all and of one source, and so many are worked on. A machine asks once; forty that start at the
// same moment wait a little.
const (
	bodiesAtOnce    = 64
	bodiesPerSource = 4
	joinsAtOnce     = 16
	joinBody        = 64 << 10
	joinReadTime    = 5 * time.Second
	joinTime        = 45 * time.Second

	// A source may fail to send a body mostFailures times at once, and once more in each failureRate.
	mostFailures = 5
	failureRate  = 10 * time.Second
	// mostSources bounds the memory.
	mostSources = 4096
)

// sourceOf is what is counted together: an IPv4 address, or the network that one IPv6 machine can take any address of.
func sourceOf(remote string) netip.Prefix {
	ap, err := netip.ParseAddrPort(remote)
	if err != nil {
		return netip.Prefix{} // all that have none together
	}
	a := ap.Addr().Unmap().WithZone("")
	if a.Is6() {
		return netip.PrefixFrom(a, 64).Masked()
	}
	return netip.PrefixFrom(a, a.BitLen())
}

// limits counts who asks one thing. Its methods may be called at any time.
type limits struct {
	now func() time.Time

	mu      sync.Mutex
	inside  int // from enter to leave
	working int // from begin to end
	sources map[netip.Prefix]*visitor
}

// visitor is a source that is inside, or failed not long ago.
type visitor struct {
	inside   int
	failures float64
	at       time.Time // of the failures
}

func newLimits(now func() time.Time) *limits {
	return &limits{now: now, sources: make(map[netip.Prefix]*visitor)}
}

// enter lets a request in. Each success asks for a leave.
func (l *limits) enter(source netip.Prefix) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	v := l.visitor(source)
	if l.inside >= bodiesAtOnce || v.inside >= bodiesPerSource || v.failures > mostFailures-1 {
		l.forget(source, v)
		return false
	}
	l.inside++
	v.inside++
	return true
}

func (l *limits) leave(source netip.Prefix) {
	l.mu.Lock()
	defer l.mu.Unlock()
	v := l.visitor(source)
	l.inside--
	v.inside--
	l.forget(source, v)
}

// fail counts a body of the source that did not arrive in time, or not whole.
func (l *limits) fail(source netip.Prefix) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.visitor(source).failures++
}

// begin lets a request that is there be worked on. Each success asks for an end.
func (l *limits) begin() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.working >= joinsAtOnce {
		return false
	}
	l.working++
	return true
}

func (l *limits) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.working--
}

// visitor returns the source's, with the failures that count still.
func (l *limits) visitor(source netip.Prefix) *visitor {
	now := l.now()
	v := l.sources[source]
	if v == nil {
		l.makeRoom()
		v = &visitor{at: now}
		l.sources[source] = v
	}
	if d := now.Sub(v.at); d > 0 { // a clock that was put back forgives nothing
		v.failures = max(0, v.failures-float64(d)/float64(failureRate))
	}
	v.at = now
	return v
}

// forget drops a source with nothing against it.
func (l *limits) forget(source netip.Prefix, v *visitor) {
	if v.inside == 0 && v.failures == 0 {
		delete(l.sources, source)
	}
}

// makeRoom drops sources that are not inside when there are too many; those inside are few.
func (l *limits) makeRoom() {
	for source, v := range l.sources {
		if len(l.sources) < mostSources {
			return
		}
		if v.inside == 0 {
			delete(l.sources, source)
		}
	}
}
