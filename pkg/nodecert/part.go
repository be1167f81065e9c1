package nodecert

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	"k8s.io/client-go/util/cert"

	"github.com/cairn-os/cairn/pkg/pki"
)

// part is one of the two certificates.
type part struct {
	name   string
	signer string // that the cluster knows it by
	// authority is the name of issuers, the first of which signs; the others are trusted as well while it is replaced.
	authority string
	issuers   []*x509.Certificate
	usages    []certificatesv1.KeyUsage
	extUsage  x509.ExtKeyUsage
	template  x509.CertificateRequest
	unknown   error // why the addresses in template are not known
}

func (o Options) subject() pkix.Name {
	return pkix.Name{CommonName: pki.NodeUser(o.Node), Organization: []string{pki.NodeGroup}}
}

func (o Options) clientPart() (part, error) {
	issuers, err := cert.CertsFromFile(pki.CertFile(o.Dir, pki.ClientCA))
	return part{
		name: pki.KubeletClient, signer: certificatesv1.KubeAPIServerClientKubeletSignerName, authority: pki.ClientCA, issuers: issuers,
		usages:   []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, certificatesv1.UsageClientAuth},
		extUsage: x509.ExtKeyUsageClientAuth,
		template: x509.CertificateRequest{Subject: o.subject()},
	}, err
}

func (o Options) servingPart() (part, error) {
	issuers, err := cert.CertsFromFile(pki.CertFile(o.Dir, pki.KubeletCA))
	p := part{
		name: pki.KubeletServer, signer: certificatesv1.KubeletServingSignerName, authority: pki.KubeletCA, issuers: issuers,
		usages:   []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, certificatesv1.UsageServerAuth},
		extUsage: x509.ExtKeyUsageServerAuth,
		template: x509.CertificateRequest{Subject: o.subject(), DNSNames: []string{o.Node}},
	}
	addresses, unknown := o.Addresses()
	if unknown == nil && len(addresses) == 0 {
		unknown = pki.ErrNoAddress
	}
	p.unknown = unknown
	addresses = slices.Clone(addresses)
	slices.SortFunc(addresses, netip.Addr.Compare)
	for _, a := range slices.Compact(addresses) {
		p.template.IPAddresses = append(p.template.IPAddresses, a.Unmap().AsSlice())
	}
	return p, err
}

// problem says why a certificate must be replaced, or "". A clock that is behind the certificate's begin is behind the
// cluster's.
func (p part) problem(c *x509.Certificate, now time.Time) string {
	if now.Before(c.NotBefore) {
		now = c.NotBefore
	}
	switch {
	case !p.issued(c):
		return "another authority signed it"
	case !pki.Current(p.issuers, c):
		return "another authority signs now"
	case !p.fits(c):
		return "it names another node"
	case !now.Before(c.NotAfter):
		return "it ended"
	case c.NotAfter.Sub(now) < pki.SignedLife(c)/3 && !p.asLongAsIssuer(c):
		return "it ends soon"
	case p.unknown == nil && !slices.EqualFunc(c.IPAddresses, p.template.IPAddresses, net.IP.Equal):
		return "the machine's addresses changed"
	}
	return ""
}

// valid reports whether the cluster would know who has the certificate.
func (p part) valid(c *x509.Certificate, now time.Time) bool {
	return p.issued(c) && p.fits(c) && now.Before(c.NotAfter)
}

// check refuses an answer that the kubelet could not use.
func (p part) check(answer []byte, key *ecdsa.PrivateKey, now time.Time) error {
	certs, err := cert.ParseCertsPEM(answer)
	if err != nil {
		return err
	}
	c := certs[0]
	switch {
	case !key.PublicKey.Equal(c.PublicKey):
		return errors.New("it is for another key")
	case !p.fits(c) || !slices.EqualFunc(c.IPAddresses, p.template.IPAddresses, net.IP.Equal):
		return fmt.Errorf("it is for %v, names %v, addresses %v", c.Subject, c.DNSNames, c.IPAddresses)
	case !p.issued(c):
		return fmt.Errorf("%v signed it, which is not the cluster this machine joined", c.Issuer)
	case !now.Before(c.NotAfter):
		return fmt.Errorf("it ended at %v by this machine's clock, which shows %v: set the clock",
			c.NotAfter.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	return nil
}

// fits compares all but the addresses, which may change.
func (p part) fits(c *x509.Certificate) bool {
	return c.Subject.CommonName == p.template.Subject.CommonName &&
		slices.Equal(c.Subject.Organization, p.template.Subject.Organization) &&
		slices.Equal(c.DNSNames, p.template.DNSNames) && slices.Contains(c.ExtKeyUsage, p.extUsage)
}

func (p part) issued(c *x509.Certificate) bool {
	return slices.ContainsFunc(p.issuers, func(i *x509.Certificate) bool { return c.CheckSignatureFrom(i) == nil })
}

// asLongAsIssuer reports whether no other certificate could last longer.
func (p part) asLongAsIssuer(c *x509.Certificate) bool {
	return slices.ContainsFunc(p.issuers, func(i *x509.Certificate) bool {
		return bytes.Equal(c.RawIssuer, i.RawSubject) && !c.NotAfter.Before(i.NotAfter)
	})
}
