package tunnel

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func addrs(all ...string) []netip.Addr {
	var out []netip.Addr
	for _, a := range all {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

// twoNodes has the nodes a at 127.0.0.2 and b at 127.0.0.3; a is the server's own.
func twoNodes(t testing.TB) (c *cluster, a, b *node) {
	t.Helper()
	noLeaks(t)
	c = newCluster(t, "a", map[string][]netip.Addr{"a": addrs("127.0.0.2"), "b": addrs("127.0.0.3")})
	return c, c.join("a", "127.0.0.2"), c.join("b", "127.0.0.3")
}

func hello(w http.ResponseWriter, r *http.Request) {
	fmt.Fprint(w, "hello from ", r.Context().Value(http.LocalAddrContextKey))
}

func TestNodeIsChosenByAddress(t *testing.T) {
	c, a, b := twoNodes(t)
	onA, onB, pod := target(t, "127.0.0.2", hello), target(t, "127.0.0.3", hello), target(t, "127.0.0.9", hello)
	_, portB, _ := net.SplitHostPort(onB)
	for _, step := range []struct {
		name, target string
		by           *node
	}{
		{"own node by address", onA, a},
		{"other node by address", onB, b},
		{"other node by name", net.JoinHostPort("b", portB), b},
		{"pod", pod, a},
	} {
		before := [2]int{a.dials.count(), b.dials.count()}
		body, err := c.get("http://" + step.target)
		if err != nil || !strings.HasPrefix(body, "hello") {
			t.Fatalf("%s: get = %q, %v", step.name, body, err)
		}
		want := before
		if step.by == a {
			want[0]++
		} else {
			want[1]++
		}
		if got := [2]int{a.dials.count(), b.dials.count()}; got != want {
			t.Errorf("%s: dials of a and b = %v; want %v", step.name, got, want)
		}
	}
}

func TestFailuresAreTold(t *testing.T) {
	c, _, _ := twoNodes(t)
	l, err := net.Listen("tcp", "127.0.0.3:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := l.Addr().String()
	l.Close()
	begin := time.Now()
	_, err = c.get("http://" + closed)
	if err == nil || !strings.Contains(err.Error(), "by node b: dial tcp "+closed+": connect: connection refused") {
		t.Errorf("get of a closed port: %v; want node and cause", err)
	}
	if d := time.Since(begin); d > time.Second {
		t.Errorf("a refused connection took %v", d)
	}
}

func TestSocketIsPrivate(t *testing.T) {
	c := newCluster(t, "a", nil)
	for path, want := range map[string]os.FileMode{c.socket: 0o600 | os.ModeSocket, filepath.Dir(c.socket): 0o700 | os.ModeDir} {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode() != want {
			t.Errorf("mode of %s = %v; want %v", path, info.Mode(), want)
		}
	}
}

func TestForeignAddressIsRefused(t *testing.T) {
	noLeaks(t)
	c := newCluster(t, "c", map[string][]netip.Addr{"a": addrs("127.0.0.2"), "b": addrs("127.0.0.3"), "c": addrs("127.0.0.4"), "d": addrs("127.0.0.2")})
	evil := c.join("b", "127.0.0.2", "127.0.0.3", "127.0.0.4")
	own := c.join("c", "127.0.0.4")
	onA := target(t, "127.0.0.2", hello)
	_, port, _ := net.SplitHostPort(onA)
	get := func(what string, host string, by *node) {
		t.Helper()
		before := by.dials.count()
		if _, err := c.get("http://" + net.JoinHostPort(host, port)); host == "127.0.0.2" && err != nil {
			t.Fatal(err)
		}
		if by.dials.count() != before+1 {
			t.Errorf("%s: not by the node expected", what)
		}
	}
	get("address of a, which is away and claimed by b", "127.0.0.2", own)
	get("address of c, claimed by b as well", "127.0.0.4", own)
	get("b's own address", "127.0.0.3", evil)
	a := c.join("a", "127.0.0.2")
	get("address of a", "127.0.0.2", a)
	c.join("d", "127.0.0.2")
	get("address of a and d", "127.0.0.2", own)
}

func TestTunnelNeedsCertificateAndUpgrade(t *testing.T) {
	noLeaks(t)
	c := newCluster(t, "a", nil)
	node := c.ca.issue(t, "system:node:a", "system:nodes")
	other := c.ca.issue(t, "system:kube-proxy", "system:nodes")
	outside := c.ca.issue(t, "system:node:a", "system:masters")
	foreign := newAuthority(t).issue(t, "system:node:a", "system:nodes")
	for _, test := range []struct {
		name    string
		cert    *tls.Certificate
		request string
		want    int
	}{
		{"node", &node, "GET /cairn/v1/tunnel HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, Upgrade\r\nUpgrade: cairn-tunnel\r\n\r\n", 101},
		{"nobody", nil, "GET /cairn/v1/tunnel HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: cairn-tunnel\r\n\r\n", 403},
		{"no node", &other, "GET /cairn/v1/tunnel HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: cairn-tunnel\r\n\r\n", 403},
		{"not in the group", &outside, "GET /cairn/v1/tunnel HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: cairn-tunnel\r\n\r\n", 403},
		{"of another authority", &foreign, "GET /cairn/v1/tunnel HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: cairn-tunnel\r\n\r\n", 403},
		{"post", &node, "POST /cairn/v1/tunnel HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: cairn-tunnel\r\nContent-Length: 0\r\n\r\n", 405},
		{"no upgrade", &node, "GET /cairn/v1/tunnel HTTP/1.1\r\nHost: x\r\n\r\n", 426},
		{"websocket", &node, "GET /cairn/v1/tunnel HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", 426},
	} {
		t.Run(test.name, func(t *testing.T) {
			config := &tls.Config{RootCAs: c.ca.pool, ServerName: "apiserver", NextProtos: []string{"http/1.1"}}
			if test.cert != nil {
				config.Certificates = []tls.Certificate{*test.cert}
			}
			conn, err := tls.Dial("tcp", c.address(), config)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if _, err := io.WriteString(conn, test.request); err != nil {
				t.Fatal(err)
			}
			r, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				t.Fatal(err)
			}
			if r.StatusCode != test.want {
				t.Errorf("status = %d; want %d", r.StatusCode, test.want)
			}
		})
	}
	t.Run("HTTP/2", func(t *testing.T) {
		tr := &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{RootCAs: c.ca.pool, ServerName: "apiserver", Certificates: []tls.Certificate{node}}}
		defer tr.CloseIdleConnections()
		r, err := (&http.Client{Transport: tr}).Get("https://" + c.address() + Path)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		if r.StatusCode != http.StatusUpgradeRequired || r.ProtoMajor != 2 {
			t.Errorf("answer = %s %s; want 426 by HTTP/2", r.Proto, r.Status)
		}
	})
}

func TestLongResponse(t *testing.T) {
	c, _, _ := twoNodes(t)
	const lines = 50
	gate := make(chan struct{})
	logs := target(t, "127.0.0.3", func(w http.ResponseWriter, r *http.Request) {
		for i := range lines {
			fmt.Fprintln(w, "line", i)
			_ = http.NewResponseController(w).Flush()
			<-gate
		}
	})
	r, err := c.client().Get("http://" + logs)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	in := bufio.NewScanner(r.Body)
	n := 0
	for in.Scan() { // each line arrives before the next is written
		if want := fmt.Sprint("line ", n); in.Text() != want {
			t.Fatalf("line = %q; want %q", in.Text(), want)
		}
		n++
		gate <- struct{}{}
	}
	if n != lines || in.Err() != nil {
		t.Errorf("read %d lines, %v; want %d", n, in.Err(), lines)
	}
}

// echo upgrades a request and sends back what it reads, as exec of cat does.
func echo(w http.ResponseWriter, _ *http.Request) {
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer conn.Close()
	_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
	_, _ = io.Copy(conn, rw.Reader)
}

func (c *cluster) upgraded(t testing.TB, hostport string) (net.Conn, *bufio.Reader) {
	t.Helper()
	conn, err := c.dial(context.Background(), "tcp", hostport)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if _, err := fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(conn)
	answer, err := http.ReadResponse(r, nil)
	if err != nil || answer.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("upgrade: %v, %v", answer, err)
	}
	return conn, r
}

func TestUpgradedStream(t *testing.T) {
	c, _, _ := twoNodes(t)
	conn, r := c.upgraded(t, target(t, "127.0.0.3", echo))
	for i := range 100 {
		line := fmt.Sprintln("input", i)
		if _, err := io.WriteString(conn, line); err != nil {
			t.Fatal(err)
		}
		if got, err := r.ReadString('\n'); err != nil || got != line {
			t.Fatalf("read %q, %v; want %q", got, err, line)
		}
	}
	// Much in both directions at once.
	const size = 8 << 20
	go func() { _, _ = conn.Write(make([]byte, size)) }()
	if n, err := io.CopyN(io.Discard, r, size); err != nil {
		t.Errorf("%d of %d bytes came back: %v", n, size, err)
	}
}

// TestStalledConnections has one reader that does not read, one target that does not, and 200 others to the same node.
func TestStalledConnections(t *testing.T) {
	c, _, _ := twoNodes(t)
	endless := target(t, "127.0.0.3", func(w http.ResponseWriter, _ *http.Request) {
		for b := make([]byte, 64<<10); ; {
			if _, err := w.Write(b); err != nil {
				return
			}
		}
	})
	ended := make(chan struct{})
	deaf := target(t, "127.0.0.3", func(w http.ResponseWriter, r *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		<-ended
		conn.Close()
	})
	defer close(ended)
	stalled, err := c.client().Get("http://" + endless) // nobody reads the body
	if err != nil {
		t.Fatal(err)
	}
	defer stalled.Body.Close()
	upload, err := c.dial(context.Background(), "tcp", deaf)
	if err != nil {
		t.Fatal(err)
	}
	defer upload.Close()
	stuck := stuff(t, upload)
	t.Logf("the target that does not read let %d KiB go", stuck>>10)

	const n = 200
	var at atomic.Int32
	all := make(chan struct{})
	meeting := target(t, "127.0.0.3", func(w http.ResponseWriter, _ *http.Request) { // all are there at once
		if at.Add(1) == n {
			close(all)
		}
		<-all
		_, _ = w.Write(make([]byte, 128<<10))
	})
	took := make([]time.Duration, n)
	var wg sync.WaitGroup
	begin := time.Now()
	for i := range n {
		wg.Go(func() {
			if body, err := c.get("http://" + meeting); err != nil || len(body) != 128<<10 {
				t.Errorf("get: %d bytes, %v", len(body), err)
			}
			took[i] = time.Since(begin)
		})
	}
	wg.Wait()
	slices.Sort(took)
	t.Logf("%d connections at once beside the stalled: median %v, slowest %v", n, took[n/2].Round(time.Millisecond), took[n-1].Round(time.Millisecond))
	if took[n-1] > 15*time.Second {
		t.Error("they had to wait")
	}
}

// stuff writes until nothing more goes, and returns how much went.
func stuff(t testing.TB, conn net.Conn) int {
	t.Helper()
	sent := 0
	for {
		_ = conn.SetWriteDeadline(time.Now().Add(500 * time.Millisecond))
		n, err := conn.Write(make([]byte, 64<<10))
		sent += n
		if err != nil {
			return sent
		}
	}
}

// TestUserLeavesDeafTarget: the apiserver closes a connection whose target reads nothing, and the target is told.
func TestUserLeavesDeafTarget(t *testing.T) {
	c, _, _ := twoNodes(t)
	conns := make(chan net.Conn, 1)
	deaf := target(t, "127.0.0.3", func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err == nil {
			conns <- conn
		}
	})
	conn, err := c.dial(context.Background(), "tcp", deaf)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	end := <-conns
	defer end.Close()
	stuff(t, conn)
	c.server.dropLeft(time.Now())
	if n := len(c.server.active()); n != 1 || hungUp(end) {
		t.Fatalf("%d connections; want 1 that goes on while the user is there", n)
	}
	conn.Close()
	c.server.dropLeft(time.Now())
	within(t, 5*time.Second, "the server to let go", func() bool { return len(c.server.active()) == 0 })
	within(t, 5*time.Second, "the target to be told", func() bool { return hungUp(end) })
}

func (s *Server) active() []*relay {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []*relay
	for r := range s.relays {
		all = append(all, r)
	}
	return all
}

// TestEndsAreSeen: either end of a connection learns that the other is closed, with all data delivered.
func TestEndsAreSeen(t *testing.T) {
	c, _, _ := twoNodes(t)
	got := make(chan int64, 1)
	sink := target(t, "127.0.0.3", func(w http.ResponseWriter, _ *http.Request) {
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		n, _ := io.Copy(io.Discard, rw.Reader)
		got <- n
	})
	const size = 3 << 20
	conn, err := c.dial(context.Background(), "tcp", sink)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write(make([]byte, size)); err != nil {
		t.Fatal(err)
	}
	conn.Close()
	select {
	case n := <-got:
		if n != size {
			t.Errorf("target got %d bytes; want %d", n, size)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the target does not see the end")
	}
	source := target(t, "127.0.0.3", func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		_, _ = conn.Write(make([]byte, size))
		conn.Close()
	})
	conn, err = c.dial(context.Background(), "tcp", source)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if n, err := io.Copy(io.Discard, conn); n != size || err != nil {
		t.Errorf("read %d bytes, %v; want %d and the end", n, err, size)
	}
}
