package pki

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"k8s.io/client-go/util/cert"
)

// trusted rewrites the certificates in an authority's CertFile to what edit makes of those there, each once, and reports
// whether they changed. Of a file that lacks or is damaged edit gets none: the pair has what matters.
func (e *ensurer) trusted(name string, edit func([]*x509.Certificate) []*x509.Certificate) (changed bool, err error) {
	path := CertFile(e.Dir, name)
	data, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	have, err := cert.ParseCertsPEM(data)
	if err != nil {
		have = nil
	}
	want := encodeCerts(roots(edit(have)))
	if bytes.Equal(data, want) {
		return false, nil
	}
	return true, e.write(filepath.Base(path), want, 0o644)
}

// roots returns those of the certificates that are authorities and signed by themselves, each once. Some clients take any
// certificate in such a file for a root, others none but these.
func roots(all []*x509.Certificate) []*x509.Certificate {
	var kept []*x509.Certificate
	for _, c := range all {
		if c.IsCA && c.CheckSignatureFrom(c) == nil && !slices.ContainsFunc(kept, c.Equal) {
			kept = append(kept, c)
		}
	}
	return kept
}

// crossOf returns the cross certificate in dir for the authority, or nothing: what is damaged, or of another key because
// the power was cut before the key was replaced, does not count.
func crossOf(dir, name string, authority *x509.Certificate) []*x509.Certificate {
	c, err := loadCert(CrossFile(dir, name))
	if err != nil || !crosses(c, authority) {
		return nil
	}
	return []*x509.Certificate{c}
}

// crosses reports whether c is a certificate of the authority that another one signed.
func crosses(c, authority *x509.Certificate) bool {
	key, ok := c.PublicKey.(*ecdsa.PublicKey)
	return ok && c.IsCA && key.Equal(authority.PublicKey) && bytes.Equal(c.RawSubject, authority.RawSubject) && !bytes.Equal(c.RawIssuer, c.RawSubject)
}

// WithCross returns the certificate, which is PEM, followed by the cross certificate in dir of the authority that signed
// it, if there is one. It is for a certificate that was signed elsewhere than by Sign.
func WithCross(dir, authority string, certificate []byte) ([]byte, error) {
	certs, err := cert.ParseCertsPEM(certificate)
	if err != nil {
		return nil, fmt.Errorf("certificate: %w", err)
	}
	c, err := loadCert(CrossFile(dir, authority))
	if err != nil || certs[0].CheckSignatureFrom(c) != nil || slices.ContainsFunc(certs, c.Equal) {
		return certificate, nil
	}
	return append(slices.Clone(certificate), encodeCert(c)...), nil
}

// Current reports whether a leaf is by the first of the authorities that are trusted, which is the one that signs, or by
// one that is to succeed it. Another leaf must be replaced before the authority that signed it is retired.
func Current(trusted []*x509.Certificate, leaf *x509.Certificate) bool {
	return slices.ContainsFunc(trusted, func(c *x509.Certificate) bool {
		// A successor ends later; see Successors. Not all machines hear of a stage at one moment.
		return leaf.CheckSignatureFrom(c) == nil && (c.Equal(trusted[0]) || c.NotAfter.After(trusted[0].NotAfter))
	})
}
