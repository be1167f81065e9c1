package balancer

import (
	"crypto/tls"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// busy makes the handshakes of a server that is started with it take long;
// connections that exist go on.
type busy struct{ delay atomic.Int64 }

func (h *busy) take(d time.Duration) { h.delay.Store(int64(d)) }

// config is for tls.Config's GetConfigForClient, called in each handshake.
func (h *busy) config(*tls.ClientHelloInfo) (*tls.Config, error) {
	time.Sleep(time.Duration(h.delay.Load()))
	return nil, nil
}

// startBusy is an apiserver with handshakes of h.
func startBusy(t *testing.T, name string, h *busy) *apiserver {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return serveOn(t, name, l, func(c *tls.Config) { c.GetConfigForClient = h.config })
}

// used starts a balancer over servers, all of them ready, that uses the first.
func used(t *testing.T, patience timing, first, second *apiserver) *fixture {
	t.Helper()
	f := run(t, Options{Seed: seedFor(first, second)}, patience, first, second)
	f.state(first, Ready)
	f.state(second, Ready)
	until(t, first.name+" is used", func() bool { return f.name() == first.name })
	return f
}

// TestSlowHandshakes is about a server with more handshakes to do than it can,
// whose connections work: they stay, what is new goes elsewhere.
func TestSlowHandshakes(t *testing.T) {
	var h busy
	slow, other := startBusy(t, "slow", &h), startServer(t, "other", "")
	f := used(t, defaultTiming(), slow, other)
	w := f.watch()
	h.take(5 * time.Second)
	begin := time.Now()
	f.state(slow, NotReady)
	t.Logf("noticed after %v: %s", time.Since(begin).Round(time.Millisecond), f.of(slow).Reason)
	if got := f.name(); got != "other" {
		t.Errorf("a new connection went to %q; want other", got)
	}
	if _, ended := w.ended(10*time.Second - time.Since(begin)); ended {
		t.Errorf("a connection that worked was cut after %v", time.Since(begin))
	}
	h.take(0)
	f.state(slow, Ready)
	if text := f.log.String(); strings.Contains(text, "to=dead") || strings.Contains(text, "connections cut") {
		t.Errorf("log %q", text)
	}
}

// TestSlowHandshakesForLong is about one that stays so: a kubelet that stays
// with it cannot make a connection again.
func TestSlowHandshakesForLong(t *testing.T) {
	var h busy
	slow, other := startBusy(t, "slow", &h), startServer(t, "other", "")
	patience := quick()
	f := used(t, patience, slow, other)
	w := f.watch()
	h.take(2 * patience.answer)
	d, ended := w.ended(10 * patience.grace)
	if !ended || d < patience.grace {
		t.Errorf("a connection went on for %v, it ended = %t; want an end after %v", d, ended, patience.grace)
	}
	t.Logf("cut after %v", d.Round(time.Millisecond))
}

// TestBusyMachine is about a node that is itself too busy for handshakes: none
// is over in time, whoever is asked. When that is over,
// all connections are there.
func TestBusyMachine(t *testing.T) {
	var h busy
	first, second := startBusy(t, "first", &h), startBusy(t, "second", &h)
	patience := quick()
	f := used(t, patience, first, second)
	w := f.watch()
	h.take(2 * patience.answer)
	f.state(first, NotReady)
	f.state(second, NotReady)
	if d, ended := w.ended(4 * patience.grace); ended {
		t.Errorf("with all handshakes slow, a connection was cut after %v", d)
	}
	h.take(0)
	f.state(second, Ready)
	f.state(first, Ready)
	if d, ended := w.ended(2 * patience.grace); ended {
		t.Errorf("with all handshakes over soon again, a connection was cut after %v", d)
	}
}
