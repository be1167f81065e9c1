// Package pki creates and renews the certificates of a server: the cluster's authorities, the service account key and
// one leaf for each component.
//
// Every certificate shares a file with its key, so that one atomic write makes a pair that always fits: a power cut
// between two writes leaves complete files, and the next Ensure creates the ones that lack. Authorities and the service
// account key are never replaced, because what they signed would become worthless; leaves are, whenever they no longer
// serve. The Kubernetes components reread these files, so a renewal needs no restart.
package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"k8s.io/client-go/util/cert"
	"k8s.io/client-go/util/keyutil"

	"github.com/cairn-os/cairn/pkg/atomicfile"
)

const (
	authorityLife = 10 * 365 * 24 * time.Hour
	leafLife      = 365 * 24 * time.Hour
	// backdate is how far certificates begin before the earliest correct time, for peers whose clocks are behind.
	backdate = 24 * time.Hour
)

// Options say where the certificates are and what they are for.
type Options struct {
	Dir       string       // holds all files; created with mode 0700
	Node      string       // name of the node
	Addresses []netip.Addr // of the node; what the apiserver's and the kubelet's certificates are valid for
	SANs      []string     // further names and addresses of the apiserver
	ServiceIP netip.Addr   // of the Service default/kubernetes

	// Floor is the earliest time that a correct clock can show, such as the release's build time. Boards without a
	// battery start in 1970: certificates created then must be valid once the clock is right.
	Floor time.Time
	Now   func() time.Time                                    // nil: time.Now
	Write func(name string, data []byte, m fs.FileMode) error // nil: atomicfile.Write
}

func (o Options) withDefaults() Options {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Write == nil {
		o.Write = atomicfile.Write
	}
	return o
}

// now is the clock's time, or Floor while the clock is behind it.
func (o Options) now() time.Time {
	if now := o.Now(); now.After(o.Floor) {
		return now
	}
	return o.Floor
}

// notBefore is when certificates created now begin to be valid. It does not trust a clock that is ahead.
func (o Options) notBefore() time.Time {
	start := o.now()
	if !o.Floor.IsZero() && o.Floor.Before(start) {
		start = o.Floor
	}
	return start.Add(-backdate)
}

// Ensure creates what lacks and renews the leaves that expire soon, or whose names or authority changed. It returns the
// names of the files that it wrote. It may run at any time and any number of times.
func Ensure(o Options) (written []string, err error) {
	o = o.withDefaults()
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("create certificates: %w", err)
	}
	e := &ensurer{Options: o, authorities: make(map[string]pair)}
	for _, name := range []string{ServerCA, ClientCA, RequestHeaderCA} {
		if err := e.authority(name); err != nil {
			return e.written, fmt.Errorf("certificate authority %s: %w", name, err)
		}
	}
	if err := e.serviceAccountKey(); err != nil {
		return e.written, fmt.Errorf("service account key: %w", err)
	}
	for _, l := range leaves(o) {
		if err := e.leaf(l); err != nil {
			return e.written, fmt.Errorf("certificate %s: %w", l.name, err)
		}
	}
	return e.written, nil
}

type pair struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

type ensurer struct {
	Options
	authorities map[string]pair
	written     []string
}

func (e *ensurer) write(name string, data []byte, mode fs.FileMode) error {
	if err := e.Write(filepath.Join(e.Dir, name), data, mode); err != nil {
		return err
	}
	e.written = append(e.written, name)
	return nil
}

// authority loads or creates an authority, and puts its certificate without the key where others may read it.
func (e *ensurer) authority(name string) error {
	p, err := load(PairFile(e.Dir, name))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if p, err = e.createAuthority(name); err != nil {
			return err
		}
	case err != nil:
		return err // never replaced: what it signed would become worthless
	}
	e.authorities[name] = p
	public := encodeCert(p.cert)
	if have, err := os.ReadFile(CertFile(e.Dir, name)); err == nil && string(have) == string(public) {
		return nil
	}
	return e.write(filepath.Base(CertFile(e.Dir, name)), public, 0o644)
}

func (e *ensurer) createAuthority(name string) (pair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return pair{}, err
	}
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: fmt.Sprintf("cairn-%s@%d", name, e.now().Unix())},
		NotBefore:             e.notBefore(),
		NotAfter:              e.now().Add(authorityLife),
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	return e.create(name, template, pair{template, key}, key)
}

// create signs template for key with the issuer and writes both.
func (e *ensurer) create(name string, template *x509.Certificate, issuer pair, key *ecdsa.PrivateKey) (pair, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return pair{}, err
	}
	template.SerialNumber = serial.Add(serial, big.NewInt(1))
	der, err := x509.CreateCertificate(rand.Reader, template, issuer.cert, key.Public(), issuer.key)
	if err != nil {
		return pair{}, err
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return pair{}, err
	}
	keyPEM, err := keyutil.MarshalPrivateKeyToPEM(key)
	if err != nil {
		return pair{}, err
	}
	if err := e.write(filepath.Base(PairFile(e.Dir, name)), append(encodeCert(c), keyPEM...), 0o600); err != nil {
		return pair{}, err
	}
	return pair{c, key}, nil
}

func (e *ensurer) serviceAccountKey() error {
	_, err := keyutil.PrivateKeyFromFile(ServiceAccountKey(e.Dir))
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	data, err := keyutil.MarshalPrivateKeyToPEM(key)
	if err != nil {
		return err
	}
	return e.write(filepath.Base(ServiceAccountKey(e.Dir)), data, 0o600)
}

func encodeCert(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: cert.CertificateBlockType, Bytes: c.Raw})
}

// load reads a file of a certificate and its key, and checks that they fit.
func load(path string) (pair, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return pair{}, err
	}
	certs, err := cert.ParseCertsPEM(data)
	if err != nil {
		return pair{}, fmt.Errorf("%s: %w", path, err)
	}
	parsed, err := keyutil.ParsePrivateKeyPEM(data)
	if err != nil {
		return pair{}, fmt.Errorf("%s: %w", path, err)
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || !key.PublicKey.Equal(certs[0].PublicKey) {
		return pair{}, fmt.Errorf("%s: the key is not the certificate's", path)
	}
	return pair{certs[0], key}, nil
}
