package control

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/cairn-os/cairn/pkg/pki"
)

// nodeOf returns the name of the node whose client certificate the request came with. The apiserver asks for
// certificates and takes any; what they are worth is decided here, as its own authentication would.
//
// The own node carries what is for pods and Services, and other servers' nodes do when it is down: their names count
// from where they are alone. An agent could have got a certificate for such a name before the name was a server's.
func (f *front) nodeOf(r *http.Request) (string, error) {
	c, err := f.verify(r)
	if err != nil {
		return "", err
	}
	node, ok := nodeIn(c)
	if !ok {
		return "", fmt.Errorf("client certificate: %q is not a node", c.Subject.CommonName)
	}
	from, local := ends(r)
	if node == f.node {
		if from.IsLoopback() || from == local && from.IsValid() || slices.Contains(f.addresses, from) {
			return node, nil
		}
		return "", fmt.Errorf("%s is this server's own node, and %v is not this machine", node, from)
	}
	if f.nodes == nil || !f.nodes.ready() {
		return "", errors.New("this server is starting")
	}
	if err := f.nodes.judge(r.Context(), node, c); err != nil {
		return "", err
	}
	if r, _ := f.nodes.record(node); f.nodes.isServer(node) && !slices.Contains(r.Addresses, from) {
		return "", fmt.Errorf("%s is a server, and %v is not one of its addresses, which are %v", node, from, r.Addresses)
	}
	return node, nil
}

// refused tells why a request with the client certificate of a node may not go on to Kubernetes, or nil: Kubernetes
// would take the certificate until it ends, also after the node was removed or its name went to another machine. While
// the records are not known, and for what is no certificate of this cluster, Kubernetes decides.
func (f *front) refused(r *http.Request) error {
	if f.nodes == nil || r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return nil
	}
	c := r.TLS.PeerCertificates[0]
	node, ok := nodeIn(c)
	if !ok || node == f.node || !f.nodes.ready() {
		return nil
	}
	if record, known := f.nodes.record(node); checkCertificate(record, known, node, c) == nil {
		return nil
	}
	if _, err := f.verify(r); err != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(r.Context(), askLimit)
	defer cancel()
	return f.nodes.judge(ctx, node, c)
}

// ends returns the addresses of both ends of a request's connection; invalid ones when they are not known.
func ends(r *http.Request) (from, local netip.Addr) {
	if ap, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
		from = ap.Addr().Unmap().WithZone("")
	}
	if a, ok := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr); ok {
		local = a.AddrPort().Addr().Unmap().WithZone("")
	}
	return from, local
}

// nodeIn returns whose certificate it is, as Kubernetes' node authorizer reads it.
func nodeIn(c *x509.Certificate) (string, bool) {
	node, ok := strings.CutPrefix(c.Subject.CommonName, pki.NodeUser(""))
	return node, ok && node != "" && slices.Contains(c.Subject.Organization, pki.NodeGroup)
}

// verify returns the client certificate of the request, which the authority of clients signed.
func (f *front) verify(r *http.Request) (*x509.Certificate, error) {
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return nil, errors.New("a node's client certificate is needed")
	}
	data, err := os.ReadFile(f.clientCA)
	if err != nil {
		return nil, fmt.Errorf("authority of clients: %w", err)
	}
	options := x509.VerifyOptions{
		Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(),
		CurrentTime: f.now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	if !options.Roots.AppendCertsFromPEM(data) {
		return nil, errors.New("authority of clients: no certificate")
	}
	for _, c := range r.TLS.PeerCertificates[1:] {
		options.Intermediates.AddCert(c)
	}
	c := r.TLS.PeerCertificates[0]
	if _, err := c.Verify(options); err != nil {
		return nil, fmt.Errorf("client certificate: %w", err)
	}
	return c, nil
}
