package control

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/cairn-os/cairn/pkg/control/approver"
	"github.com/cairn-os/cairn/pkg/join"
	"github.com/cairn-os/cairn/pkg/membership"
	"github.com/cairn-os/cairn/pkg/pki"
)

// authorities returns options whose certificates exist.
func authorities(t *testing.T) Options {
	t.Helper()
	o := testOptions()
	o.DataDir, o.RunDir = t.TempDir(), t.TempDir()
	if _, err := pki.Ensure(o.pki()); err != nil {
		t.Fatal(err)
	}
	return o
}

// certificate returns one of the authority, and its key.
func certificate(t *testing.T, o Options, authority string, r pki.Request) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	text, err := pki.Sign(o.tls(), authority, key.Public(), r)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return c, key
}

// asked is a request over a connection from that address to 192.0.2.7.
func asked(t *testing.T, c *x509.Certificate, from string) *http.Request {
	local := context.WithValue(t.Context(), http.LocalAddrContextKey, &net.TCPAddr{IP: net.IP{192, 0, 2, 7}, Port: 6443})
	r := httptest.NewRequest(http.MethodGet, "/", nil).WithContext(local)
	r.RemoteAddr, r.TLS = from, &tls.ConnectionState{PeerCertificates: []*x509.Certificate{c}}
	return r
}

// TestNodeOf looks at certificates that are not a node's, or were not made by the authority of clients, and at where
// those of servers come from.
func TestNodeOf(t *testing.T) {
	o, stranger := authorities(t), authorities(t)
	client, server := []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	nodes := []string{pki.NodeGroup}
	node := func(name string) pki.Request {
		return pki.Request{User: "system:node:" + name, Groups: nodes, Usages: client}
	}
	book := newNodeBook(nil, nil)
	book.synced = true
	long := time.Now().Add(-1000 * time.Hour)
	book.nodes["shop-2"] = join.NodeRecord{Name: "shop-2", Role: membership.Agent, Joined: long}
	book.nodes["shop-3"] = join.NodeRecord{Name: "shop-3", Role: membership.Server, Joined: long, Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.3")}}
	book.asked["gone"] = time.Now() // the cluster itself is not asked
	for _, tt := range []struct {
		name      string
		from      Options
		authority string
		request   pki.Request
		source    string
		node      string
		problem   string
	}{
		{"agent", o, pki.ClientCA, node("shop-2"), "198.51.100.1:1", "shop-2", ""},
		{"an agent that was removed", o, pki.ClientCA, node("gone"), "198.51.100.1:1", "", "gone was removed from the cluster"},
		{"own node", o, pki.ClientCA, node("shop-1"), "127.0.0.1:1", "shop-1", ""},
		{"own node by IPv6", o, pki.ClientCA, node("shop-1"), "[::1]:1", "shop-1", ""},
		{"own node by the address it asks", o, pki.ClientCA, node("shop-1"), "192.0.2.7:1", "shop-1", ""},
		{"own node by another address of its own", o, pki.ClientCA, node("shop-1"), "192.0.2.8:1", "shop-1", ""},
		{"own node from elsewhere", o, pki.ClientCA, node("shop-1"), "192.0.2.9:1", "", "192.0.2.9 is not this machine"},
		{"another server", o, pki.ClientCA, node("shop-3"), "192.0.2.3:1", "shop-3", ""},
		{"another server from elsewhere", o, pki.ClientCA, node("shop-3"), "192.0.2.9:1", "", "192.0.2.9 is not one of its addresses"},
		{"no group", o, pki.ClientCA, pki.Request{User: "system:node:shop-2", Usages: client}, "", "", "is not a node"},
		{"a person", o, pki.ClientCA, pki.Request{User: "ann", Groups: nodes, Usages: client}, "", "", `"ann" is not a node`},
		{"no name", o, pki.ClientCA, node(""), "", "", "is not a node"},
		{"joining", o, pki.ClientCA, pki.Request{User: "cairn:join:shop-2", Groups: []string{joiningGroup}, Usages: client}, "", "", "is not a node"},
		{"serving", o, pki.ClientCA, pki.Request{User: "system:node:shop-2", Groups: nodes, Usages: server}, "", "", "incompatible key usage"},
		{"kubelet's serving authority", o, pki.KubeletCA, node("shop-2"), "", "", "unknown authority"},
		{"another cluster", stranger, pki.ClientCA, node("shop-2"), "", "", "unknown authority"},
		{"expired", o, pki.ClientCA, pki.Request{User: "system:node:shop-2", Groups: nodes, Usages: client, Life: time.Minute,
			Now: func() time.Time { return time.Now().Add(-time.Hour) }}, "", "", "expired"},
	} {
		c, _ := certificate(t, tt.from, tt.authority, tt.request)
		f := newFront(o, slog.New(slog.DiscardHandler))
		f.addresses, f.nodes = []netip.Addr{netip.MustParseAddr("192.0.2.8")}, book
		node, err := f.nodeOf(asked(t, c, tt.source))
		if node != tt.node || (err == nil) != (tt.problem == "") || err != nil && !strings.Contains(err.Error(), tt.problem) {
			t.Errorf("%s: nodeOf = %q, %v; want %q, %q", tt.name, node, err, tt.node, tt.problem)
		}
	}
}

// TestRefused has removed and replaced machines ask the apiserver.
func TestRefused(t *testing.T) {
	o, stranger := authorities(t), authorities(t)
	request := func(name string) pki.Request { return pki.ClientRequest(pki.NodeUser(name), pki.NodeGroup) }
	c, _ := certificate(t, o, pki.ClientCA, request("shop-2"))
	own, _ := certificate(t, o, pki.ClientCA, request("shop-1"))
	person, _ := certificate(t, o, pki.ClientCA, pki.ClientRequest("ann"))
	foreign, _ := certificate(t, stranger, pki.ClientCA, request("shop-2"))
	hash := approver.KeyHash(c.RawSubjectPublicKeyInfo)
	agent := func(joined time.Time, keys ...string) *join.NodeRecord {
		return &join.NodeRecord{Name: "shop-2", Role: membership.Agent, Joined: joined, ClientKeys: keys}
	}
	for _, tt := range []struct {
		name    string
		record  *join.NodeRecord
		cluster *join.NodeRecord // has it already, but the book does not
		cert    *x509.Certificate
		want    string
	}{
		{"its key", agent(time.Now(), "a", hash), nil, c, ""},
		{"its key, just recorded", agent(time.Now(), "a"), agent(time.Now(), hash, "a"), c, ""},
		{"another's key", agent(time.Now(), "a"), nil, c, "the name shop-2 belongs to another machine now"},
		{"a key unknown since a restore", agent(c.NotBefore, "a"), nil, c, ""},
		{"a key forgotten after three others", agent(c.NotBefore.Add(backdate), "a", "b", "c"), nil, c, ""},
		{"another's key after three", agent(time.Now(), "a", "b", "c"), nil, c, "the name shop-2 belongs to another machine now"},
		{"signed just before the other joined", agent(c.NotBefore.Add(backdate), "a"), nil, c, "another machine now"},
		{"removed", nil, nil, c, "shop-2 was removed from the cluster"},
		{"joined again", nil, agent(time.Now(), hash), c, ""},
		{"a witness", &join.NodeRecord{Name: "shop-2", Role: membership.Witness}, nil, c, "which has no node"},
		{"a server", &join.NodeRecord{Name: "shop-2", Role: membership.Server}, nil, c, ""},
		{"the own node, not recorded yet", nil, nil, own, ""},
		{"a person", nil, nil, person, ""},
		{"another authority's: Kubernetes decides", nil, nil, foreign, ""},
	} {
		client := fake.NewClientset()
		book := newNodeBook(client, nil)
		for _, r := range []*join.NodeRecord{tt.record, tt.cluster} {
			if r == nil {
				continue
			}
			s := secretOf(*r)
			_ = client.Tracker().Delete(corev1.SchemeGroupVersion.WithResource("secrets"), s.Namespace, s.Name) // the first time there is none
			if err := client.Tracker().Add(s); err != nil {
				t.Fatal(err)
			}
		}
		if tt.record != nil {
			book.nodes[tt.record.Name] = *tt.record
		}
		f := newFront(o, slog.New(slog.DiscardHandler))
		f.nodes = book
		through := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) })
		ask := func() (int, string) {
			w := httptest.NewRecorder()
			f.wrap(through).ServeHTTP(w, asked(t, tt.cert, "198.51.100.1:1"))
			return w.Code, w.Body.String()
		}
		if code, _ := ask(); code != http.StatusTeapot {
			t.Errorf("%s: %d before the records are known; want it to go on", tt.name, code)
		}
		book.synced = true
		code, text := ask()
		if want := map[bool]int{true: http.StatusTeapot, false: http.StatusUnauthorized}[tt.want == ""]; code != want || !strings.Contains(text, tt.want) {
			t.Errorf("%s: %d %s; want %d, %q", tt.name, code, text, want, tt.want)
		}
	}
}

// TestFrontLimits holds requests up inside and sees that more of the same source, and of many, are sent away, and that
// nobody who joins keeps a member from renewing.
func TestFrontLimits(t *testing.T) {
	f := newFront(testOptions(), slog.New(slog.DiscardHandler))
	next := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) })
	ask := func(path, source string, body io.Reader) int {
		w := httptest.NewRecorder()
		r := httptest.NewRequest(http.MethodPost, path, body)
		r.RemoteAddr = source
		f.wrap(next).ServeHTTP(w, r)
		return w.Code
	}
	text := func() io.Reader { return strings.NewReader("x") }
	if got := ask(join.JoinPath, "192.0.2.9:1", text()); got != http.StatusServiceUnavailable {
		t.Errorf("before the cluster is ready: %d; want 503", got)
	}
	if got := ask("/api", "192.0.2.9:1", text()); got != http.StatusTeapot {
		t.Errorf("another path: %d; want it to go on to Kubernetes", got)
	}
	leave := make(chan bool)
	f.open(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path == join.JoinPath {
			<-leave
		}
	}))
	var all sync.WaitGroup
	enter := func(source string, body io.Reader) { all.Go(func() { ask(join.JoinPath, source, body) }) }
	inside := func(bodies, working int) {
		t.Helper()
		l := f.limits[join.JoinPath]
		eventually(t, 5*time.Second, "requests inside", func() bool {
			l.mu.Lock()
			defer l.mu.Unlock()
			return l.inside == bodies && l.working == working
		})
	}
	want := func(what, path, source string, code int) {
		t.Helper()
		if got := ask(path, source, text()); got != code {
			t.Errorf("%s: %d; want %d", what, got, code)
		}
	}
	for i := range bodiesPerSource {
		enter(fmt.Sprintf("[2001:db8::%d]:1", i+1), text())
	}
	inside(bodiesPerSource, bodiesPerSource)
	want("one network of IPv6 too often", join.JoinPath, "[2001:db8::99]:2", http.StatusServiceUnavailable)
	want("one that renews", join.RenewPath, "[2001:db8::99]:2", http.StatusOK)
	for i := range joinsAtOnce - bodiesPerSource {
		enter(fmt.Sprintf("192.0.2.%d:1", i), text())
	}
	inside(joinsAtOnce, joinsAtOnce)
	slow, end := io.Pipe()
	for i := range bodiesAtOnce - joinsAtOnce {
		enter(fmt.Sprintf("198.51.100.%d:1", i), slow)
	}
	inside(bodiesAtOnce, joinsAtOnce)
	want("all that may send", join.JoinPath, "203.0.113.1:1", http.StatusServiceUnavailable)
	want("one that asks for the authority", join.CAPath, "203.0.113.1:1", http.StatusOK)
	want("one that renews", join.RenewPath, "203.0.113.1:1", http.StatusOK)
	end.CloseWithError(errors.New("the connection broke"))
	inside(joinsAtOnce, joinsAtOnce)
	close(leave)
	all.Wait()
	if l := f.limits[join.JoinPath]; l.inside != 0 || l.working != 0 || len(l.sources) != bodiesAtOnce-joinsAtOnce {
		t.Errorf("after all have left: %d inside, %d worked on, %d sources; want those whose bodies broke", l.inside, l.working, len(l.sources))
	}
}

// TestBrokenBodies has a source send bodies that do not arrive, which counts against it and nobody else, for a time.
func TestBrokenBodies(t *testing.T) {
	f := newFront(testOptions(), slog.New(slog.DiscardHandler))
	f.open(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	now := time.Now()
	f.now = func() time.Time { return now }
	ask := func(source string, body io.Reader) int {
		w := httptest.NewRecorder()
		r := httptest.NewRequest(http.MethodPost, join.JoinPath, body)
		r.RemoteAddr = source
		f.wrap(nil).ServeHTTP(w, r)
		return w.Code
	}
	for i := range mostFailures {
		if got := ask("192.0.2.1:1", iotest.ErrReader(os.ErrDeadlineExceeded)); got != http.StatusBadRequest {
			t.Errorf("broken body %d: %d; want 400", i, got)
		}
	}
	for _, tt := range []struct {
		after  time.Duration
		source string
		want   int
	}{
		{0, "192.0.2.1:2", http.StatusServiceUnavailable},
		{0, "192.0.2.2:2", http.StatusOK},
		{failureRate / 2, "192.0.2.1:2", http.StatusServiceUnavailable},
		{failureRate, "192.0.2.1:2", http.StatusOK},
	} {
		now = now.Add(tt.after)
		if got := ask(tt.source, strings.NewReader("x")); got != tt.want {
			t.Errorf("%s, %v later: %d; want %d", tt.source, tt.after, got, tt.want)
		}
	}
	now = now.Add(time.Hour)
	if ask("192.0.2.1:2", strings.NewReader("x")); len(f.limits[join.JoinPath].sources) != 0 {
		t.Errorf("sources with nothing against them are kept: %v", f.limits[join.JoinPath].sources)
	}
}
