package balancer

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// lined is a balancer whose first server is behind a line, beside a near one.
// Both are ready, and the far one is in use.
func lined(t *testing.T, delay time.Duration, loss float64) (*fixture, *line, *apiserver) {
	t.Helper()
	way, l := newLine(t, delay, loss)
	far, near := serveOn(t, "far", l), startServer(t, "near", "")
	f := run(t, Options{Initial: []string{far.addr}, Seed: seedFor(far, near), TLS: trustOf(far)}, defaultTiming(), near)
	f.state(far, Ready)
	f.state(near, Ready)
	until(t, "the far server is used", func() bool { return f.name() == "far" })
	return f, way, far
}

// trustOf believes httptest's certificate wherever it is shown, and has one.
func trustOf(s *apiserver) func() (*tls.Config, error) {
	trust := s.trust()
	trust.ServerName = "example.com"
	return func() (*tls.Config, error) { return trust, nil }
}

// seedFor returns a node's name that puts one server before another.
func seedFor(first, second *apiserver) string {
	for i := 0; ; i++ {
		if seed := fmt.Sprint("node-", i); spread(seed, first.addr) < spread(seed, second.addr) {
			return seed
		}
	}
}

// post asks for a server's name in a way that net/http does not repeat by
// itself.
func (f *fixture) post(c *http.Client) (string, error) {
	r, err := c.Post("https://"+f.Addr()+"/name", "text/plain", bytes.NewReader([]byte("x")))
	if err != nil {
		return "", err
	}
	defer r.Body.Close()
	data, err := io.ReadAll(r.Body)
	return string(data), err
}

// TestHungRequest has the way to a server swallow packets, and asks something
// over a connection that exists: it must be over soon, in a way that
// Kubernetes' clients repeat, and so must be a watch that says nothing.
func TestHungRequest(t *testing.T) {
	const limit = 5 * time.Second
	for _, phase := range phases() {
		f, way, _ := lined(t, time.Millisecond, 0)
		busy, quiet := f.client(true), f.client(false)
		busy.Timeout, quiet.Timeout = time.Minute, 0
		if name, err := f.post(busy); name != "far" || err != nil {
			t.Fatalf("%q answers, %v; want far", name, err)
		}
		watching, err := quiet.Get("https://" + f.Addr() + "/quiet")
		if err != nil {
			t.Fatal(err)
		}
		over := make(chan time.Time, 1)
		go func() {
			_, _ = io.ReadAll(watching.Body) // how it ends does not matter
			over <- time.Now()
		}()
		time.Sleep(phase)
		way.cut.Store(true)
		begin := time.Now()
		name, err := f.post(busy)
		if !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("the hung request ends with %q, %v; want a reset", name, err)
		}
		ended := time.Since(begin)
		name, err = f.post(busy)
		again := time.Since(begin)
		if name != "near" || err != nil || again > limit {
			t.Errorf("after %v %q answers, %v; want near within %v", again, name, err, limit)
		}
		quietly := (<-over).Sub(begin)
		watching.Body.Close()
		if quietly > limit {
			t.Errorf("the quiet watch hung for %v", quietly)
		}
		t.Logf("request over after %v, answered by another server after %v, quiet watch over after %v",
			ended.Round(time.Millisecond), again.Round(time.Millisecond), quietly.Round(time.Millisecond))
	}
}

// phases are how long after a client came TestHungRequest cuts the way, for
// balancers ask at different times.
func phases() []time.Duration { return []time.Duration{0, 2200 * time.Millisecond} }

// TestIdleTraffic measures what a balancer sends to the server in use when
// nobody asks for anything.
func TestIdleTraffic(t *testing.T) {
	f, way, _ := lined(t, time.Millisecond, 0)
	if name, err := f.ask(f.client(true)); err != nil || name != "far" {
		t.Fatal(name, err)
	}
	var before, after unix.Rusage
	syns, bytes, begin := way.syns.Load(), way.bytes.Load(), time.Now()
	if err := unix.Getrusage(unix.RUSAGE_SELF, &before); err != nil {
		t.Fatal(err)
	}
	time.Sleep(idleTime)
	if err := unix.Getrusage(unix.RUSAGE_SELF, &after); err != nil {
		t.Fatal(err)
	}
	minutes := time.Since(begin).Minutes()
	probes, total := float64(way.syns.Load()-syns), float64(way.bytes.Load()-bytes)
	spent := time.Duration(after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano())
	t.Logf("per minute: %.0f checks, %.0f bytes both ways; per check: %.0f bytes, %v of both sides' processor",
		probes/minutes, total/minutes, total/probes, (spent / time.Duration(probes)).Round(time.Microsecond))
	// Every 2.4 s, a tenth more or less.
	if probes/minutes > 32 || total/probes > 5e3 {
		t.Errorf("%.0f checks and %.0f bytes per minute", probes/minutes, total/minutes)
	}
}

const idleTime = 15 * time.Second

// TestBadLine has many balancers use a server 300 ms away, on a line that
// loses every 50th packet each way: none of them takes it for dead.
func TestBadLine(t *testing.T) {
	one, l1 := newLine(t, 300*time.Millisecond, 0.02)
	_, l2 := newLine(t, 300*time.Millisecond, 0.02)
	used, other := serveOn(t, "used", l1), serveOn(t, "other", l2)
	o := Options{Initial: []string{used.addr, other.addr}, Seed: seedFor(used, other), TLS: trustOf(used)}
	var all []*fixture
	for range badLineNodes {
		f := run(t, o, defaultTiming())
		f.tls = used.trust()
		all = append(all, f)
	}
	for _, f := range all {
		f.state(used, Ready)
		f.state(other, Ready)
		c := f.client(false)
		c.Timeout = 0
		w, err := c.Get("https://" + f.Addr() + "/quiet")
		if err != nil {
			t.Fatal(err)
		}
		defer w.Body.Close()
	}
	syns := one.syns.Load()
	time.Sleep(badLineTime)
	unready := 0
	for _, f := range all {
		text := f.log.String()
		if strings.Contains(text, "to=dead") || strings.Contains(text, "connections cut") {
			t.Errorf("a balancer gave a server up:\n%s", text)
		}
		unready += strings.Count(text, `to="not ready"`)
	}
	t.Logf("%d balancers, %v: %d attempts to connect to the server in use, never taken for dead, %d times for not ready",
		len(all), badLineTime, one.syns.Load()-syns, unready)
}

const (
	badLineNodes = 16
	badLineTime  = 20 * time.Second
)

// TestOwnCable takes the ways to all servers at once: connections wait, and
// live on when the ways are back.
func TestOwnCable(t *testing.T) {
	one, l1 := newLine(t, time.Millisecond, 0)
	two, l2 := newLine(t, time.Millisecond, 0)
	first, second := serveOn(t, "first", l1), serveOn(t, "second", l2)
	f := run(t, Options{Initial: []string{first.addr, second.addr}, Seed: seedFor(first, second), TLS: trustOf(first)}, defaultTiming())
	f.tls = first.trust()
	f.state(first, Ready)
	f.state(second, Ready)
	conn, err := net.Dial("tcp", f.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	config := f.tls.Clone()
	config.ServerName = "example.com"
	client := tls.Client(conn, config)
	if err := client.Handshake(); err != nil {
		t.Fatal(err)
	}
	one.cut.Store(true)
	two.cut.Store(true)
	f.state(first, Dead)
	f.state(second, Dead)
	one.cut.Store(false)
	two.cut.Store(false)
	f.state(first, Ready)
	f.state(second, Ready)
	if _, err := io.WriteString(client, "GET /name HTTP/1.0\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(client)
	if err != nil || !strings.HasSuffix(string(answer), "first") {
		t.Errorf("over the old connection: %q, %v; want first's answer", answer, err)
	}
}
