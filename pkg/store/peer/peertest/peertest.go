// Package peertest issues certificates for tests of what speaks through
// package peer: good ones, and such as must be refused.
package peertest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"time"

	"github.com/cairn-os/cairn/pkg/atomicfile"
	"github.com/cairn-os/cairn/pkg/store/peer"
)

// CA is an authority for one cluster of a test.
type CA struct {
	File string // its certificate
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// NewCA makes an authority that is valid for some days around now and writes
// ca.crt to dir, which is created.
func NewCA(dir string) (*CA, error) {
	now := time.Now()
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: "cairn-store-test " + rand.Text()}, // Authorities are told apart by name.
		NotBefore:             now.Add(-100 * 24 * time.Hour),
		NotAfter:              now.Add(100 * 24 * time.Hour),
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	ca := &CA{File: filepath.Join(dir, "ca.crt")}
	der, key, err := create(template, nil)
	if err != nil {
		return nil, fmt.Errorf("test CA: %w", err)
	}
	ca.key = key
	if ca.cert, err = x509.ParseCertificate(der); err != nil {
		return nil, fmt.Errorf("test CA: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	return ca, atomicfile.Write(ca.File, encode("CERTIFICATE", der), 0o644)
}

// Option changes a certificate before it is signed.
type Option func(*x509.Certificate)

// Valid sets the period.
func Valid(from, to time.Time) Option {
	return func(c *x509.Certificate) { c.NotBefore, c.NotAfter = from, to }
}

// Names sets the DNS names; none leaves out the one that makes a member.
func Names(names ...string) Option {
	return func(c *x509.Certificate) { c.DNSNames = names }
}

// Witness makes it a witness's.
func Witness() Option {
	return func(c *x509.Certificate) { c.Subject.Organization = []string{peer.WitnessOrganization} }
}

// Usage sets what the certificate is for.
func Usage(usage ...x509.ExtKeyUsage) Option {
	return func(c *x509.Certificate) { c.ExtKeyUsage = usage }
}

// Issue makes a certificate for the node of that name. It writes NAME.crt and NAME.key to dir, which is created, or replaces
// them: the key first, so a reader in between finds a pair that does not fit.
func (ca *CA) Issue(dir, name string, options ...Option) (peer.Credentials, error) {
	now := time.Now()
	template := &x509.Certificate{
		Subject:     pkix.Name{CommonName: name},
		NotBefore:   now.Add(-time.Hour),
		NotAfter:    now.Add(24 * time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		DNSNames:    []string{peer.ServerName},
	}
	for _, o := range options {
		o(template)
	}
	fail := func(err error) (peer.Credentials, error) {
		return peer.Credentials{}, fmt.Errorf("test certificate %s: %w", name, err)
	}
	der, key, err := create(template, ca)
	if err != nil {
		return fail(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fail(err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fail(err)
	}
	c := peer.Credentials{CA: ca.File, Certificate: filepath.Join(dir, name+".crt"), Key: filepath.Join(dir, name+".key")}
	if err := atomicfile.Write(c.Key, encode("PRIVATE KEY", keyDER), 0o600); err != nil {
		return fail(err)
	}
	if err := atomicfile.Write(c.Certificate, encode("CERTIFICATE", der), 0o644); err != nil {
		return fail(err)
	}
	return c, nil
}

// create makes a key and signs template for it; without ca, by itself.
func create(template *x509.Certificate, ca *CA) ([]byte, *ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	if template.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127)); err != nil {
		return nil, nil, err
	}
	parent, signer := template, key
	if ca != nil {
		parent, signer = ca.cert, ca.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	return der, key, err
}

func encode(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}
