package peer

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"time"
)

// ServerName is the DNS name in the certificate of every member. It says what
// the certificate is for, not where the member is.
const ServerName = "cairn-store"

// Credentials are paths of PEM files, read again when they change. Certificate
// and Key may be one file.
type Credentials struct {
	CA          string // one or more certificates of authorities
	Certificate string // the member's own, for client and server, with the DNS name ServerName
	Key         string // mode 0600 or less
}

func (c Credentials) files() [3]string { return [3]string{c.CA, c.Certificate, c.Key} }

// material is what the files held at one time. It does not change.
type material struct {
	roots *x509.CertPool
	pair  tls.Certificate
	leaf  *x509.Certificate
}

// keychain holds the material in use.
type keychain struct {
	files Credentials
	log   *slog.Logger
	notes *limiter

	mu      sync.Mutex // guards the following
	current *material
	seen    [3]fs.FileInfo // of the files when current was read
}

func newKeychain(c Credentials, log *slog.Logger, notes *limiter) (*keychain, error) {
	seen, err := stat(c)
	if err != nil {
		return nil, err
	}
	m, err := load(c)
	if err != nil {
		return nil, err
	}
	return &keychain{files: c, log: log, notes: notes, current: m, seen: seen}, nil
}

// get returns the material, read anew if a file changed. While the files
// cannot be used, because they are being replaced or are broken, the old
// material stays, and each call tries again.
func (k *keychain) get() *material {
	k.mu.Lock()
	defer k.mu.Unlock()
	// Looked at before they are read, so a change in between is seen next time.
	seen, err := stat(k.files)
	if err == nil && same(seen, k.seen) {
		return k.current
	}
	var m *material
	if err == nil {
		m, err = load(k.files)
	}
	if err != nil {
		if _, ok := k.notes.allow("credentials"); ok {
			k.log.Warn("store: changed certificate files cannot be used; the old ones stay in use", "error", err)
		}
		return k.current
	}
	k.current, k.seen = m, seen
	k.log.Info("store: certificate was read again", "file", k.files.Certificate, "subject", m.leaf.Subject.String(), "until", m.leaf.NotAfter)
	return m
}

func stat(c Credentials) (infos [3]fs.FileInfo, err error) {
	for i, path := range c.files() {
		if infos[i], err = os.Stat(path); err != nil {
			return infos, fmt.Errorf("store certificates: %w", err)
		}
	}
	return infos, nil
}

func same(a, b [3]fs.FileInfo) bool {
	for i := range a {
		if !os.SameFile(a[i], b[i]) || a[i].Size() != b[i].Size() || !a[i].ModTime().Equal(b[i].ModTime()) {
			return false
		}
	}
	return true
}

// load reads the files and checks all that does not depend on the time: a
// machine whose clock is not set yet must come to work once it is.
func load(c Credentials) (*material, error) {
	ca, err := os.ReadFile(c.CA)
	if err != nil {
		return nil, fmt.Errorf("store CA: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca) {
		return nil, fmt.Errorf("store CA %s: no certificate in it that can be read", c.CA)
	}
	cert, err := os.ReadFile(c.Certificate)
	if err != nil {
		return nil, fmt.Errorf("store certificate: %w", err)
	}
	key, err := readKey(c.Key)
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("store certificate %s with key %s: %w", c.Certificate, c.Key, err)
	}
	m := &material{roots: roots, pair: pair, leaf: pair.Leaf}
	return m, m.fits(c)
}

func readKey(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("store key: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("store key: %w", err)
	}
	if perm := info.Mode().Perm(); perm&^0o600 != 0 {
		return nil, fmt.Errorf("store key %s: mode %04o lets others read it: chmod 600 it, and issue a new one if others could log in", path, perm)
	}
	data := make([]byte, info.Size())
	n, err := f.ReadAt(data, 0)
	if n < len(data) {
		return nil, fmt.Errorf("store key %s: %w", path, err)
	}
	return data, nil
}

// fits checks that other members would accept the certificate on some day.
func (m *material) fits(c Credentials) error {
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth} {
		err := m.verify(time.Now(), usage)
		if outOfDate(err) {
			err = m.verify(m.leaf.NotAfter, usage)
		}
		if err != nil && !outOfDate(err) {
			return fmt.Errorf("store certificate %s (%s): members with the CA %s would refuse it: %w", c.Certificate, m.leaf.Subject, c.CA, explain(err))
		}
	}
	return nil
}

func (m *material) verify(now time.Time, usage x509.ExtKeyUsage) error {
	intermediates := x509.NewCertPool()
	for _, der := range m.pair.Certificate[1:] {
		if c, err := x509.ParseCertificate(der); err == nil {
			intermediates.AddCert(c)
		}
	}
	_, err := m.leaf.Verify(x509.VerifyOptions{
		DNSName: ServerName, Roots: m.roots, Intermediates: intermediates, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{usage},
	})
	return err
}

// dates says that the certificate is not valid now.
func (m *material) dates(c Credentials, now time.Time) error {
	if now.Before(m.leaf.NotBefore) || now.After(m.leaf.NotAfter) {
		return fmt.Errorf("store certificate %s (%s) is valid %s: check this machine's clock, or renew the certificate",
			c.Certificate, m.leaf.Subject, period(m.leaf, now))
	}
	return nil
}

func period(c *x509.Certificate, now time.Time) string {
	return fmt.Sprintf("from %s to %s, and it is %s now", c.NotBefore.UTC().Format(time.RFC3339), c.NotAfter.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
}

func outOfDate(err error) bool {
	var invalid x509.CertificateInvalidError
	return errors.As(err, &invalid) && invalid.Reason == x509.Expired
}

// explain says what to do about a certificate that was refused.
func explain(err error) error {
	var (
		invalid x509.CertificateInvalidError
		unknown x509.UnknownAuthorityError
		host    x509.HostnameError
	)
	switch {
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return fmt.Errorf("the certificate (%s) is valid %s: check the clocks of both machines, or renew the certificate: %w",
			invalid.Cert.Subject, period(invalid.Cert, time.Now()), err)
	case errors.As(err, &invalid) && invalid.Reason == x509.IncompatibleUsage:
		return fmt.Errorf("the certificate (%s) is not for both client and server: %w", invalid.Cert.Subject, err)
	case errors.As(err, &unknown) && unknown.Cert != nil:
		return fmt.Errorf("the certificate (%s) is not of this store's CA: is it a member of another cluster?: %w", unknown.Cert.Subject, err)
	case errors.As(err, &host):
		return fmt.Errorf("the certificate (%s) is not a store member's, it lacks the DNS name %s: %w", host.Certificate.Subject, ServerName, err)
	}
	return err
}

// server is the configuration for a connection that was accepted.
func (m *material) server(protocols []string) *tls.Config {
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{m.pair},
		ClientAuth:   tls.RequireAndVerifyClientCert,
		ClientCAs:    m.roots,
		NextProtos:   protocols,
		// A resumed session would outlive its certificate.
		SessionTicketsDisabled: true,
		VerifyConnection: func(s tls.ConnectionState) error {
			if s.NegotiatedProtocol == "" {
				return fmt.Errorf("%w: the dialer names none", ErrProtocol)
			}
			return s.PeerCertificates[0].VerifyHostname(ServerName)
		},
	}
}

// client is the configuration for a connection that is dialed.
func (m *material) client(protocol string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		// Certificates would be left out for an acceptor with another CA, which
		// would then complain of a missing one instead of a foreign one.
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &m.pair, nil },
		RootCAs:              m.roots,
		ServerName:           ServerName,
		NextProtos:           []string{protocol},
		VerifyConnection: func(s tls.ConnectionState) error {
			if s.NegotiatedProtocol != protocol {
				return fmt.Errorf("%w: asked for %q, got %q", ErrProtocol, protocol, s.NegotiatedProtocol)
			}
			return nil
		},
	}
}
