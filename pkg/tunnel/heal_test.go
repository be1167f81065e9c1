package tunnel

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestServerRestart(t *testing.T) {
	c, _, _ := twoNodes(t)
	onB := target(t, "127.0.0.3", hello)
	conn, _ := c.upgraded(t, target(t, "127.0.0.3", echo))
	c.stop()
	_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, net.ErrClosed) {
		t.Errorf("read of a connection of the stopped server: %v; want its end", err)
	}
	time.Sleep(3 * time.Second) // some attempts fail
	c.start("a")
	took := within(t, 10*time.Second, "both nodes to be back", func() bool { return len(c.server.Nodes()) == 2 })
	t.Logf("both nodes are back after %v", took.Round(time.Millisecond))
	if _, err := c.get("http://" + onB); err != nil {
		t.Error(err)
	}
}

// TestNodeDies: its connections end at once, and those to pods go on by another node.
func TestNodeDies(t *testing.T) {
	c, a, b := twoNodes(t)
	echoing, pod := target(t, "127.0.0.9", echo), target(t, "127.0.0.9", hello)
	conn, _ := c.upgraded(t, echoing) // by a, the own node
	if a.dials.count() != 1 {
		t.Fatal("the pod was not reached by the own node")
	}
	begin := time.Now()
	a.stop()
	_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("read = %v; want the end", err)
	}
	if _, err := c.get("http://" + pod); err != nil {
		t.Error(err)
	}
	if d := time.Since(begin); d > 2*time.Second || b.dials.count() != 1 {
		t.Errorf("%d requests by the other server's node after %v; want 1 at once", b.dials.count(), d)
	}
	b.stop()
	begin = time.Now()
	if _, err := c.get("http://" + pod); err == nil || !strings.Contains(err.Error(), "no node that may carry it has a tunnel") {
		t.Errorf("get without nodes: %v", err)
	}
	if d := time.Since(begin); d > nodeTimeout+time.Second {
		t.Errorf("failed after %v only", d)
	}
}

func TestServersComeAndGo(t *testing.T) {
	noLeaks(t)
	one := newCluster(t, "x", nil)
	two := newCluster(t, "y", nil)
	two.ca = one.ca
	two.stop()
	two.start("y")
	t.Cleanup(func() { two.stop() })
	var servers atomic.Value
	servers.Store([]string{one.address()})
	one.agent("n", func() []string { return servers.Load().([]string) })
	has := func(c *cluster, want ...string) func() bool {
		return func() bool { return slices.Equal(c.server.Nodes(), want) }
	}
	within(t, 5*time.Second, "the first server", has(one, "n"))
	servers.Store([]string{one.address(), two.address()})
	within(t, 5*time.Second, "the second server", has(two, "n"))
	servers.Store([]string{two.address()})
	within(t, 5*time.Second, "the first to be left", has(one))
	if !has(two, "n")() {
		t.Error("the second was left as well")
	}
}

// lossy passes bytes between two ends and can lose those of either direction without a sign.
type lossy struct {
	net.Listener
	up, down atomic.Bool // lost
	mu       sync.Mutex
	conns    []net.Conn
}

func newLossy(t *testing.T, to string) *lossy {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &lossy{Listener: l}
	pass := func(from, to net.Conn, lost *atomic.Bool) {
		buf := make([]byte, 32<<10)
		for {
			n, err := from.Read(buf)
			if err != nil {
				if !lost.Load() {
					to.Close()
				}
				return
			}
			if !lost.Load() {
				_, _ = to.Write(buf[:n])
			}
		}
	}
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", to)
			if err != nil {
				in.Close()
				continue
			}
			p.mu.Lock()
			p.conns = append(p.conns, in, out)
			p.mu.Unlock()
			go pass(in, out, &p.up)
			go pass(out, in, &p.down)
		}
	}()
	t.Cleanup(func() {
		l.Close()
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, c := range p.conns {
			c.Close()
		}
	})
	return p
}

// TestLossIsNoticed loses packets in one direction or both, while something in between answers for TCP.
func TestLossIsNoticed(t *testing.T) {
	noLeaks(t)
	for _, test := range []struct {
		name     string
		up, down bool
	}{{"to the server", true, false}, {"to the node", false, true}, {"both ways", true, true}} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, "x", nil)
			path := newLossy(t, c.address())
			n := c.agent("n", func() []string { return []string{path.Addr().String()} })
			there := func() bool { return len(c.server.Nodes()) == 1 }
			within(t, 5*time.Second, "the tunnel", there)
			path.up.Store(test.up)
			path.down.Store(test.down)
			took := within(t, 20*time.Second, "the server to notice", func() bool { return !there() })
			tookNode := within(t, 20*time.Second, "the node to notice", func() bool { return n.dials.has("tunnel lost") })
			t.Logf("the server noticed after %v, the node %v later", took.Round(100*time.Millisecond), tookNode.Round(100*time.Millisecond))
			path.up.Store(false)
			path.down.Store(false)
			took = within(t, 20*time.Second, "the tunnel to be back", there)
			t.Logf("back after %v", took.Round(100*time.Millisecond))
		})
	}
}

// TestBrokenTunnelIsReplaced: a request that meets a tunnel which breaks goes by another.
func TestBrokenTunnelIsReplaced(t *testing.T) {
	c, a, b := twoNodes(t)
	pod := target(t, "127.0.0.9", hello)
	// Streams of a that end the moment they are used.
	for _, st := range c.server.pool.nodes["a"][0].idle {
		st.end()
	}
	if _, err := c.get("http://" + pod); err != nil {
		t.Error(err)
	}
	if a.dials.count()+b.dials.count() != 1 {
		t.Errorf("dials of a and b = %d, %d; want one", a.dials.count(), b.dials.count())
	}
}

func TestRetry(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	steps := func(r *retry, now time.Time) (all []time.Duration) {
		for range 7 {
			if d := r.next(now); d < r.step/2 || d > r.step {
				t.Errorf("next = %v with step %v", d, r.step)
			}
			all = append(all, r.step/time.Second)
		}
		return all
	}
	never, lost := &retry{}, &retry{}
	lost.succeeded(now)
	if diff := cmp.Diff([]time.Duration{1, 2, 4, 8, 16, 30, 30}, steps(never, now)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]time.Duration{1, 2, 4, 5, 5, 5, 5}, steps(lost, now.Add(time.Minute))); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]time.Duration{10, 20, 30, 30, 30, 30, 30}, steps(lost, now.Add(time.Hour))); diff != "" {
		t.Error(diff)
	}
}

func TestOwner(t *testing.T) {
	p := newPool(ServerOptions{Log: slog.New(slog.DiscardHandler), Addresses: func(node string) []netip.Addr {
		return map[string][]netip.Addr{"a": addrs("10.0.0.1", "fd00::1"), "b": addrs("10.0.0.2", "10.0.0.9"), "c": addrs("10.0.0.9", "10.0.0.3")}[node]
	}})
	for node, claims := range map[string][]netip.Addr{
		"a": addrs("10.0.0.1", "fd00::1", "10.0.0.2"), "b": addrs("10.0.0.2", "10.0.0.9"), "c": addrs("10.0.0.9"),
		"10.43.0.10": nil, "10.0.0.1": nil, "fd00--7": nil, // names that are addresses
	} {
		p.add(&stream{session: &session{node: node}, done: make(chan struct{})}, claims)
	}
	for host, want := range map[string]string{
		"10.0.0.1": "a", "fd00::1": "a", "::ffff:10.0.0.1": "a", "a": "a", "10.0.0.2": "b", "10.0.0.9": "", "10.0.0.3": "",
		"10.42.0.7": "", "webhook.default.svc": "", "": "", "10.43.0.10": "", "fd00--7": "fd00--7",
	} {
		if got := p.owner(host); got != want {
			t.Errorf("owner(%q) = %q; want %q", host, got, want)
		}
	}
}

// TestChoice has nobody but the own node and servers carry what is for no node in particular.
func TestChoice(t *testing.T) {
	for _, tt := range []struct {
		connected []string
		host      string
		want      []string // one of these; none: it fails
	}{
		{[]string{"own", "server", "agent"}, "10.43.0.1", []string{"own"}},
		{[]string{"server", "third", "agent"}, "10.43.0.1", []string{"server", "third"}},
		{[]string{"server", "agent"}, "agent", []string{"agent"}},
		{[]string{"agent"}, "10.43.0.1", nil},
		{[]string{"agent"}, "agent", []string{"agent"}},
		{nil, "10.43.0.1", nil},
	} {
		p := newPool(ServerOptions{Node: "own", Log: slog.New(slog.DiscardHandler), IsServer: func(node string) bool { return node == "server" || node == "third" }})
		for _, node := range tt.connected {
			p.add(&stream{session: &session{node: node}, done: make(chan struct{})}, nil)
		}
		s, err := p.take(t.Context(), tt.host, nil)
		switch {
		case tt.want == nil && !errors.Is(err, errNobody):
			t.Errorf("%v, %s: take = %v, %v; want %v", tt.connected, tt.host, s, err, errNobody)
		case tt.want != nil && (err != nil || !slices.Contains(tt.want, s.session.node)):
			t.Errorf("%v, %s: take = %v, %v; want the session of one of %v", tt.connected, tt.host, s, err, tt.want)
		}
	}
}

// TestTunnelsOfANodeAreBounded has one node open more tunnels than it may, and lets it have none at last.
func TestTunnelsOfANodeAreBounded(t *testing.T) {
	noLeaks(t)
	c := newCluster(t, "a", nil)
	count := func() (all, live int) {
		p := c.server.pool
		p.mu.Lock()
		defer p.mu.Unlock()
		return len(p.conns["b"]), len(p.nodes["b"])
	}
	servers := []string{c.address()}
	var nodes []*node
	for i := range maxSessions {
		nodes = append(nodes, c.agent("b", func() []string { return servers }))
		within(t, 5*time.Second, "another tunnel", func() bool { _, live := count(); return live == i+1 })
	}
	other := c.join("c")
	c.agent("b", func() []string { return servers })
	within(t, 5*time.Second, "the oldest tunnel to be lost", func() bool { return nodes[0].dials.has("tunnel lost") })
	if all, _ := count(); all > maxSessions {
		t.Errorf("%d tunnels of one node; want at most %d", all, maxSessions)
	}
	for _, n := range nodes[1:] {
		n.stop()
	}
	c.server.End("c")
	within(t, 5*time.Second, "the tunnel to be ended", func() bool { return other.dials.has("tunnel lost") })
}

func TestServerWithoutSocketDirectory(t *testing.T) {
	if _, err := NewServer(ServerOptions{Socket: "egress.sock"}); err == nil {
		t.Error("a relative socket was taken")
	}
}
