package external

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// certify gives the server a certificate for its address, and ca.pem, with which
// it is verified, to the test.
func (d *database) certify(t *testing.T) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	of := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, of, of, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	d.write(t, "cert.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	d.write(t, "key.pem", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})))
	if err := os.Chmod(filepath.Join(d.dir, "key.pem"), 0o600); err != nil {
		t.Fatal(err)
	}
}

// verified connects with the certificate that the server has, and with another.
func verified(t *testing.T, d *database) {
	stranger := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(stranger, []byte(authority), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ ca, host, want string }{
		{filepath.Join(d.dir, "cert.pem"), "127.0.0.1", ""},
		{stranger, "127.0.0.1", "the server's certificate is not trusted: x509: certificate signed by unknown authority"},
		{filepath.Join(d.dir, "cert.pem"), "localhost", "the server's certificate is not trusted: x509: certificate is not valid for any names, but wanted to match localhost"},
	} {
		at := strings.Replace(d.address, "127.0.0.1", tt.host, 1)
		e, err := Config{Endpoint: d.with(password, at), CAFile: tt.ca}.parse()
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		if err := e.probe(t.Context()); err != nil {
			got = strings.TrimPrefix(err.Error(), e.String()+": ")
		}
		want := tt.want
		if want != "" {
			want += "; check ca_file, and that the endpoint names the host as the certificate does"
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("with %s, to %s: %s", filepath.Base(tt.ca), tt.host, diff)
		}
	}
	// And once the whole way, which goes by kine's own reading of the endpoint.
	c := connect(t, serveConfig(t, Config{Endpoint: d.url(), CAFile: filepath.Join(d.dir, "cert.pem")}, slog.New(slog.DiscardHandler)).socket)
	if _, err := c.Put(t.Context(), "/t/a", "1"); err != nil {
		t.Error(err)
	}
}
