// Package nodecert keeps the two certificates of an agent's kubelet, the one to ask the cluster with and the one to serve
// with, by the cluster's API for certificate requests.
//
// The first one to ask with is requested with a bootstrap certificate, all others with the one that is there; when that
// has ended, on a machine that was off for long, with a bootstrap certificate again. Each certificate shares a file with
// its key, so a power cut leaves the old pair or the new one. A request whose answer did not come to the disk is lost
// with its key: the next Ensure makes another, and the cluster clears such requests away.
//
// The life of the certificates is the cluster's to decide. Servers sign their own and do not need this package.
//
// While an authority is replaced, those trusted are two. A certificate by the one that does not sign any more is renewed
// while it is still good. The cross certificate of the one that signs is put behind the certificates, so that who has not
// heard of it yet believes them.
package nodecert

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/util/cert"

	"github.com/cairn-os/cairn/pkg/atomicfile"
	"github.com/cairn-os/cairn/pkg/pki"
)

// Options say whose certificates these are and who gives them.
type Options struct {
	Node string // name of the node
	// Dir holds the certificates, under the names that pki has for them. The certificates of the authorities ServerCA,
	// ClientCA and KubeletCA must be there.
	Dir    string
	Server string // URL of the apiserver
	// Addresses returns those of the machine. While it fails the certificate to serve with stays as it is.
	Addresses func() ([]netip.Addr, error)
	// Bootstrap returns a certificate that may only request others. It is called when there is no valid one of the
	// node's own. It may replace the authorities' certificates in Dir, and is called for that as well when another
	// authority signed what came.
	Bootstrap func(context.Context) (tls.Certificate, error)
	// Lock is held while Ensure works, for those that let it work from two sides. nil: none
	Lock  sync.Locker
	Floor time.Time // the earliest time that a correct clock can show; see pki.Options
	Log   *slog.Logger
	Now   func() time.Time // nil: time.Now

	sleep    func(context.Context, time.Duration) // nil: by the clock
	patience time.Duration                        // how long to wait for an answer to a request; 0: two minutes
}

func (o Options) withDefaults() Options {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.sleep == nil {
		o.sleep = sleep
	}
	if o.patience <= 0 {
		o.patience = 2 * time.Minute
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

// Ensure requests what lacks, what has less than a third of its life left, what fits the node or its addresses no more and
// what another authority would sign now, and waits for the answers: up to two minutes for each, or until ctx ends. It returns the names of the files that
// it wrote. An error that wraps ErrDenied lasts until a person acts; others may pass.
func Ensure(ctx context.Context, o Options) (written []string, err error) {
	o = o.withDefaults()
	if o.Lock != nil {
		o.Lock.Lock()
		defer o.Lock.Unlock()
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("node certificates: %w", err)
	}
	client, err := o.clientPart()
	if err != nil {
		return nil, err
	}
	have, problem := o.look(client)
	if problem != "" {
		if err := o.renewClient(ctx, client, have); err != nil {
			return nil, fmt.Errorf("certificate %s: %w", client.name, err)
		}
		o.Log.Info("node certificate renewed", "name", client.name, "because", problem)
		written = append(written, client.name+".pem")
	}
	serving, err := o.servingPart()
	if err != nil {
		return written, err
	}
	if _, problem = o.look(serving); problem == "" {
		return written, nil
	}
	if serving.unknown != nil {
		return written, fmt.Errorf("certificate %s: %w", serving.name, serving.unknown)
	}
	err = o.obtainAs(ctx, serving, client)
	if apierrors.IsUnauthorized(err) && o.Bootstrap != nil && !slices.Contains(written, client.name+".pem") {
		// The cluster does not know the certificate, for its data was restored to a time before it.
		if err = o.renewClient(ctx, client, nil); err == nil {
			written = append(written, client.name+".pem")
			err = o.obtainAs(ctx, serving, client)
		}
	}
	if err != nil {
		return written, fmt.Errorf("certificate %s: %w", serving.name, err)
	}
	o.Log.Info("node certificate renewed", "name", serving.name, "because", problem)
	return append(written, serving.name+".pem"), nil
}

// renewClient requests the certificate to ask the cluster with. have is the one there, or nil if it is of no use.
func (o Options) renewClient(ctx context.Context, client part, have *tls.Certificate) error {
	var refused error
	if have != nil && client.valid(have.Leaf, o.now()) {
		refused = o.obtain(ctx, client, *have)
		// The server's clock may say that it has ended: then only a bootstrap certificate helps. When the cluster denies it,
		// the machine may have been removed, and asking for a bootstrap certificate tells.
		if !apierrors.IsUnauthorized(refused) && !errors.Is(refused, ErrDenied) {
			return refused
		}
	}
	if o.Bootstrap == nil {
		if refused != nil {
			return refused
		}
		return errors.New("there is no valid one to request another with, and none to begin with: let the machine join again")
	}
	bootstrap, err := o.Bootstrap(ctx)
	if err != nil && refused != nil {
		return fmt.Errorf("%w; begin anew: %w", refused, err)
	}
	if err != nil {
		return fmt.Errorf("begin anew: %w", err)
	}
	if client, err = o.clientPart(); err != nil { // the authorities may have been replaced while the machine was off
		return err
	}
	return o.obtain(ctx, client, bootstrap)
}

// obtainAs is obtain as the one that has the certificate on the disk.
func (o Options) obtainAs(ctx context.Context, p, by part) error {
	own, err := loadPair(o.Dir, by.name)
	if err != nil {
		return err
	}
	return o.obtain(ctx, p, *own)
}

// obtain requests a certificate for a new key, as the one that has the certificate by, and writes both.
func (o Options) obtain(ctx context.Context, p part, by tls.Certificate) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("generate key: %w", err)
	}
	answer, err := o.request(ctx, p, key, by)
	if err != nil {
		return err
	}
	if p, err = o.learn(ctx, p, answer); err != nil {
		return err
	}
	if err := p.check(answer, key, o.now()); err != nil {
		return fmt.Errorf("the cluster's answer: %w", err)
	}
	// The signer is Kubernetes', which knows nothing of cross certificates.
	if answer, err = pki.WithCross(o.Dir, p.authority, answer); err != nil {
		return err
	}
	data, err := pki.EncodePair(answer, key)
	if err != nil {
		return err
	}
	return atomicfile.Write(pki.PairFile(o.Dir, p.name), data, 0o600)
}

// learn returns p with the authorities as they are now when none of those before signed the answer: the one who did may
// have taken their place since this machine looked last.
func (o Options) learn(ctx context.Context, p part, answer []byte) (part, error) {
	certs, err := cert.ParseCertsPEM(answer)
	if err != nil || p.issued(certs[0]) || o.Bootstrap == nil {
		return p, nil
	}
	if _, err := o.Bootstrap(ctx); err != nil {
		return p, fmt.Errorf("ask for the cluster's authorities: %w", err)
	}
	p.issuers, err = cert.CertsFromFile(pki.CertFile(o.Dir, p.authority))
	return p, err
}

// look returns the pair on the disk, nil if there is none that can be used, and why another is needed, or "".
func (o Options) look(p part) (*tls.Certificate, string) {
	have, err := loadPair(o.Dir, p.name)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil, "there was none"
	case err != nil:
		return nil, "the one there is damaged"
	}
	return have, p.problem(have.Leaf, o.now())
}

// loadPair reads a certificate and its key. Its Leaf is set.
func loadPair(dir, name string) (*tls.Certificate, error) {
	path := pki.PairFile(dir, name)
	pair, err := tls.LoadX509KeyPair(path, path)
	if err != nil {
		return nil, err
	}
	return &pair, nil
}
