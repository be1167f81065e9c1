package nodecert

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io/fs"
	"os"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/util/cert"

	"github.com/cairn-os/cairn/pkg/pki"
)

// rotation brings the cluster to the stages of a replacement of its authorities. The agent follows when told to.
type rotation struct {
	*cluster
	all []pki.Successor
	old map[string]*x509.Certificate
}

func newRotation(t *testing.T) (*rotation, Options) {
	t.Helper()
	c := &rotation{cluster: newCluster(t), old: map[string]*x509.Certificate{}}
	o := c.options()
	o.Lock = new(sync.Mutex)
	ensure(t, o, clientFile, servingFile)
	c.made(t, 1, joining, self)
	var err error
	if c.all, err = pki.Successors(c.pki); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{pki.ClientCA, pki.KubeletCA} {
		certs, err := cert.CertsFromFile(pki.CertFile(c.pki.Dir, name))
		if err != nil {
			t.Fatal(err)
		}
		c.old[name] = certs[0]
	}
	return c, o
}

func (c *rotation) bring(stages ...func(pki.Options, []pki.Successor) (bool, error)) {
	c.t.Helper()
	for _, stage := range stages {
		if _, err := stage(c.pki, c.all); err != nil {
			c.t.Fatal(err)
		}
	}
}

// follow gives the agent what the servers have.
func (c *rotation) follow() {
	c.t.Helper()
	for _, name := range []string{pki.ServerCA, pki.ClientCA, pki.KubeletCA} {
		copyFile(c.t, pki.CertFile(c.pki.Dir, name), pki.CertFile(c.dir, name))
		if _, err := os.Stat(pki.CrossFile(c.pki.Dir, name)); errors.Is(err, fs.ErrNotExist) || name == pki.ServerCA {
			continue
		}
		copyFile(c.t, pki.CrossFile(c.pki.Dir, name), pki.CrossFile(c.dir, name))
	}
}

// shown checks that who trusts the authorities of before believes what the agent shows, and whether the new ones signed it.
func (c *rotation) shown(t *testing.T, succeeded bool) {
	t.Helper()
	for name, issuer := range map[string]string{pki.KubeletClient: pki.ClientCA, pki.KubeletServer: pki.KubeletCA} {
		certs, err := cert.CertsFromFile(pki.PairFile(c.dir, name))
		if err != nil {
			t.Fatal(err)
		}
		o := x509.VerifyOptions{Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(), CurrentTime: c.clock(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}
		o.Roots.AddCert(c.old[issuer])
		for _, between := range certs[1:] {
			o.Intermediates.AddCert(between)
		}
		if _, err := certs[0].Verify(o); err != nil {
			t.Errorf("%s: who trusts the authority before: %v", name, err)
		}
		if got := certs[0].CheckSignatureFrom(c.old[issuer]) != nil; got != succeeded || len(certs) != map[bool]int{false: 1, true: 2}[succeeded] {
			t.Errorf("%s: signed by the successor %v, %d certificates in the file; want %v", name, got, len(certs), succeeded)
		}
	}
}

// TestRotation follows stage by stage, and asks for each certificate once.
func TestRotation(t *testing.T) {
	c, o := newRotation(t)
	c.bring(pki.Trust)
	ensure(t, o)
	c.follow()
	ensure(t, o)
	c.shown(t, false)
	c.bring(pki.Succeed)
	ensure(t, o) // it has not heard of that
	c.follow()
	c.made(t, 0)
	ensure(t, o, clientFile, servingFile)
	c.made(t, 0, self, self) // by the old certificate, which is good
	c.shown(t, true)
	ensure(t, o)
	c.verify(t)
	c.bring(pki.Retire)
	ensure(t, o)
	c.follow()
	ensure(t, o)
	c.verify(t)
	c.made(t, 0)
}

// TestRotationOutOfStep renews in the minutes in which not all servers have come to a stage, or the agent has not.
func TestRotationOutOfStep(t *testing.T) {
	t.Run("the signer is behind", func(t *testing.T) {
		c, o := newRotation(t)
		c.bring(pki.Trust)
		behind, err := os.ReadFile(pki.PairFile(c.pki.Dir, pki.ClientCA))
		if err != nil {
			t.Fatal(err)
		}
		c.bring(pki.Succeed)
		c.follow()
		ahead, err := os.ReadFile(pki.PairFile(c.pki.Dir, pki.ClientCA))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(pki.PairFile(c.pki.Dir, pki.ClientCA), behind, 0o600); err != nil {
			t.Fatal(err)
		}
		ensure(t, o, clientFile, servingFile)
		c.made(t, 0, self, self)
		if err := os.WriteFile(pki.PairFile(c.pki.Dir, pki.ClientCA), ahead, 0o600); err != nil {
			t.Fatal(err)
		}
		ensure(t, o, clientFile)
		c.shown(t, true)
	})
	t.Run("the signer is ahead", func(t *testing.T) {
		c, o := newRotation(t)
		c.bring(pki.Trust)
		c.follow()
		c.bring(pki.Succeed)
		c.pass(250 * 24 * time.Hour)
		c.ensure()
		ensure(t, o, clientFile, servingFile)
		c.made(t, 0, self, self)
		for range 3 {
			ensure(t, o) // not again until it follows
		}
		c.follow()
		ensure(t, o)
		c.verify(t)
	})
	t.Run("the agent is behind", func(t *testing.T) {
		c, o := newRotation(t)
		c.bring(pki.Trust, pki.Succeed)
		c.pass(250 * 24 * time.Hour)
		c.ensure()
		o.Bootstrap = func(ctx context.Context) (tls.Certificate, error) { // as join.Renew
			c.follow()
			return c.bootstrap(ctx)
		}
		ensure(t, o, clientFile, servingFile)
		c.made(t, 1, self, self)
		c.shown(t, true)
		c.verify(t)
	})
}

// TestOffDuringRotation is switched on when the authorities that it knows are gone: with certificates that are valid and of
// no use, and with ones that ended.
func TestOffDuringRotation(t *testing.T) {
	for name, off := range map[string]time.Duration{"valid": time.Hour, "ended": 400 * 24 * time.Hour} {
		t.Run(name, func(t *testing.T) {
			c, o := newRotation(t)
			c.bring(pki.Trust, pki.Succeed, pki.Retire)
			c.pass(off)
			c.ensure()
			if name == "valid" {
				c.follow() // see join.Follow
			} else {
				o.Bootstrap = func(ctx context.Context) (tls.Certificate, error) {
					c.follow()
					return c.bootstrap(ctx)
				}
			}
			ensure(t, o, clientFile, servingFile)
			c.made(t, 1, joining, self)
			c.shown(t, true)
			c.verify(t)
			ensure(t, o)
		})
	}
}
