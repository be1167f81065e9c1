package tunnel

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apiserver/pkg/server/egressselector"
)

// cluster is a server and nodes in one process, joined by real TLS on the loopback interface.
type cluster struct {
	t      testing.TB
	ca     *authority
	socket string
	known  map[string][]netip.Addr // as the cluster knows its nodes; nobody writes it once the server runs
	dial   utilnet.DialFunc        // the apiserver's, for type cluster

	port   string
	server *Server
	stop   func()
}

func newCluster(t testing.TB, own string, known map[string][]netip.Addr) *cluster {
	t.Helper()
	c := &cluster{t: t, ca: newAuthority(t), known: known, socket: filepath.Join(t.TempDir(), "control", "egress.sock"), port: "0"}
	c.start(own)
	t.Cleanup(func() { c.stop() })
	c.dial = c.apiserverDialer()
	return c
}

// apiserverDialer reads the egress configuration as an apiserver does.
func (c *cluster) apiserverDialer() utilnet.DialFunc {
	c.t.Helper()
	file := filepath.Join(c.t.TempDir(), "egress.yaml")
	if err := os.WriteFile(file, EgressConfig(c.socket), 0o600); err != nil {
		c.t.Fatal(err)
	}
	config, err := egressselector.ReadEgressSelectorConfiguration(file)
	if err != nil {
		c.t.Fatal(err)
	}
	if errs := egressselector.ValidateEgressSelectorConfiguration(config); len(errs) > 0 {
		c.t.Fatal(errs.ToAggregate())
	}
	selector, err := egressselector.NewEgressSelector(config)
	if err != nil {
		c.t.Fatal(err)
	}
	for _, direct := range []egressselector.EgressType{egressselector.ControlPlane, egressselector.Etcd} {
		if d, err := selector.Lookup(direct.AsNetworkContext()); err != nil || d != nil {
			c.t.Fatalf("Lookup(%v) is a dialer; want none", direct)
		}
	}
	dial, err := selector.Lookup(egressselector.Cluster.AsNetworkContext())
	if err != nil {
		c.t.Fatal(err)
	}
	return dial
}

// start runs the server, at the port it had before.
func (c *cluster) start(own string) {
	c.t.Helper()
	s, err := NewServer(ServerOptions{
		Socket: c.socket, Node: own, Log: slog.New(slog.DiscardHandler),
		Addresses: func(node string) []netip.Addr { return c.known[node] }, IsServer: func(string) bool { return true },
	})
	if err != nil {
		c.t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle(Path, s.Handler(NodeByCertificate(func() *x509.CertPool { return c.ca.pool })))
	port := &http.Server{Handler: mux, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug), TLSConfig: &tls.Config{
		Certificates: []tls.Certificate{c.ca.issue(c.t, "apiserver")}, ClientAuth: tls.RequestClientCert, // as the apiserver's
		NextProtos: []string{"h2", "http/1.1"},
	}}
	l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", c.port))
	if err != nil {
		c.t.Fatal(err)
	}
	if _, c.port, err = net.SplitHostPort(l.Addr().String()); err != nil {
		c.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = port.ServeTLS(l, "", "") })
	running.Go(func() {
		if err := s.Run(ctx); err != nil {
			c.t.Errorf("Run: %v", err)
		}
	})
	c.server = s
	c.stop = sync.OnceFunc(func() {
		port.Close()
		cancel()
		running.Wait()
	})
	within(c.t, 5*time.Second, "socket", func() bool { _, err := os.Stat(c.socket); return err == nil })
}

func (c *cluster) address() string { return net.JoinHostPort("127.0.0.1", c.port) }

// node is a running agent.
type node struct {
	dials *dialLog
	stop  func()
}

// join starts the agent of a node and waits until it has a tunnel.
func (c *cluster) join(name string, claims ...string) *node {
	c.t.Helper()
	servers := []string{c.address()}
	n := c.agent(name, func() []string { return servers }, claims...)
	within(c.t, 5*time.Second, name+" to have a tunnel", func() bool { return slices.Contains(c.server.Nodes(), name) })
	return n
}

func (c *cluster) agent(name string, servers func() []string, claims ...string) *node {
	c.t.Helper()
	n := &node{dials: &dialLog{}}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	o := AgentOptions{
		Node: name, Servers: servers, Log: slog.New(n.dials),
		TLS: func() (*tls.Config, error) {
			return &tls.Config{RootCAs: c.ca.pool, ServerName: "apiserver", Certificates: []tls.Certificate{c.ca.issue(c.t, nodePrefix+name, nodesGroup)}}, nil
		},
	}
	for _, a := range claims {
		o.Addresses = append(o.Addresses, netip.MustParseAddr(a))
	}
	go func() {
		defer close(done)
		if err := RunAgent(ctx, o); err != nil {
			c.t.Errorf("RunAgent(%s): %v", name, err)
		}
	}()
	n.stop = sync.OnceFunc(func() { cancel(); <-done })
	c.t.Cleanup(n.stop)
	return n
}

// client is an HTTP client that connects as the apiserver does, with a new connection for each request.
func (c *cluster) client() *http.Client {
	return &http.Client{Transport: &http.Transport{DialContext: c.dial, DisableKeepAlives: true}, Timeout: 30 * time.Second}
}

func (c *cluster) get(url string) (string, error) {
	r, err := c.client().Get(url)
	if err != nil {
		return "", err
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	return string(b), err
}

// target is an HTTP server at an address of the loopback network.
func target(t testing.TB, host string, h http.HandlerFunc) (hostport string) {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: h, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)}
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(l) }()
	t.Cleanup(func() { s.Close(); <-done })
	return l.Addr().String()
}

// dialLog is a slog.Handler that counts what an agent dials.
type dialLog struct {
	mu    sync.Mutex
	n     int
	lines []string
}

func (d *dialLog) Enabled(context.Context, slog.Level) bool { return true }
func (d *dialLog) WithAttrs([]slog.Attr) slog.Handler       { return d }
func (d *dialLog) WithGroup(string) slog.Handler            { return d }
func (d *dialLog) Handle(_ context.Context, r slog.Record) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if strings.HasPrefix(r.Message, "dialling") {
		d.n++
	}
	line := r.Message
	r.Attrs(func(a slog.Attr) bool { line += fmt.Sprintf(" %s=%v", a.Key, a.Value); return true })
	d.lines = append(d.lines, line)
	return nil
}

func (d *dialLog) count() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.n
}

func (d *dialLog) has(text string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.ContainsFunc(d.lines, func(l string) bool { return strings.Contains(l, text) })
}

func within(t testing.TB, limit time.Duration, what string, ok func() bool) time.Duration {
	t.Helper()
	begin := time.Now()
	for !ok() {
		if time.Since(begin) > limit {
			t.Fatalf("waited %v for %s", limit, what)
		}
		time.Sleep(5 * time.Millisecond)
	}
	return time.Since(begin)
}

// noLeaks fails the test when goroutines of this package or of gRPC are left after all other cleanups.
func noLeaks(t testing.TB) {
	t.Cleanup(func() {
		var left string
		for begin := time.Now(); time.Since(begin) < 10*time.Second; time.Sleep(20 * time.Millisecond) {
			buf := make([]byte, 4<<20)
			left = ""
			for g := range strings.SplitSeq(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
				if (strings.Contains(g, "pkg/tunnel.") || strings.Contains(g, "google.golang.org/grpc")) && !strings.Contains(g, "testing.") {
					left += g + "\n\n"
				}
			}
			if left == "" {
				return
			}
		}
		t.Errorf("goroutines left:\n%s", left)
	})
}

type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return &authority{cert, key, pool}
}

func (a *authority) issue(t testing.TB, name string, groups ...string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name, Organization: groups}, DNSNames: []string{name},
		NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}
