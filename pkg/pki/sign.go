package pki

import (
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"
)

// Request says what a certificate is for.
type Request struct {
	User      string   // becomes the common name
	Groups    []string // become the organizations
	Usages    []x509.ExtKeyUsage
	DNSNames  []string
	Addresses []netip.Addr
	Life      time.Duration    // 0: 365 days; the authority's end cuts it
	Floor     time.Time        // see Options
	Now       func() time.Time // nil: time.Now
}

func (r Request) template(issuer *x509.Certificate) *x509.Certificate {
	if r.Now == nil {
		r.Now = time.Now
	}
	if r.Life <= 0 {
		r.Life = leafLife
	}
	c := clock{r.Now, r.Floor}
	end := c.now().Add(r.Life)
	if end.After(issuer.NotAfter) {
		end = issuer.NotAfter
	}
	return &x509.Certificate{
		Subject:               pkix.Name{CommonName: r.User, Organization: r.Groups},
		NotBefore:             c.notBefore(),
		NotAfter:              end,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           r.Usages,
		BasicConstraintsValid: true,
		DNSNames:              unique(r.DNSNames),
		IPAddresses:           netIPs(r.Addresses),
	}
}

// SignerBackdate is how far the cluster's signer of CSRs lets certificates begin before it signs them; see
// PermissiveSigningPolicy of k8s.io/kubernetes/pkg/controller/certificates.
const SignerBackdate = 5 * time.Minute

// SignedLife is how long a certificate of that signer was meant to be valid from the time of its signing.
func SignedLife(c *x509.Certificate) time.Duration {
	all := c.NotAfter.Sub(c.NotBefore)
	if all > SignerBackdate {
		return all - SignerBackdate
	}
	return all
}

// Sign certifies the public key for what r says, with the authority's pair in dir, and returns the certificate as PEM,
// followed by the authority's cross certificate if it has one: whoever shows both is believed by those who do not know the
// authority yet.
// It takes nothing from the other side but the key: what the certificate says is the caller's to decide.
func Sign(dir, authority string, public crypto.PublicKey, r Request) ([]byte, error) {
	if r.User == "" || len(r.Usages) == 0 {
		return nil, fmt.Errorf("sign with %s: a certificate needs a user and a usage", authority)
	}
	issuer, err := loadIssuer(dir, authority)
	if err != nil {
		return nil, fmt.Errorf("sign with %s: %w", authority, err)
	}
	template := r.template(issuer.cert)
	if !template.NotBefore.Before(template.NotAfter) {
		return nil, fmt.Errorf("sign with %s: it ended at %v", authority, issuer.cert.NotAfter)
	}
	c, err := issue(template, issuer, public)
	if err != nil {
		return nil, fmt.Errorf("sign with %s for %s: %w", authority, r.User, err)
	}
	return encodeCerts(append([]*x509.Certificate{c}, issuer.chain...)), nil
}

// SignRequest is Sign for the key of a certificate request, whose sender must have shown that it has the private key.
// The names in the request are not looked at.
func SignRequest(dir, authority string, csr *x509.CertificateRequest, r Request) ([]byte, error) {
	if csr == nil {
		return nil, errors.New("sign: no certificate request")
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("sign with %s for %s: the request: %w", authority, r.User, err)
	}
	return Sign(dir, authority, csr.PublicKey, r)
}

// unique returns names sorted, each once.
func unique(names []string) []string {
	names = slices.Clone(names)
	slices.Sort(names)
	return slices.Compact(names)
}

// netIPs returns addresses sorted, each once, as certificates hold them.
func netIPs(addresses []netip.Addr) []net.IP {
	sorted := make([]netip.Addr, 0, len(addresses))
	for _, a := range addresses {
		sorted = append(sorted, a.Unmap().WithZone(""))
	}
	slices.SortFunc(sorted, netip.Addr.Compare)
	var ips []net.IP
	for _, a := range slices.Compact(sorted) {
		ips = append(ips, a.AsSlice())
	}
	return ips
}
