package balancer

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// quick is a balancer's patience in tests.
func quick() timing {
	return timing{
		interval: 100 * time.Millisecond, brisk: 80 * time.Millisecond, spare: 150 * time.Millisecond,
		soon: 40 * time.Millisecond, answer: 300 * time.Millisecond, dial: 300 * time.Millisecond, silence: 300 * time.Millisecond,
		stagger: 50 * time.Millisecond, again: 50 * time.Millisecond, grace: 500 * time.Millisecond, vanish: 15 * time.Second,
	}
}

// apiserver is as much of one as a balancer and its clients meet: TLS, its
// readiness, and an answer with its name, which may go on for ever.
type apiserver struct {
	name, addr string
	ready      atomic.Int32 // the status of /readyz
	server     *httptest.Server
}

// startServer serves at addr, or at a free port.
func startServer(t *testing.T, name, addr string) *apiserver {
	t.Helper()
	if addr == "" {
		addr = "127.0.0.1:0"
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	return serveOn(t, name, l)
}

// serveOn is an apiserver behind a listener, with TLS as options make it.
func serveOn(t *testing.T, name string, l net.Listener, options ...func(*tls.Config)) *apiserver {
	s := &apiserver{name: name, addr: l.Addr().String()}
	s.ready.Store(http.StatusOK)
	mux := http.NewServeMux()
	mux.HandleFunc("/readyz", func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(int(s.ready.Load()))
		io.WriteString(w, "[+]ping ok\n[-]etcd failed: reason withheld\nreadyz check failed\n")
	})
	mux.HandleFunc("/name", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, name) })
	mux.HandleFunc("/quiet", func(w http.ResponseWriter, r *http.Request) {
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	})
	mux.HandleFunc("/watch", func(w http.ResponseWriter, r *http.Request) {
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			fmt.Fprintln(w, name)
			w.(http.Flusher).Flush()
			select {
			case <-r.Context().Done():
				return
			case <-tick.C:
			}
		}
	})
	s.server = &httptest.Server{Listener: l, Config: &http.Server{Handler: mux, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}}
	s.server.TLS = &tls.Config{ClientAuth: tls.RequestClientCert} // as the apiserver does
	for _, o := range options {
		o(s.server.TLS)
	}
	s.server.StartTLS()
	t.Cleanup(s.stop)
	return s
}

// stop ends the server and its connections, as the end of its process does.
func (s *apiserver) stop() {
	s.server.Listener.Close()
	s.server.CloseClientConnections()
	s.server.Config.Close()
}

// trust is what checks and clients believe: the certificate of httptest.
func (s *apiserver) trust() *tls.Config {
	pool := x509.NewCertPool()
	pool.AddCert(s.server.Certificate())
	return &tls.Config{RootCAs: pool, Certificates: s.server.TLS.Certificates}
}

// journal collects a log.
type journal struct {
	mu   sync.Mutex
	data bytes.Buffer
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.data.Write(p)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.data.String()
}

func (j *journal) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(j, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// fixture is a balancer that runs, and what its clients use.
type fixture struct {
	*Balancer
	t   *testing.T
	log *journal
	tls *tls.Config
}

// run starts a balancer over servers until the test's end, and checks that it
// leaves nothing behind.
func run(t *testing.T, o Options, patience timing, servers ...*apiserver) *fixture {
	t.Helper()
	f := &fixture{t: t, log: &journal{}}
	o.Log = f.log.logger()
	if o.Listen == "" {
		o.Listen = "127.0.0.1:0"
	}
	if o.File == "" {
		o.File = filepath.Join(t.TempDir(), "servers.json")
	}
	for _, s := range servers {
		f.tls = s.trust() // all have the one certificate of httptest
		if o.TLS == nil {
			o.TLS = func() (*tls.Config, error) { return f.tls, nil }
		}
		o.Initial = append(o.Initial, s.addr)
	}
	b, err := newBalancer(o, patience)
	if err != nil {
		t.Fatal(err)
	}
	f.Balancer = b
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- b.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run = %v", err)
			}
		case <-time.After(5 * time.Second):
			t.Error("Run does not end")
		}
		checkNothingRuns(t)
		if t.Failed() {
			t.Log(f.log.String())
		}
	})
	return f
}

// checkNothingRuns looks for goroutines of this package that are not tests.
// Those that have just ended may be seen for a moment.
func checkNothingRuns(t *testing.T) {
	t.Helper()
	var left []string
	for range 100 {
		left = nil
		stacks := make([]byte, 4<<20)
		stacks = stacks[:runtime.Stack(stacks, true)]
		for s := range strings.SplitSeq(string(stacks), "\n\n") {
			if strings.Contains(s, "balancer.(*Balancer)") || strings.Contains(s, "balancer.(*session)") {
				left = append(left, s)
			}
		}
		if left == nil {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("still running:\n%s", strings.Join(left, "\n\n"))
}

// client makes a connection of its own for each of its requests.
func (f *fixture) client(keep bool) *http.Client {
	tr := &http.Transport{TLSClientConfig: f.tls.Clone(), DisableKeepAlives: !keep}
	f.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 5 * time.Second}
}

// name asks over a new connection which server answers.
func (f *fixture) name() string {
	name, err := f.ask(f.client(false))
	if err != nil {
		return "error: " + err.Error()
	}
	return name
}

func (f *fixture) ask(c *http.Client) (string, error) {
	r, err := c.Get("https://" + f.Addr() + "/name")
	if err != nil {
		return "", err
	}
	defer r.Body.Close()
	data, err := io.ReadAll(r.Body)
	return string(data), err
}

// watch is a request that goes on until its server or connection ends.
type watch struct {
	body io.ReadCloser
	end  chan struct{}
}

func (f *fixture) watch() *watch {
	f.t.Helper()
	c := f.client(false)
	c.Timeout = 0
	r, err := c.Get("https://" + f.Addr() + "/watch")
	if err != nil {
		f.t.Fatal(err)
	}
	w := &watch{body: r.Body, end: make(chan struct{})}
	go func() {
		defer close(w.end)
		io.Copy(io.Discard, r.Body)
	}()
	f.t.Cleanup(func() { r.Body.Close(); <-w.end })
	return w
}

// ended reports how long w went on from now, at most d.
func (w *watch) ended(d time.Duration) (time.Duration, bool) {
	begin := time.Now()
	select {
	case <-w.end:
		return time.Since(begin), true
	case <-time.After(d):
		return d, false
	}
}

// until waits for a condition and returns the time it took.
func until(t *testing.T, what string, f func() bool) time.Duration {
	t.Helper()
	begin := time.Now()
	for !f() {
		if time.Since(begin) > 10*time.Second {
			t.Fatalf("waited 10 s for: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
	return time.Since(begin)
}

// state waits until the balancer thinks so of a server.
func (f *fixture) state(s *apiserver, want State) time.Duration {
	f.t.Helper()
	return until(f.t, s.name+" is "+string(want), func() bool { return f.of(s).State == want })
}

func (f *fixture) of(s *apiserver) Server {
	for _, got := range f.Servers() {
		if got.Address == s.addr {
			return got
		}
	}
	return Server{}
}

func threeServers(t *testing.T) []*apiserver {
	var all []*apiserver
	for _, name := range []string{"a", "b", "c"} {
		all = append(all, startServer(t, name, ""))
	}
	return all
}

func byName(all []*apiserver, name string) *apiserver {
	for _, s := range all {
		if s.name == name {
			return s
		}
	}
	return nil
}

func TestStaysWithOneServer(t *testing.T) {
	all := threeServers(t)
	f := run(t, Options{Seed: "node-1"}, quick(), all...)
	first := f.name()
	for i := range 20 {
		if got := f.name(); got != first {
			t.Errorf("connection %d went to %s, the first to %s", i, got, first)
		}
	}
	s := f.of(byName(all, first))
	if !s.Active {
		t.Errorf("%+v is not active", s)
	}
}

func TestFailover(t *testing.T) {
	all := threeServers(t)
	f := run(t, Options{Seed: "node-1"}, quick(), all...)
	for _, s := range all {
		f.state(s, Ready)
	}
	first := byName(all, f.name())
	w := f.watch()
	first.stop()
	begin := time.Now()
	second := f.name()
	t.Logf("a new connection reached %s %v after the end of %s", second, time.Since(begin).Round(time.Millisecond), first.name)
	if byName(all, second) == nil || second == first.name {
		t.Fatalf("after %s ended, %q answers", first.name, second)
	}
	if d, ok := w.ended(time.Second); !ok {
		t.Errorf("the watch still hangs after %v", d)
	}
	if got := f.of(first); got.State != Dead || got.Active || got.Reason == "" {
		t.Errorf("the ended server is %+v", got)
	}
	again := startServer(t, first.name, first.addr)
	t.Logf("back after %v", f.state(again, Ready))
	for range 5 {
		if got := f.name(); got != second {
			t.Errorf("when the first server was back, a connection went to %s", got)
		}
	}
}

func TestPrefersOwnServer(t *testing.T) {
	all := threeServers(t)
	own := all[1]
	f := run(t, Options{Seed: "node-1", Prefer: own.addr}, quick(), all...)
	f.state(own, Ready)
	if got := f.name(); got != own.name {
		t.Fatalf("a connection went to %s", got)
	}
	own.stop()
	other := f.name()
	if other == own.name || byName(all, other) == nil {
		t.Fatalf("after the own server ended, %q answers", other)
	}
	old := f.watch()
	back := startServer(t, own.name, own.addr)
	f.state(back, Ready)
	if got := f.name(); got != own.name {
		t.Errorf("with the own server back, a connection went to %s", got)
	}
	if d, ended := old.ended(500 * time.Millisecond); ended {
		t.Errorf("an old connection was cut after %v", d)
	}
}

// TestUnreadyServer is about a server that lives and is not ready: nobody
// notices a moment of it; then what is new goes elsewhere, and at last what is
// old, but not before there is an elsewhere.
func TestUnreadyServer(t *testing.T) {
	all := threeServers(t)[:2]
	f := run(t, Options{Seed: "node-1"}, quick(), all...)
	for _, s := range all {
		f.state(s, Ready)
	}
	first := byName(all, f.name())
	w := f.watch()
	begin := time.Now()
	first.ready.Store(http.StatusInternalServerError)
	f.state(first, NotReady)
	if got := f.of(first).Reason; !strings.Contains(got, "500") || !strings.Contains(got, "etcd failed") {
		t.Errorf("reason = %q; want what the server says", got)
	}
	if got := f.name(); got == first.name {
		t.Errorf("a connection went to the server that is not ready")
	}
	if _, ended := w.ended(quick().grace - time.Since(begin) - 50*time.Millisecond); ended {
		t.Errorf("the watch was cut after %v", time.Since(begin))
	}
	if _, ended := w.ended(time.Second); !ended {
		t.Errorf("the watch stays with a server that is not ready")
	}
	first.ready.Store(http.StatusOK)
	f.state(first, Ready)

	// Now all of them: connections stay where they are, and new ones are made.
	w = f.watch()
	for _, s := range all {
		s.ready.Store(http.StatusInternalServerError)
	}
	for _, s := range all {
		f.state(s, NotReady)
	}
	if d, ended := w.ended(2 * quick().grace); ended {
		t.Errorf("with no better server, the watch was cut after %v", d)
	}
	if got := f.name(); byName(all, got) == nil {
		t.Errorf("with no ready server, a connection gets %q", got)
	}
}

// TestStoppedProcess is about a server whose kernel answers and whose process
// does not: connections to it open and hang.
func TestStoppedProcess(t *testing.T) {
	mute, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer mute.Close()
	other := startServer(t, "other", "")
	f := run(t, Options{Initial: []string{mute.Addr().String()}, Prefer: mute.Addr().String()}, quick(), other)
	s := &apiserver{name: "mute", addr: mute.Addr().String()}
	d := f.state(s, NotReady)
	t.Logf("noticed after %v: %s", d.Round(time.Millisecond), f.of(s).Reason)
	if got := f.name(); got != "other" {
		t.Errorf("a connection went to %q", got)
	}
}

// TestWrongCertificate is about somebody else at a server's address.
func TestWrongCertificate(t *testing.T) {
	only := startServer(t, "only", "")
	o := Options{TLS: func() (*tls.Config, error) { return &tls.Config{RootCAs: x509.NewCertPool()}, nil }}
	f := run(t, o, quick(), only)
	f.state(only, Dead)
	if got := f.of(only).Reason; !strings.Contains(got, "unknown authority") {
		t.Errorf("reason = %q", got)
	}
	// Clients judge for themselves, when there is no other.
	if got := f.name(); got != "only" {
		t.Errorf("a connection gets %q", got)
	}
}

// TestStrictServer is about one whose owner allows no classic key exchange.
func TestStrictServer(t *testing.T) {
	only := startServer(t, "only", "")
	only.server.TLS.CurvePreferences = []tls.CurveID{tls.X25519MLKEM768}
	f := run(t, Options{}, quick(), only)
	f.state(only, Ready)
	if text := f.log.String(); strings.Contains(text, "to=dead") {
		t.Errorf("log %q", text)
	}
}

func TestWithoutTrust(t *testing.T) {
	only := startServer(t, "only", "")
	o := Options{TLS: func() (*tls.Config, error) { return nil, errors.New("no file yet") }}
	f := run(t, o, quick(), only)
	f.state(only, Ready)
	only.stop()
	f.state(only, Dead)
}

// TestBlackHole measures, with the true patience, how long a connection takes
// when the first server swallows packets.
func TestBlackHole(t *testing.T) {
	hole := blackHole(t)
	other := startServer(t, "other", "")
	f := run(t, Options{Initial: []string{hole}, Prefer: hole}, defaultTiming(), other)
	begin := time.Now()
	got := f.name()
	d := time.Since(begin)
	t.Logf("beside a black hole, a connection takes %v", d.Round(time.Millisecond))
	if got != "other" || d > time.Second {
		t.Errorf("%q answers after %v; want other within a second", got, d)
	}
	s := &apiserver{name: "hole", addr: hole}
	d = f.state(s, Dead)
	t.Logf("dead after %v: %s", d.Round(time.Millisecond), f.of(s).Reason)
	begin = time.Now()
	if got, d := f.name(), time.Since(begin); got != "other" || d > 300*time.Millisecond {
		t.Errorf("%q answers after %v", got, d)
	}
}

// TestKnownFromJoining is about a list that leads nowhere: the server that the
// node joined by is tried at last.
func TestKnownFromJoining(t *testing.T) {
	file := filepath.Join(t.TempDir(), "servers.json")
	if err := os.WriteFile(file, []byte(`{"servers":["127.0.0.1:1"]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	joined := startServer(t, "joined", "")
	f := run(t, Options{File: file}, quick(), joined)
	if got := f.name(); got != "joined" {
		t.Errorf("%q answers", got)
	}
	if got := f.of(&apiserver{addr: "127.0.0.1:1"}); got.State != Dead {
		t.Errorf("the listed server is %+v; want it dead", got)
	}
	// While something listed works, nobody asks for it.
	listed := startServer(t, "listed", "")
	if err := f.Set([]string{listed.addr}); err != nil {
		t.Fatal(err)
	}
	f.state(listed, Ready)
	if got := addresses(f.Balancer); len(got) != 1 || got[0] != listed.addr {
		t.Errorf("Servers() = %v; want %s alone", got, listed.addr)
	}
}

func TestSetKeepsConnections(t *testing.T) {
	all := threeServers(t)
	f := run(t, Options{Seed: "node-1"}, quick(), all[0])
	w := f.watch()
	for _, s := range []*apiserver{all[1], all[2]} {
		if err := f.Set([]string{s.addr, all[0].addr}); err != nil {
			t.Fatal(err)
		}
		f.state(s, Ready)
	}
	if d, ended := w.ended(200 * time.Millisecond); ended {
		t.Errorf("the watch on a server that stayed was cut after %v", d)
	}
	if err := f.Set([]string{all[1].addr, all[2].addr}); err != nil {
		t.Fatal(err)
	}
	if _, ended := w.ended(time.Second); !ended {
		t.Error("the watch on a server that went still hangs")
	}
	if got := f.name(); got == "a" || byName(all, got) == nil {
		t.Errorf("%q answers", got)
	}
	for _, bad := range [][]string{nil, {"host"}, {":6443"}, {"host:0"}, {"host:x"}, {f.Addr()}} {
		if err := f.Set(bad); err == nil {
			t.Errorf("Set(%q) = nil", bad)
		}
	}
}

// TestManyClientsThroughFailures is for the race detector, and for leaks.
func TestManyClientsThroughFailures(t *testing.T) {
	all := threeServers(t)
	f := run(t, Options{Seed: "node-1"}, quick(), all...)
	for _, s := range all {
		f.state(s, Ready)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	var clients sync.WaitGroup
	var good, bad atomic.Int32
	for range 20 {
		clients.Go(func() {
			for ctx.Err() == nil {
				if name := f.name(); byName(all, name) != nil {
					good.Add(1)
				} else {
					bad.Add(1)
				}
			}
		})
	}
	for i := 0; ctx.Err() == nil; i++ {
		s := all[i%3]
		s.stop()
		time.Sleep(100 * time.Millisecond)
		all[i%3].server = startServer(t, s.name, s.addr).server
		if err := f.Set([]string{all[0].addr, all[1].addr, all[2].addr}); err != nil {
			t.Error(err)
		}
		time.Sleep(150 * time.Millisecond)
	}
	clients.Wait()
	t.Logf("%d answers, %d requests cut by their server's end", good.Load(), bad.Load())
	// A request that its server took along is its client's to repeat; at each
	// end there are at most as many as clients.
	if good.Load() < 20 || bad.Load() > 20*10 {
		t.Errorf("%d answers, %d failures", good.Load(), bad.Load())
	}
	until(t, "no connection left", func() bool {
		n := 0
		for _, s := range f.Servers() {
			n += s.Connections
		}
		return n == 0
	})
}
