package join

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-os/cairn/pkg/membership"
	"github.com/cairn-os/cairn/pkg/pki"
	"github.com/cairn-os/cairn/pkg/token"
)

func files(t *testing.T, dir string) []string {
	t.Helper()
	var all []string
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		all = append(all, rel)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestJoinAsEachRole(t *testing.T) {
	c := newCluster(t)
	for _, tt := range []struct {
		role  membership.Role
		token string
		peers []string
		want  []string
	}{
		{membership.Agent, c.token(token.Agent), nil, []string{
			"node/identity.pem", "node/membership.json", "node/tls/client-ca.crt", "node/tls/kubelet-ca.crt", "node/tls/kubelet-client.pem",
			"node/tls/kubelet-server.pem", "node/tls/server-ca.crt",
		}},
		{membership.Agent, plainSecret, nil, nil},
		{membership.Witness, c.token(token.Server), []string{"192.0.2.1:6444"}, []string{
			"node/identity.pem", "node/membership.json", "node/tls/server-ca.crt", "server/tls/store-ca.crt", "server/tls/store.pem",
		}},
		{membership.Server, c.token(token.Config), []string{"192.0.2.1:6444"}, files(t, c.dir)},
	} {
		name := "joiner-" + string(tt.role)
		if tt.token == plainSecret {
			name += "-plain"
		}
		t.Run(name, func(t *testing.T) {
			o, _ := c.machine(tt.role, name, tt.token)
			o.Addresses = nil
			if tt.role == membership.Server {
				o.Addresses = []netip.Addr{netip.MustParseAddr("192.0.2.9")}
			}
			m := mustRun(t, o)
			want := &membership.Membership{
				Role: tt.role, Node: name, Servers: []string{strings.TrimPrefix(c.http.URL, "https://"), "192.0.2.1:6443", "192.0.2.2:6443"},
				StorePeers: append([]string{}, tt.peers...), Settings: membership.DefaultSettings(), Identity: identityOf(t, o),
			}
			if diff := cmp.Diff(want, m, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
				t.Error(diff)
			}
			if tt.want != nil {
				if diff := cmp.Diff(tt.want, files(t, o.Dir)); diff != "" {
					t.Error(diff)
				}
			}
			checkModes(t, o.Dir)
			record, err := getRecord(t.Context(), c.client, name)
			if err != nil || record == nil || record.Role != tt.role {
				t.Errorf("record = %v, %v", record, err)
			}
			before := c.requests()
			if err := run(t, o); err != nil {
				t.Errorf("second Run = %v", err)
			}
			if after := c.requests(); after != before {
				t.Errorf("second Run asked the cluster %d times; want never", after-before)
			}
		})
	}
	c.checkJoinedServer(t)
	if strings.Contains(c.log.String(), plainSecret) {
		t.Error("the server's log holds the secret")
	}
}

// requests is how many actions the API saw: a join makes some.
func (c *cluster) requests() int { return len(c.client.Actions()) }

// checkJoinedServer joins a server and compares its authorities with the first one's.
func (c *cluster) checkJoinedServer(t *testing.T) {
	o, _ := c.machine(membership.Server, "second", c.token(token.Server))
	mustRun(t, o)
	for _, f := range filesFor(membership.Server) {
		first, err := os.ReadFile(filepath.Join(c.dir, f.dir, f.name))
		if err != nil {
			t.Fatal(err)
		}
		second, err := os.ReadFile(o.path(f.dir, f.name))
		if err != nil {
			t.Fatal(err)
		}
		if string(first) != string(second) {
			t.Errorf("%s differs from the first server's", f.name)
		}
	}
	leaf, err := loadLeaf(pki.PairFile(o.path(serverTLS), pki.Store))
	if err != nil {
		t.Fatal(err)
	}
	if leaf.Subject.CommonName != "second" || len(leaf.DNSNames) != 1 || leaf.DNSNames[0] != "cairn-store" {
		t.Errorf("store certificate of %v for %v", leaf.Subject, leaf.DNSNames)
	}
}

func checkModes(t *testing.T, dir string) {
	t.Helper()
	for _, name := range files(t, dir) {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if filepath.Ext(name) != ".crt" && info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v; want 0600", name, info.Mode())
		}
	}
}

func TestRefusals(t *testing.T) {
	c := newCluster(t)
	unknown, revokedID := c.create(TokenRequest{Role: "server"})
	if err := RevokeToken(t.Context(), c.client, revokedID); err != nil {
		t.Fatal(err)
	}
	c.heartbeat("taken")
	c.heartbeat("neighbour")
	if err := Record(t.Context(), c.client, "neighbour", "its", membership.Agent); err != nil {
		t.Fatal(err)
	}
	if err := SetAddresses(t.Context(), c.client, "neighbour", []netip.Addr{netip.MustParseAddr("192.0.2.50")}); err != nil {
		t.Fatal(err)
	}
	wrong := func(text, secret string) string {
		k, err := token.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		k.Secret = secret
		return k.String()
	}
	for _, tt := range []struct {
		name   string
		role   membership.Role
		node   string
		token  string
		change func(*Options)
		code   Code
		tells  []string
	}{
		{name: "wrong CA", role: membership.Agent, token: otherPin(t, c.token(token.Agent)), code: CodeCA,
			tells: []string{"another cluster", "in between", token.Pin([]byte("another"))}},
		{name: "wrong secret", role: membership.Agent, token: wrong(c.token(token.Agent), "guess"), code: CodeToken, tells: []string{"token agent"}},
		{name: "wrong plain secret", role: membership.Agent, token: "guess", code: CodeToken, tells: []string{"in between"}},
		{name: "revoked token", role: membership.Server, token: unknown, code: CodeToken, tells: []string{revokedID, "revoked"}},
		{name: "agent's token for a server", role: membership.Server, token: c.token(token.Agent), code: CodeRole, tells: []string{"agents only"}},
		{name: "agent's token for a witness", role: membership.Witness, token: c.token(token.Agent), code: CodeRole},
		{name: "name of a live node", role: membership.Agent, node: "taken", token: c.token(token.Agent), code: CodeName, tells: []string{"two nodes with one name", "taken"}},
		{name: "server's name with an agent's token", role: membership.Agent, node: "first", token: c.token(token.Agent), code: CodeRole, tells: []string{"first", "server"}},
		{name: "server's name as an agent", role: membership.Agent, node: "first", token: c.token(token.Server), code: CodeRole, tells: []string{"kubectl delete node first"}},
		{name: "no name", role: membership.Agent, node: "Shop_1", token: c.token(token.Agent), code: CodeName, tells: []string{"Shop_1"}},
		{name: "newer Kubernetes", role: membership.Agent, token: c.token(token.Agent), change: func(o *Options) { o.Version = "v1.37.0" }, code: CodeVersion,
			tells: []string{"v1.37.0", "v1.36.4"}},
		{name: "other pods", role: membership.Server, token: c.token(token.Server), code: CodeSettings, tells: []string{"cairn.cluster.pod_cidr", "10.9.0.0/16", "10.42.0.0/16"},
			change: func(o *Options) {
				o.Settings.PodCIDRs = []netip.Prefix{netip.MustParsePrefix("10.9.0.0/16")}
			}},
		{name: "other flannel", role: membership.Agent, token: c.token(token.Agent), code: CodeSettings, tells: []string{"cairn.cluster.flannel", "wireguard"},
			change: func(o *Options) { o.Settings = &membership.Settings{Flannel: "wireguard"} }},
		{name: "other datastore", role: membership.Server, token: c.token(token.Server), code: CodeSettings,
			tells:  []string{"cairn.datastore is PostgreSQL here and the servers' own store in the cluster", "or none if they have none"},
			change: func(o *Options) { o.Settings.Datastore = membership.Postgres }},
		{name: "no datastore", role: membership.Server, token: c.token(token.Server), code: CodeRequest, tells: []string{"where it keeps Kubernetes' state"},
			change: func(o *Options) { o.Settings = nil }},
		{name: "address taken", role: membership.Agent, token: c.token(token.Agent), code: CodeAddress, tells: []string{"192.0.2.50", "neighbour"},
			change: func(o *Options) { o.Addresses = []netip.Addr{netip.MustParseAddr("192.0.2.50")} }},
		{name: "no token", role: membership.Agent, code: CodeConfig, tells: []string{"cairn.token"}},
		{name: "half a token", role: membership.Agent, token: "K10abc", code: CodeConfig, tells: []string{"cairn.token", "whole"}},
		{name: "no server", role: membership.Agent, token: "x", change: func(o *Options) { o.ServerURL = "" }, code: CodeConfig, tells: []string{"cairn.server_url"}},
		{name: "server_url without https", role: membership.Agent, token: "x", change: func(o *Options) { o.ServerURL = "10.0.0.2:6443" }, code: CodeConfig, tells: []string{"https://"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			node := tt.node
			if node == "" {
				node = "new"
			}
			o, status := c.machine(tt.role, node, tt.token)
			if tt.change != nil {
				tt.change(&o)
			}
			var paused time.Duration
			o.pause = func(_ context.Context, d time.Duration) error { paused = d; return errStop }
			wantRefusal(t, o, run(t, o), tt.code, tt.tells...)
			for _, part := range tt.tells {
				if !strings.Contains(*status, part) {
					t.Errorf("status %q; want it to tell %q", *status, part)
				}
			}
			if paused != refusalPause {
				t.Errorf("tries again in %v; want %v", paused, refusalPause)
			}
			if got, err := getRecord(t.Context(), c.client, "new"); err != nil || got != nil {
				t.Errorf("a refused machine has the name: %v, %v", got, err)
			}
			c.advance(time.Minute) // gives back to the limiter
			c.heartbeat("taken")
			c.heartbeat("neighbour")
		})
	}
}

func TestExpiredToken(t *testing.T) {
	c := newCluster(t)
	text, id := c.create(TokenRequest{TTL: time.Hour})
	o, _ := c.machine(membership.Agent, "a", text)
	c.advance(2 * time.Hour)
	wantRefusal(t, o, run(t, o), CodeExpired, id, "expired at")
	// Who does not know the secret is not told that it expired.
	k, err := token.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	k.Secret = "guess"
	o.Token = k.String()
	wantRefusal(t, o, run(t, o), CodeToken)
}

func TestOneTimeToken(t *testing.T) {
	c := newCluster(t)
	text, id := c.create(TokenRequest{Role: "server", Once: true})
	first, _ := c.machine(membership.Agent, "one", text)
	mustRun(t, first)
	list, err := ListTokens(t.Context(), c.client)
	if err != nil {
		t.Fatal(err)
	}
	for _, info := range list {
		if info.ID == id && (info.UsedBy != "one" || info.UsedAt.IsZero()) {
			t.Errorf("used token = %+v", info)
		}
	}
	second, _ := c.machine(membership.Agent, "two", text)
	wantRefusal(t, second, run(t, second), CodeUsed, id, "node one")

	again := func() error { // the answer was lost: the machine starts over with its identity
		if err := os.Remove(first.membershipFile()); err != nil {
			t.Fatal(err)
		}
		return run(t, first)
	}
	c.advance(9 * time.Minute)
	if err := again(); err != nil {
		t.Errorf("repetition by the same machine after 9 min: %v", err)
	}
	c.advance(2 * time.Minute)
	wantRefusal(t, first, again(), CodeUsed)
}

// TestOneTimeTokenRace lets many machines use one token at the same moment.
func TestOneTimeTokenRace(t *testing.T) {
	c := newCluster(t)
	text, _ := c.create(TokenRequest{Once: true})
	if n := c.race(text, func(i int) string { return "n" + string(rune('a'+i)) }); n != 1 {
		t.Errorf("%d machines joined by a one-time token; want 1", n)
	}
}

// TestNameRace lets many machines ask for one name at the same moment.
func TestNameRace(t *testing.T) {
	c := newCluster(t)
	if n := c.race(c.token(token.Agent), func(int) string { return "one" }); n != 1 {
		t.Errorf("%d machines got one name; want 1", n)
	}
}

func (c *cluster) race(text string, name func(int) string) (joined int) {
	const machines = 8
	results := make(chan error, machines)
	start := make(chan struct{})
	for i := range machines {
		o, _ := c.machine(membership.Agent, name(i), text)
		go func() { <-start; results <- run(c.t, o) }()
	}
	close(start)
	for range machines {
		err := <-results
		switch {
		case err == nil:
			joined++
		case !IsRefusal(err):
			c.t.Error(err)
		}
	}
	return joined
}

func (c *cluster) identityOf(name string) string {
	c.t.Helper()
	r, err := getRecord(c.t.Context(), c.client, name)
	if err != nil || r == nil {
		c.t.Fatalf("record of %s: %v, %v", name, r, err)
	}
	return r.Identity
}

func identityOf(t *testing.T, o Options) string {
	t.Helper()
	id, err := Identity(o.Dir)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestClocks(t *testing.T) {
	c := newCluster(t)
	for _, off := range []time.Duration{-365 * 24 * time.Hour, 365 * 24 * time.Hour, 11 * time.Minute} {
		o, status := c.machine(membership.Server, "s", c.token(token.Server))
		o.now = func() time.Time { return c.clock().Add(off) }
		err := run(t, o)
		if err == nil || IsRefusal(err) || !strings.Contains(err.Error(), stamp(c.clock())) || !strings.Contains(err.Error(), stamp(c.clock().Add(off))) {
			t.Errorf("clock %v off: %v; want an error that passes and tells both clocks", off, err)
		}
		if !strings.Contains(*status, "clocks differ") {
			t.Errorf("status %q", *status)
		}
		if got := files(t, o.Dir); len(got) != 1 {
			t.Errorf("clock %v off: files %v; want the identity alone", off, got)
		}
	}
	// A server that does not say its time, and whose certificate is not valid yet by this machine's clock.
	s := c.serve(dateless(c.server.Handler()), c.dir+"/server/tls")
	o, _ := c.machine(membership.Agent, "a", c.token(token.Agent))
	o.ServerURL = s.URL
	past := c.clock().Add(-30 * 24 * time.Hour)
	o.now = func() time.Time { return past }
	if err := run(t, o); err == nil || IsRefusal(err) || !strings.Contains(err.Error(), "valid from") || !strings.Contains(err.Error(), stamp(past)) {
		t.Errorf("early clock: %v", err)
	}
	// With the floor in its place, the clock counts as right.
	o.ServerURL, o.Floor = c.http.URL, c.clock()
	o.now = func() time.Time { return time.Unix(0, 0) }
	mustRun(t, o)
}

func dateless(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header()["Date"] = nil
		h.ServeHTTP(w, r)
	})
}

func TestUnreachable(t *testing.T) {
	c := newCluster(t)
	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	html := c.serve(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>router</html>") }), c.dir+"/server/tls")
	missing := c.serve(http.NotFoundHandler(), c.dir+"/server/tls")
	starting := c.serve(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) }), c.dir+"/server/tls")
	endless := c.serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for r.Context().Err() == nil {
			if _, err := w.Write(make([]byte, 4096)); err != nil {
				return
			}
		}
	}), c.dir+"/server/tls")
	closed := httptest.NewUnstartedServer(nil)
	gone := "https://" + closed.Listener.Addr().String()
	closed.Close()
	for url, want := range map[string]string{
		"https" + strings.TrimPrefix(plain.URL, "http"): "does not speak TLS",
		html.URL:                       "not a Cairn server",
		missing.URL:                    "404",
		starting.URL:                   "not ready yet",
		endless.URL:                    "more than",
		gone:                           "nothing listens",
		"https://no-such-host.invalid": "is not known",
	} {
		o, status := c.machine(membership.Agent, "a", c.token(token.Agent))
		o.ServerURL = url
		var pauses []time.Duration
		o.pause = func(_ context.Context, d time.Duration) error {
			if pauses = append(pauses, d); len(pauses) == 5 {
				return errStop
			}
			return nil
		}
		if url != gone {
			o.pause = func(context.Context, time.Duration) error { return errStop }
		}
		err := run(t, o)
		if err == nil || IsRefusal(err) || !strings.Contains(*status, want) {
			t.Errorf("%s: status %q, error %v; want %q and that it passes", url, *status, err, want)
		}
		for i, want := range []time.Duration{2, 4, 8, 10, 10} {
			if want *= time.Second; url == gone && (len(pauses) != 5 || pauses[i] > want || pauses[i] < want*3/4) {
				t.Errorf("pauses %v; want number %d to be %v, or up to a quarter less", pauses, i, want)
			}
		}
	}
}

func TestPauseAfter(t *testing.T) {
	passes := errors.New("passes")
	different := map[time.Duration]bool{}
	for range 100 {
		for _, tt := range []struct {
			err       error
			wait      time.Duration
			low, high time.Duration
		}{
			{passes, maxPause, maxPause * 3 / 4, maxPause},
			{refuse(CodeName, "taken"), maxPause, refusalPause, refusalPause},
			{&later{passes, 0}, maxPause, maxPause * 3 / 4, maxPause},
			{&later{passes, 20 * time.Second}, maxPause, 20 * time.Second, 20*time.Second + maxPause/4},
			{&later{passes, time.Hour}, firstPause, longestWait, longestWait},
		} {
			got := pauseAfter(tt.err, tt.wait)
			if got < tt.low || got > tt.high {
				t.Fatalf("pauseAfter(%v, %v) = %v; want %v to %v", tt.err, tt.wait, got, tt.low, tt.high)
			}
			different[got] = true
		}
	}
	if len(different) < 100 {
		t.Errorf("%d different pauses; machines that start together ask together", len(different))
	}
}

// TestSilence tells a server that starts from one that cannot be reached.
func TestSilence(t *testing.T) {
	listen := func(serve func(net.Conn)) string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				t.Cleanup(func() { c.Close() })
				serve(c)
			}
		}()
		return l.Addr().String()
	}
	silent := listen(func(net.Conn) {})
	hangs := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	hangs.StartTLS()
	t.Cleanup(hangs.Close)
	for _, tt := range []struct{ name, address, want string }{
		{"no handshake", silent, "accepts connections but does not answer yet"},
		{"no answer", hangs.Listener.Addr().String(), "accepts connections but does not answer yet"},
		{"ends", listen(func(c net.Conn) { c.Close() }), "ends them without an answer"},
	} {
		r := remote{address: tt.address, clock: time.Now}
		client := r.client(nil)
		client.Timeout = 300 * time.Millisecond
		if tt.address == silent {
			client.Timeout, client.Transport.(*http.Transport).TLSHandshakeTimeout = 0, 100*time.Millisecond
		}
		_, err := r.do(t.Context(), client, http.MethodGet, CAPath, nil, maxCA)
		if err == nil || IsRefusal(err) || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), "may be starting") || strings.Contains(err.Error(), "firewalls") {
			t.Errorf("%s: %v; want %q and that it passes", tt.name, err, tt.want)
		}
	}
	r := remote{address: "192.0.2.1:6443", clock: time.Now}
	err := r.explain(&url.Error{Op: "Get", URL: "https://192.0.2.1:6443", Err: &net.OpError{Op: "dial", Net: "tcp", Err: os.ErrDeadlineExceeded}})
	if IsRefusal(err) || !strings.Contains(err.Error(), "firewalls") || strings.Contains(err.Error(), "starting") {
		t.Errorf("no connection: %v", err)
	}
}

// TestRunRetries joins as soon as the server is there.
func TestRunRetries(t *testing.T) {
	c := newCluster(t)
	ready := false
	s := c.serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !ready {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		c.server.Handler().ServeHTTP(w, r)
	}), c.dir+"/server/tls")
	o, status := c.machine(membership.Agent, "a", c.token(token.Agent))
	o.ServerURL = s.URL
	tries := 0
	o.pause = func(context.Context, time.Duration) error {
		tries++
		ready = tries == 3
		return nil
	}
	mustRun(t, o)
	if tries != 3 || !strings.Contains(*status, "joined") {
		t.Errorf("%d tries, status %q", tries, *status)
	}
}

func TestRunEndsWithContext(t *testing.T) {
	c := newCluster(t)
	o, _ := c.machine(membership.Agent, "a", "guess")
	ctx, cancel := context.WithCancel(t.Context())
	o.pause = func(ctx context.Context, _ time.Duration) error { cancel(); return pause(ctx, time.Hour) }
	if err := Run(ctx, o); !IsRefusal(err) {
		t.Errorf("Run = %v; want what was in the way", err)
	}
}

func TestAPIOutage(t *testing.T) {
	c := newCluster(t)
	c.server.TLSDir = t.TempDir() // no files: nothing can be answered
	o, _ := c.machine(membership.Agent, "a", plainSecret)
	if err := run(t, o); err == nil || IsRefusal(err) {
		t.Errorf("Run = %v; want an error that passes", err)
	}
}
