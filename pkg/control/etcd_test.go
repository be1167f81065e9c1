package control

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log/slog"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.etcd.io/etcd/server/v3/embed"

	"github.com/cairn-os/cairn/pkg/store/storetest/etcdtest"
)

func TestEtcdArguments(t *testing.T) {
	o := testOptions()
	o.Etcd = Etcd{Servers: []string{"https://a:2379", "https://b:2379"}, CAFile: "/ca", CertFile: "/cert", KeyFile: "/key"}
	var got []string
	for _, a := range o.apiserverArguments() {
		if strings.HasPrefix(a, "--etcd") {
			got = append(got, a)
		}
	}
	want := []string{"--etcd-servers=https://a:2379,https://b:2379", "--etcd-cafile=/ca", "--etcd-certfile=/cert", "--etcd-keyfile=/key"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// TestEtcdProbe asks real etcd servers, with and without TLS, and what is not one.
func TestEtcdProbe(t *testing.T) {
	certificates := newCertificates(t)
	plain := startEtcd(t, nil)
	secure := startEtcd(t, certificates)
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	closed := "127.0.0.1:" + freePort(t)
	with := func(servers ...string) Etcd {
		return Etcd{Servers: servers, CAFile: certificates.ca, CertFile: certificates.cert, KeyFile: certificates.key}
	}
	stranger := newCertificates(t)
	for _, tt := range []struct {
		name string
		etcd Etcd
		want string // "" or the message; a * at its end stands for what differs between releases of Go
	}{
		{"plain", Etcd{Servers: []string{plain}}, ""},
		{"TLS", with(secure), ""},
		{"one of two", with("https://"+closed, secure), ""},
		{"closed", Etcd{Servers: []string{"http://" + closed}},
			"etcd at http://" + closed + ": not reachable: connect: connection refused; check that it runs and that no firewall is in between"},
		{"two closed", Etcd{Servers: []string{"http://" + closed, "https://" + closed}},
			"etcd at http://" + closed + ": not reachable: connect: connection refused; check that it runs and that no firewall is in between; " +
				"etcd at https://" + closed + ": not reachable: connect: connection refused; check that it runs and that no firewall is in between"},
		{"no certificate", Etcd{Servers: []string{secure}, CAFile: certificates.ca},
			"etcd at " + secure + ": TLS: remote error: tls: certificate required; check cert_file and key_file"},
		{"another's certificate", Etcd{Servers: []string{secure}, CAFile: certificates.ca, CertFile: stranger.cert, KeyFile: stranger.key},
			"etcd at " + secure + ": TLS: remote error: tls: *"},
		{"another authority", Etcd{Servers: []string{secure}, CAFile: stranger.ca},
			"etcd at " + secure + ": TLS: tls: failed to verify certificate: x509: certificate signed by unknown authority*"},
		{"not TLS", with(strings.Replace(plain, "http:", "https:", 1)),
			"etcd at " + strings.Replace(plain, "http:", "https:", 1) + ": TLS: EOF; check ca_file*"},
		{"no such file", Etcd{Servers: []string{secure}, CAFile: "/none.pem"}, "cairn.datastore.ca_file: open /none.pem: no such file or directory"},
		{"silence", Etcd{Servers: []string{"http://" + silent.Addr().String()}},
			"etcd at http://" + silent.Addr().String() + ": no answer within 5s; see whether the cluster has a quorum (etcdctl endpoint health)"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := ""
			if err := tt.etcd.probe(t.Context()); err != nil {
				got = err.Error()
			}
			if want, open := strings.CutSuffix(tt.want, "*"); got != want && !(open && strings.HasPrefix(got, want)) {
				t.Error(cmp.Diff(tt.want, got))
			}
		})
	}
}

// TestEtcdAwait waits for a cluster that comes later, and says so once.
func TestEtcdAwait(t *testing.T) {
	port := freePort(t)
	said := make(chan string, 10)
	var logged bytes.Buffer
	ended := make(chan error, 1)
	e := Etcd{Servers: []string{"http://127.0.0.1:" + port}}
	go func() {
		ended <- e.await(t.Context(), slog.New(slog.NewTextHandler(&logged, nil)), func(m string) { said <- m })
	}()
	if m := <-said; !strings.HasPrefix(m, "waiting for the datastore: etcd at http://127.0.0.1:"+port+": not reachable") {
		t.Errorf("said %q", m)
	}
	startEtcdAt(t, nil, port)
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("still waiting 30s after etcd came")
	}
	if n := strings.Count(logged.String(), "level=ERROR"); n != 1 {
		t.Errorf("%d errors in the log; want 1:\n%s", n, logged.String())
	}
	stopped, cancel := context.WithCancel(t.Context())
	cancel()
	if err := (Etcd{Servers: []string{"http://127.0.0.1:1"}}).await(stopped, slog.New(slog.DiscardHandler), func(string) {}); err == nil {
		t.Error("await ends without an error when asked to stop before there was a cluster")
	}
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

func startEtcd(t *testing.T, c *certificates) string { return startEtcdAt(t, c, freePort(t)) }

// startEtcdAt starts an etcd for the test, which asks clients for a certificate when it has one itself.
func startEtcdAt(t *testing.T, c *certificates, port string) string {
	t.Helper()
	client := url.URL{Scheme: "http", Host: "127.0.0.1:" + port}
	etcdtest.Start(t, t.TempDir(), func(cfg *embed.Config) {
		if c != nil {
			client.Scheme = "https"
			cfg.ClientTLSInfo.CertFile, cfg.ClientTLSInfo.KeyFile = c.cert, c.key
			cfg.ClientTLSInfo.TrustedCAFile, cfg.ClientTLSInfo.ClientCertAuth = c.ca, true
		}
		cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	})
	return client.String()
}

// certificates are files of an authority and of a certificate for 127.0.0.1.
type certificates struct{ ca, cert, key string }

func newCertificates(t *testing.T) *certificates {
	t.Helper()
	dir := t.TempDir()
	write := func(name, kind string, der []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	template := func(serial int64) *x509.Certificate {
		return &x509.Certificate{
			SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "etcd"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
			IsCA: serial == 1, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		}
	}
	var keys []*ecdsa.PrivateKey
	for range 2 {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, key)
	}
	authority, leaf := template(1), template(2)
	sign := func(of *x509.Certificate, key *ecdsa.PrivateKey) []byte {
		der, err := x509.CreateCertificate(rand.Reader, of, authority, &key.PublicKey, keys[0])
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	secret, err := x509.MarshalPKCS8PrivateKey(keys[1])
	if err != nil {
		t.Fatal(err)
	}
	return &certificates{
		ca:   write("ca.pem", "CERTIFICATE", sign(authority, keys[0])),
		cert: write("cert.pem", "CERTIFICATE", sign(leaf, keys[1])),
		key:  write("key.pem", "PRIVATE KEY", secret),
	}
}
