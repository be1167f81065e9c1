package nodecert

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/util/cert"
	capi "k8s.io/kubernetes/pkg/apis/certificates"
	"k8s.io/kubernetes/pkg/controller/certificates/authority"

	"github.com/cairn-os/cairn/pkg/pki"
)

var built = time.Date(2026, 11, 20, 0, 0, 0, 0, time.UTC)

// cluster is an apiserver's part of the certificates API on the wire, with upstream's checks and signer behind it. Its
// clock and the machine's are the test's.
type cluster struct {
	t      *testing.T
	server *httptest.Server
	pki    pki.Options
	dir    string // of the agent
	addrs  []netip.Addr

	mu         sync.Mutex // guards the following
	now        time.Time
	skew       time.Duration // of the machine's clock
	life       time.Duration // of what is signed
	requests   map[string]*certificatesv1.CertificateSigningRequest
	users      []string // who made each request
	bootstraps int
	// answer changes a request that was made; nil approves and signs it.
	answer func(r *certificatesv1.CertificateSigningRequest)
	// before may answer a call in the place of the API.
	before func(w http.ResponseWriter, r *http.Request) bool
}

func newCluster(t *testing.T) *cluster {
	c := &cluster{
		t: t, dir: t.TempDir(), now: built.Add(time.Hour), life: 365 * 24 * time.Hour, requests: map[string]*certificatesv1.CertificateSigningRequest{},
		addrs: []netip.Addr{netip.MustParseAddr("2001:db8::7"), netip.MustParseAddr("192.0.2.7")},
	}
	c.pki = pki.Options{Dir: t.TempDir(), Node: "shop-1", Floor: built, Now: c.clock}
	c.ensure()
	for _, name := range []string{pki.ServerCA, pki.ClientCA, pki.KubeletCA} {
		copyFile(t, pki.CertFile(c.pki.Dir, name), pki.CertFile(c.dir, name))
	}
	c.server = httptest.NewUnstartedServer(http.HandlerFunc(c.serve))
	c.server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	c.server.TLS = &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		pair, err := loadPair(c.pki.Dir, pki.APIServer)
		if err != nil {
			return nil, err
		}
		return &tls.Config{Certificates: []tls.Certificate{*pair}, ClientAuth: tls.RequestClientCert}, nil
	}}
	c.server.StartTLS()
	t.Cleanup(c.server.Close)
	return c
}

func (c *cluster) ensure() {
	c.t.Helper()
	if _, err := pki.Ensure(c.pki); err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) clock() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *cluster) pass(d time.Duration) {
	c.mu.Lock()
	c.now = c.now.Add(d)
	c.mu.Unlock()
}

// options are the agent's. Its pauses let the clock pass.
func (c *cluster) options() Options {
	return Options{
		Node: "shop-2", Dir: c.dir, Server: c.server.URL, Floor: built, Log: slog.New(slog.NewTextHandler(c.t.Output(), nil)),
		Addresses: func() ([]netip.Addr, error) { return c.addrs, nil },
		Now:       func() time.Time { return c.clock().Add(c.skew) },
		Bootstrap: c.bootstrap,
		sleep:     func(_ context.Context, d time.Duration) { c.pass(d) },
	}
}

func (c *cluster) bootstrap(context.Context) (tls.Certificate, error) {
	c.mu.Lock()
	c.bootstraps++
	c.mu.Unlock()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	r := pki.ClientRequest("cairn:join:shop-2", "cairn:joining")
	r.Life, r.Now, r.Floor = 10*time.Minute, c.clock, built
	certPEM, err := pki.Sign(c.pki.Dir, pki.ClientCA, key.Public(), r)
	if err != nil {
		return tls.Certificate{}, err
	}
	pair, err := pki.EncodePair(certPEM, key)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.X509KeyPair(pair, pair)
}

const path = "/apis/certificates.k8s.io/v1/certificatesigningrequests"

func (c *cluster) serve(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	before := c.before
	c.mu.Unlock()
	if before != nil && before(w, r) {
		return
	}
	user, err := c.authenticate(r)
	if err != nil {
		refuse(w, http.StatusUnauthorized, metav1.StatusReasonUnauthorized)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch name, one := strings.CutPrefix(r.URL.Path, path+"/"); {
	case r.Method == http.MethodPost && r.URL.Path == path:
		body, err := io.ReadAll(r.Body)
		if err != nil {
			c.t.Error(err)
		}
		request := &certificatesv1.CertificateSigningRequest{}
		if _, _, err := scheme.Codecs.UniversalDeserializer().Decode(body, nil, request); err != nil {
			c.t.Error(err)
		}
		request.Name = fmt.Sprint(request.GenerateName, len(c.requests))
		request.UID = types.UID(request.Name)
		request.TypeMeta = metav1.TypeMeta{APIVersion: "certificates.k8s.io/v1", Kind: "CertificateSigningRequest"}
		request.Spec.Username = user
		c.users = append(c.users, user)
		c.requests[request.Name] = request
		reply(w, http.StatusCreated, request)
		after := request.DeepCopy()
		if c.answer != nil {
			c.answer(after)
		} else {
			c.sign(after)
		}
		c.requests[request.Name] = after
	case r.Method == http.MethodGet && one && c.requests[name] != nil:
		reply(w, http.StatusOK, c.requests[name])
	default:
		refuse(w, http.StatusNotFound, metav1.StatusReasonNotFound)
	}
}

// authenticate does what the apiserver does with client certificates: by its own clock, at each request.
func (c *cluster) authenticate(r *http.Request) (string, error) {
	certs, err := cert.CertsFromFile(pki.CertFile(c.pki.Dir, pki.ClientCA))
	if err != nil {
		return "", err
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	for _, c := range certs {
		roots.AddCert(c)
	}
	if len(r.TLS.PeerCertificates) == 0 {
		return "", fmt.Errorf("no certificate")
	}
	for _, c := range r.TLS.PeerCertificates[1:] {
		between.AddCert(c)
	}
	peer := r.TLS.PeerCertificates[0]
	_, err = peer.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: between, CurrentTime: c.clock(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	return peer.Subject.CommonName, err
}

// sign approves and signs, with upstream's checks and policy. c.mu is held.
func (c *cluster) sign(r *certificatesv1.CertificateSigningRequest) {
	csr, err := capi.ParseCSR(r.Spec.Request)
	if err != nil {
		c.t.Error(err)
		return
	}
	usages := sets.NewString()
	for _, u := range r.Spec.Usages {
		usages.Insert(string(u))
	}
	name, check := pki.ClientCA, capi.ValidateKubeletClientCSR
	if r.Spec.SignerName == certificatesv1.KubeletServingSignerName {
		name, check = pki.KubeletCA, capi.ValidateKubeletServingCSR
		if r.Spec.Username != csr.Subject.CommonName {
			c.t.Errorf("%s asks for a certificate to serve as %s", r.Spec.Username, csr.Subject.CommonName)
		}
	}
	if err := check(csr, usages); err != nil {
		c.t.Errorf("upstream would refuse the request of %s: %v", name, err)
		return
	}
	pair, err := loadPair(c.pki.Dir, name)
	if err != nil {
		c.t.Error(err)
		return
	}
	ca := &authority.CertificateAuthority{Certificate: pair.Leaf, PrivateKey: pair.PrivateKey.(*ecdsa.PrivateKey)}
	now := c.now
	der, err := ca.Sign(csr.Raw, authority.PermissiveSigningPolicy{
		TTL: c.life, Usages: r.Spec.Usages, Backdate: pki.SignerBackdate, Short: 8 * time.Hour, Now: func() time.Time { return now },
	})
	if err != nil {
		c.t.Error(err)
		return
	}
	r.Status.Conditions = append(r.Status.Conditions, certificatesv1.CertificateSigningRequestCondition{Type: certificatesv1.CertificateApproved, Status: "True"})
	r.Status.Certificate = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func reply(w http.ResponseWriter, code int, object any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(object)
}

func refuse(w http.ResponseWriter, code int, reason metav1.StatusReason) {
	reply(w, code, metav1.Status{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: metav1.StatusFailure, Code: int32(code), Reason: reason, Message: string(reason),
	})
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	data, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, data, 0o600); err != nil {
		t.Fatal(err)
	}
}
