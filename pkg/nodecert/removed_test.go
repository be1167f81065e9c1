package nodecert

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	certificatesv1 "k8s.io/api/certificates/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestAddressOfNAT reaches the server by an address that it does not know, and that is not in its certificate.
func TestAddressOfNAT(t *testing.T) {
	c := newCluster(t)
	outside, err := net.Listen("tcp", "127.0.0.2:0")
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(http.HandlerFunc(c.serve))
	_ = s.Listener.Close() // nothing was connected
	s.Listener, s.TLS = outside, &tls.Config{GetConfigForClient: c.server.TLS.GetConfigForClient}
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	s.StartTLS()
	t.Cleanup(s.Close)
	o := c.options()
	o.Server = "https://" + outside.Addr().String()
	ensure(t, o, clientFile, servingFile)
	c.verify(t)
}

// TestRemoved has a certificate for which the cluster gives no other, because the machine was removed: the question for a
// bootstrap certificate tells.
func TestRemoved(t *testing.T) {
	c := newCluster(t)
	o := c.options()
	ensure(t, o, clientFile, servingFile)
	c.made(t, 1, joining, self)
	c.pass(c.life * 3 / 4)
	c.ensure()
	c.answer = condition(certificatesv1.CertificateDenied, "CairnNode", "no machine joined with the name")
	removed := errors.New("was removed from the cluster")
	o.Bootstrap = func(context.Context) (tls.Certificate, error) { return tls.Certificate{}, removed }
	_, err := Ensure(t.Context(), o)
	if !errors.Is(err, removed) || !errors.Is(err, ErrDenied) || !strings.Contains(err.Error(), "no machine joined") {
		t.Errorf("Ensure = %v; want both reasons", err)
	}
	c.verify(t) // what it has stays
}

// TestRestored has a valid certificate that the cluster does not know any more, and needs one to serve with.
func TestRestored(t *testing.T) {
	c := newCluster(t)
	o := c.options()
	ensure(t, o, clientFile, servingFile)
	c.made(t, 1, joining, self)
	old, err := loadPair(c.dir, "kubelet-client")
	if err != nil {
		t.Fatal(err)
	}
	c.before = func(w http.ResponseWriter, r *http.Request) bool {
		if !r.TLS.PeerCertificates[0].Equal(old.Leaf) {
			return false
		}
		refuse(w, http.StatusUnauthorized, metav1.StatusReasonUnauthorized)
		return true
	}
	c.addrs = c.addrs[:1]
	ensure(t, o, clientFile, servingFile)
	c.verify(t)
	c.made(t, 1, joining, self)
}
