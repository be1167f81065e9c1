package join

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/cairn-os/cairn/pkg/membership"
	"github.com/cairn-os/cairn/pkg/pki"
	"github.com/cairn-os/cairn/pkg/token"
)

const (
	kubernetesVersion = "v1.36.4"
	plainSecret       = "correct-horse-battery"
)

// cluster is a server that serves over TLS with a real apiserver's certificate, on client-go's fake API.
type cluster struct {
	t      *testing.T
	dir    string
	client *fake.Clientset
	server *Server
	http   *httptest.Server
	mu     sync.Mutex
	now    time.Time
	online map[string]bool
	beats  int64
	log    strings.Builder
}

func (c *cluster) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.log.Write(p)
}

func (c *cluster) clock() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *cluster) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// optimistic makes the fake API refuse updates of Secrets that were read before another update, as the real one does.
func optimistic(client *fake.Clientset) {
	var mu sync.Mutex
	versions := map[string]int{}
	gr := schema.GroupResource{Resource: "secrets"}
	client.PrependReactor("create", "secrets", func(a clienttesting.Action) (bool, runtime.Object, error) {
		mu.Lock()
		defer mu.Unlock()
		s := a.(clienttesting.CreateAction).GetObject().(*corev1.Secret)
		if _, err := client.Tracker().Get(a.GetResource(), s.Namespace, s.Name); err == nil {
			return true, nil, apierrors.NewAlreadyExists(gr, s.Name)
		}
		versions[s.Name]++
		s = s.DeepCopy()
		s.ResourceVersion = fmt.Sprint(versions[s.Name])
		return true, s, client.Tracker().Create(a.GetResource(), s, s.Namespace)
	})
	client.PrependReactor("update", "secrets", func(a clienttesting.Action) (bool, runtime.Object, error) {
		mu.Lock()
		defer mu.Unlock()
		s := a.(clienttesting.UpdateAction).GetObject().(*corev1.Secret)
		have, err := client.Tracker().Get(a.GetResource(), s.Namespace, s.Name)
		if err != nil {
			return true, nil, err
		}
		if have.(*corev1.Secret).ResourceVersion != s.ResourceVersion {
			return true, nil, apierrors.NewConflict(gr, s.Name, errors.New("changed in between"))
		}
		versions[s.Name]++
		s = s.DeepCopy()
		s.ResourceVersion = fmt.Sprint(versions[s.Name])
		return true, s, client.Tracker().Update(a.GetResource(), s, s.Namespace)
	})
}

// newCluster founds a cluster whose configuration has plainSecret as its token.
func newCluster(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{t: t, dir: t.TempDir(), client: fake.NewClientset(), now: time.Now().Truncate(time.Second), online: map[string]bool{}}
	optimistic(c.client)
	log := slog.New(slog.NewTextHandler(c, nil))
	o := Options{
		Role: membership.Server, Node: "first", Dir: c.dir, Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")},
		Version: kubernetesVersion, Log: log, now: c.clock,
	}
	if err := Run(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	m, err := membership.Load(o.membershipFile())
	if err != nil {
		t.Fatal(err)
	}
	c.found(plainSecret)
	c.add(&discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Name: "kubernetes", Namespace: "default", Labels: map[string]string{discoveryv1.LabelServiceName: "kubernetes"}},
		Ports:      []discoveryv1.EndpointPort{{Name: new("https"), Port: new(int32(6443))}},
		Endpoints:  []discoveryv1.Endpoint{{Addresses: []string{"192.0.2.2"}}, {Addresses: []string{"192.0.2.1"}}},
	})
	c.server = NewServer(ServerOptions{
		Client: c.client, TLSDir: o.path(serverTLS), EncryptionFile: o.path(serverDir, encryptionName),
		PKI:        func() pki.Options { p := o.pki(m); p.Now = c.clock; return p },
		StorePeers: func(context.Context) ([]string, error) { return []string{"192.0.2.1:6444"}, nil },
		MemberOnline: func(_ context.Context, name string) (bool, error) {
			c.mu.Lock()
			defer c.mu.Unlock()
			return c.online[name], nil
		},
		Version: kubernetesVersion, Log: log, Now: c.clock,
	})
	c.http = c.serve(c.server.Handler(), o.path(serverTLS))
	return c
}

// serve serves h with the apiserver's certificate in dir, and with the cluster's clock in the Date header.
func (c *cluster) serve(h http.Handler, dir string) *httptest.Server {
	c.t.Helper()
	pair, err := tls.LoadX509KeyPair(pki.PairFile(dir, pki.APIServer), pki.PairFile(dir, pki.APIServer))
	if err != nil {
		c.t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Date", c.clock().UTC().Format(http.TimeFormat))
		h.ServeHTTP(w, r)
	}))
	s.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)
	s.StartTLS()
	c.t.Cleanup(s.Close)
	return s
}

func (c *cluster) found(configured string) {
	c.t.Helper()
	identity, err := Identity(c.dir)
	if err != nil {
		c.t.Fatal(err)
	}
	err = Found(c.t.Context(), c.client, FoundOptions{
		Token: configured, Settings: membership.DefaultSettings(), Node: "first", Identity: identity, CAFile: c.caFile(),
		Log: slog.New(slog.NewTextHandler(c, nil)),
	})
	if err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) caFile() string { return pki.CertFile(c.dir+"/server/tls", pki.ServerCA) }

func (c *cluster) add(objects ...runtime.Object) {
	c.t.Helper()
	for _, o := range objects {
		if err := c.client.Tracker().Add(o); err != nil {
			c.t.Fatal(err)
		}
	}
}

// token returns the text of a built-in token.
func (c *cluster) token(id string) string {
	c.t.Helper()
	text, err := TokenText(c.t.Context(), c.client, id, c.caFile())
	if err != nil {
		c.t.Fatal(err)
	}
	return text
}

func (c *cluster) create(r TokenRequest) (text, id string) {
	c.t.Helper()
	r.CAFile = c.caFile()
	text, info, err := CreateToken(c.t.Context(), c.client, r)
	if err != nil {
		c.t.Fatal(err)
	}
	return text, info.ID
}

// heartbeat renews the Lease of a node, by the node's own clock, which is wrong, and makes the Node ready.
func (c *cluster) heartbeat(node string) {
	c.t.Helper()
	c.ready(node, corev1.ConditionTrue)
	leases := c.client.CoordinationV1().Leases(corev1.NamespaceNodeLease)
	c.beats++
	l := &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{Name: node, Namespace: corev1.NamespaceNodeLease, ResourceVersion: fmt.Sprint("beat", c.beats)},
		Spec:       coordinationv1.LeaseSpec{RenewTime: &metav1.MicroTime{Time: time.Unix(c.beats, 0)}},
	}
	_, err := leases.Update(c.t.Context(), l, metav1.UpdateOptions{})
	if apierrors.IsNotFound(err) {
		_, err = leases.Create(c.t.Context(), l, metav1.CreateOptions{})
	}
	if err != nil {
		c.t.Fatal(err)
	}
}

// ready makes the Node what the cluster's controllers see.
func (c *cluster) ready(node string, status corev1.ConditionStatus) {
	c.t.Helper()
	nodes := c.client.CoreV1().Nodes()
	n := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: node},
		Status:     corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: status}}},
	}
	_, err := nodes.Update(c.t.Context(), n, metav1.UpdateOptions{})
	if apierrors.IsNotFound(err) {
		_, err = nodes.Create(c.t.Context(), n, metav1.CreateOptions{})
	}
	if err != nil {
		c.t.Fatal(err)
	}
}

// errStop ends a Run at its first pause.
var errStop = errors.New("stop")

// machine returns the options of a machine that tries once, and where its last status is found.
func (c *cluster) machine(role membership.Role, name, text string) (Options, *string) {
	status := new(string)
	o := Options{
		Role: role, Node: name, ServerURL: c.http.URL, Token: text, Dir: c.t.TempDir(), Version: kubernetesVersion,
		Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.77")}, now: c.clock,
		Status: func(s string) { *status = s },
		pause:  func(context.Context, time.Duration) error { return errStop },
	}
	switch role {
	case membership.Agent:
		o.ObtainNode = c.obtain(&o)
	case membership.Server:
		o.Settings = &membership.Settings{Datastore: membership.OwnStore}
	}
	return o, status
}

// obtain stands for the CSR API: it verifies the bootstrap certificate as the apiserver would, and signs the pairs.
func (c *cluster) obtain(o *Options) func(context.Context, tls.Certificate, []string, membership.Settings) error {
	return func(_ context.Context, bootstrap tls.Certificate, servers []string, s membership.Settings) error {
		want, err := os.ReadFile(c.caFile())
		if err != nil {
			return err
		}
		ca, err := os.ReadFile(pki.CertFile(o.path(nodeTLS), pki.ServerCA))
		if err != nil || string(ca) != string(want) || len(servers) == 0 || s.Validate() != nil {
			return fmt.Errorf("asked to trust %q for %v with settings %v: %w", ca, servers, s, err)
		}
		if err := verifyBootstrap(bootstrap.Leaf, pki.CertFile(c.dir+"/server/tls", pki.ClientCA), o.Node, c.clock()); err != nil {
			return err
		}
		return c.signNode(*o)
	}
}

func verifyBootstrap(leaf *x509.Certificate, caFile, node string, now time.Time) error {
	data, err := os.ReadFile(caFile)
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(data)
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		return err
	}
	if leaf.Subject.CommonName != BootstrapUserPrefix+node || fmt.Sprint(leaf.Subject.Organization) != "["+BootstrapGroup+"]" {
		return fmt.Errorf("bootstrap certificate of %v", leaf.Subject)
	}
	if left := leaf.NotAfter.Sub(now); left > bootstrapLife {
		return fmt.Errorf("bootstrap certificate lives %v", left)
	}
	return nil
}

// signNode writes an agent's pairs as nodecert does.
func (c *cluster) signNode(o Options) error {
	o = o.withDefaults()
	for name, authority := range map[string]string{pki.KubeletClient: pki.ClientCA, pki.KubeletServer: pki.KubeletCA} {
		key, err := newKey()
		if err != nil {
			return err
		}
		r := pki.ClientRequest(pki.NodeUser(o.Node), pki.NodeGroup)
		r.Now = c.clock
		certificate, err := pki.Sign(c.dir+"/server/tls", authority, key.Public(), r)
		if err != nil {
			return err
		}
		pair, err := pki.EncodePair(certificate, key)
		if err != nil {
			return err
		}
		if err := o.write(pki.PairFile(o.path(nodeTLS), name), pair, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// run lets the machine try once.
func run(t *testing.T, o Options) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	return Run(ctx, o)
}

func mustRun(t *testing.T, o Options) *membership.Membership {
	t.Helper()
	if err := run(t, o); err != nil {
		t.Fatal(err)
	}
	m, err := membership.Load(o.membershipFile())
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// wantRefusal checks that err is a Refusal for that reason, and that nothing of a membership is there.
func wantRefusal(t *testing.T, o Options, err error, code Code, parts ...string) {
	t.Helper()
	var r *Refusal
	if !errors.As(err, &r) || r.Code != code {
		t.Fatalf("Run = %v; want a refusal for %s", err, code)
	}
	for _, part := range parts {
		if !strings.Contains(r.Text, part) {
			t.Errorf("refusal %q; want it to tell %q", r.Text, part)
		}
	}
	if _, err := os.Stat(o.membershipFile()); err == nil {
		t.Error("a machine that was refused has a membership")
	}
}

// otherPin is the text of a token with the hash of another CA.
func otherPin(t *testing.T, text string) string {
	t.Helper()
	k, err := token.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	k.Pin = token.Pin([]byte("another"))
	return k.String()
}

// unjoin leaves a machine as it is when the power is cut before its membership is written.
func (o Options) unjoin() error { return os.Remove(o.membershipFile()) }
