package pki

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"k8s.io/client-go/util/keyutil"
)

// ErrForeign says that something of the cluster lacks which only the server that founded it creates: another of the same
// name would split the cluster.
var ErrForeign = errors.New("missing, and only the cluster's first server may create it: " +
	"copy it from another server, or reset this machine and let it join again")

// all loads or creates the authorities and the service account key.
func (e *ensurer) all() error {
	for _, name := range Authorities() {
		if err := e.authority(name); err != nil {
			return fmt.Errorf("certificate authority %s: %w", name, err)
		}
	}
	if err := e.serviceAccountKey(); err != nil {
		return fmt.Errorf("service account key: %w", err)
	}
	return nil
}

// authority loads or creates an authority, and puts its certificate without the key where others may read it. Other
// certificates there stay, for they are of authorities to be trusted as well, before this one or after it: a power cut
// between the writes of Succeed leaves the one that signs in another place than the first.
func (e *ensurer) authority(name string) error {
	p, err := loadIssuer(e.Dir, name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if p, err = e.createAuthority(name); err != nil {
			return err
		}
	case err != nil:
		return err // never replaced: what it signed would become worthless
	}
	e.authorities[name] = p
	_, err = e.trusted(name, func(have []*x509.Certificate) []*x509.Certificate {
		return append([]*x509.Certificate{p.cert}, have...)
	})
	return err
}

func (e *ensurer) createAuthority(name string) (pair, error) {
	path := PairFile(e.Dir, name)
	if e.Joined {
		return pair{}, fmt.Errorf("%s: %w", path, ErrForeign)
	}
	// The pair is written before the certificate alone: with only that one there, the key existed and is lost.
	if _, err := os.Lstat(CertFile(e.Dir, name)); err == nil {
		return pair{}, fmt.Errorf("%s is lost, and a new one would not fit what it signed: restore it", path)
	}
	return e.create(name, e.authorityTemplate(name, e.clock().now()), nil)
}

// authorityTemplate is an authority's certificate that begins now. The time in its name makes it another than its
// predecessor's.
func (o Options) authorityTemplate(name string, begin time.Time) *x509.Certificate {
	return &x509.Certificate{
		Subject:               pkix.Name{CommonName: fmt.Sprintf("cairn-%s@%d", name, begin.Unix())},
		NotBefore:             o.clock().notBefore(),
		NotAfter:              begin.Add(authorityLife),
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
}

func (e *ensurer) serviceAccountKey() error {
	path := ServiceAccountKey(e.Dir)
	_, err := keyutil.PrivateKeyFromFile(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if e.Joined {
		return fmt.Errorf("%s: %w", path, ErrForeign)
	}
	key, err := newKey()
	if err != nil {
		return err
	}
	data, err := keyutil.MarshalPrivateKeyToPEM(key)
	if err != nil {
		return err
	}
	return e.write(filepath.Base(path), data, 0o600)
}
