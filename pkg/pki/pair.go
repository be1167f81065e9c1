package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"

	"k8s.io/client-go/util/cert"
	"k8s.io/client-go/util/keyutil"
)

// pair is a certificate and its key.
type pair struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	// chain follows the certificate in a leaf's file. That of an authority follows each leaf it signs.
	chain []*x509.Certificate
}

// file is the content of the pair's file.
func (p pair) file() ([]byte, error) {
	return EncodePair(encodeCerts(append([]*x509.Certificate{p.cert}, p.chain...)), p.key)
}

func newKey() (*ecdsa.PrivateKey, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }

// issue signs template for the public key with the issuer.
func issue(template *x509.Certificate, issuer pair, public crypto.PublicKey) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	template.SerialNumber = serial.Add(serial, big.NewInt(1))
	der, err := x509.CreateCertificate(rand.Reader, template, issuer.cert, public, issuer.key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

func encodeCert(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: cert.CertificateBlockType, Bytes: c.Raw})
}

func encodeCerts(all []*x509.Certificate) []byte {
	var data []byte
	for _, c := range all {
		data = append(data, encodeCert(c)...)
	}
	return data
}

// EncodePair returns the content of a pair's file: the certificates, which are PEM already, and their key.
func EncodePair(certs []byte, key *ecdsa.PrivateKey) ([]byte, error) {
	data, err := keyutil.MarshalPrivateKeyToPEM(key)
	if err != nil {
		return nil, fmt.Errorf("encode private key: %w", err)
	}
	return append(append([]byte(nil), certs...), data...), nil
}

// load reads a file of a certificate and its key, and checks that they fit.
func load(path string) (pair, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return pair{}, err
	}
	p, err := parsePair(data, data)
	if err != nil {
		return pair{}, fmt.Errorf("%s: %w", path, err)
	}
	return p, nil
}

// parsePair reads a certificate, what follows it, and its key, all PEM.
func parsePair(certificates, private []byte) (pair, error) {
	certs, err := cert.ParseCertsPEM(certificates)
	if err != nil {
		return pair{}, err
	}
	parsed, err := keyutil.ParsePrivateKeyPEM(private)
	if err != nil {
		return pair{}, err
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || !key.PublicKey.Equal(certs[0].PublicKey) {
		return pair{}, errors.New("the key is not the certificate's")
	}
	return pair{certs[0], key, certs[1:]}, nil
}

// loadIssuer reads an authority with its key, and the cross certificate that goes with what it signs.
func loadIssuer(dir, name string) (pair, error) {
	p, err := load(PairFile(dir, name))
	if err != nil {
		return pair{}, err
	}
	p.chain = crossOf(dir, name, p.cert)
	return p, nil
}

// loadCert reads the first certificate of a file.
func loadCert(path string) (*x509.Certificate, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	certs, err := cert.ParseCertsPEM(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return certs[0], nil
}
