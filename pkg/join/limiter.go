package join

import (
	"net/netip"
	"sync"
	"time"
)

// Failures that a source may have at once, and how fast that is given back; and how many wrong guesses at a chosen secret
// all sources may have together. A machine with a wrong token tries twice a minute, and is to be told that the token is
// wrong, not that it asks too often.
const (
	sourceBurst = 10
	sourceRate  = 5 * time.Second
	totalBurst  = 100
	totalRate   = time.Second
	// maxSources bounds the memory; sources with nothing against them are forgotten first.
	maxSources = 4096
)

// bucket holds what is left to a source; one is given back every rate.
type bucket struct {
	left float64
	at   time.Time
}

func (b *bucket) refill(now time.Time, burst float64, rate time.Duration) {
	if d := now.Sub(b.at); d > 0 { // a clock that was put back gives nothing
		b.left = min(burst, b.left+float64(d)/float64(rate))
	}
	b.at = now
}

// take takes one, or says how long there will be none.
func (b *bucket) take(rate time.Duration) (wait time.Duration, ok bool) {
	if b.left < 1 {
		return time.Duration((1 - b.left) * float64(rate)), false
	}
	b.left--
	return 0, true
}

// allowance counts the wrong guesses at a secret, wherever they come from. Only a secret that can be guessed has one: who
// uses it up keeps all others out that have no better. Methods may be called at any time.
type allowance struct {
	mu  sync.Mutex
	now func() time.Time
	all bucket
}

func newAllowance(now func() time.Time) *allowance {
	return &allowance{now: now, all: bucket{totalBurst, now()}}
}

// take takes one before a guess is looked at, or says how long there will be none.
func (a *allowance) take() (wait time.Duration, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.all.refill(a.now(), totalBurst, totalRate)
	return a.all.take(totalRate)
}

// giveBack undoes take for what was no wrong guess.
func (a *allowance) giveBack() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.all.left = min(totalBurst, a.all.left+1)
}

// limiter counts failures by where they come from. Each request takes one before it is looked at, and gives it back when it turns out not to be
// a failure, so that many at a time cannot slip through. Methods may be called at any time.
type limiter struct {
	mu      sync.Mutex
	now     func() time.Time
	sources map[netip.Prefix]*bucket
}

func newLimiter(now func() time.Time) *limiter {
	return &limiter{now: now, sources: make(map[netip.Prefix]*bucket)}
}

// source is what is counted together: an IPv4 address, or the network that one IPv6 machine can take any address of.
func source(remote string) netip.Prefix {
	ap, err := netip.ParseAddrPort(remote)
	if err != nil {
		return netip.Prefix{} // all that have none together
	}
	a := ap.Addr().Unmap().WithZone("")
	bits := a.BitLen()
	if a.Is6() {
		bits = 64
	}
	p, err := a.Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return p
}

// take takes one from the source, or says how long there will be none.
func (l *limiter) take(from netip.Prefix) (wait time.Duration, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	b := l.sources[from]
	if b == nil {
		l.forget(now)
		b = &bucket{sourceBurst, now}
		l.sources[from] = b
	}
	b.refill(now, sourceBurst, sourceRate)
	return b.take(sourceRate)
}

// giveBack undoes take.
func (l *limiter) giveBack(from netip.Prefix) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if b := l.sources[from]; b != nil {
		b.left = min(sourceBurst, b.left+1)
	}
}

// forget makes room: first sources that have nothing against them, then, should all have, any.
func (l *limiter) forget(now time.Time) {
	if len(l.sources) < maxSources {
		return
	}
	for from, b := range l.sources {
		if b.refill(now, sourceBurst, sourceRate); b.left >= sourceBurst {
			delete(l.sources, from)
		}
	}
	for from := range l.sources {
		if len(l.sources) < maxSources {
			return
		}
		delete(l.sources, from)
	}
}
