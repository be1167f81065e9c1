// Package pki creates and renews the certificates of a server: the cluster's authorities, the service account key and
// one leaf for each component.
//
// Every certificate shares a file with its key, so that one atomic write makes a pair that always fits: a power cut
// between two writes leaves complete files, and the next Ensure creates the ones that lack. Ensure never replaces the
// authorities and the service account key, because what they signed would become worthless, and only the server that founded
// the cluster creates them; leaves are replaced whenever they no longer serve. The Kubernetes components reread these files,
// so a renewal needs no restart.
//
// The authorities are replaced by Successors, in three stages of the whole cluster: all trust the successors too (Trust),
// the successors sign (Succeed), the authorities before are not trusted any more (Retire). Of an authority there are then
//
//	NAME.pem    the one that signs and its key, never more than one certificate
//	NAME.crt    the certificates to trust, that of the one that signs first
//	NAME.cross  a certificate of the one that signs, by the one before
//
// The third follows each leaf, in files and in what Sign returns. Who was off all the while, or has a kubeconfig of before,
// and so trusts the old authority alone, goes on to believe the servers until that one would have ended. A machine that is
// one stage behind or ahead of another speaks with it in both directions.
package pki

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/cairn-os/cairn/pkg/atomicfile"
)

const (
	authorityLife = 10 * 365 * 24 * time.Hour
	// leafLife is the life of leaves unless Options say otherwise.
	leafLife = 365 * 24 * time.Hour
	// lasting is the life of leaves that live as long as their authority, which ends before.
	lasting = 2 * authorityLife
	// backdate is how far certificates begin before the earliest correct time, for peers whose clocks are behind.
	backdate = 24 * time.Hour
)

// Options say where the certificates are and what they are for.
type Options struct {
	Dir       string       // holds all files; created with mode 0700
	Node      string       // name of the node
	Addresses []netip.Addr // of the node; what the apiserver's and the kubelet's certificates are valid for
	SANs      []string     // further names and addresses of the apiserver
	// ServiceIP is that of the Service default/kubernetes. It has one address in a cluster of two families as well:
	// Kubernetes keeps that Service in the first family alone.
	ServiceIP     netip.Addr
	ClusterDomain string        // of Services; "" means cluster.local
	Life          time.Duration // of leaves; 0 means 365 days
	// Joined says that another server founded the cluster: a missing authority is then an error.
	Joined bool

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
	if o.ClusterDomain == "" {
		o.ClusterDomain = "cluster.local"
	}
	if o.Life <= 0 {
		o.Life = leafLife
	}
	return o
}

func (o Options) clock() clock { return clock{o.Now, o.Floor} }

// clock is a clock that may be wrong, and the earliest time that it can show when it is right.
type clock struct {
	read  func() time.Time
	floor time.Time
}

// now is the clock's time, or the floor while the clock is behind it.
func (c clock) now() time.Time {
	if now := c.read(); now.After(c.floor) {
		return now
	}
	return c.floor
}

// notBefore is when certificates created now begin to be valid. It does not trust a clock that is ahead.
func (c clock) notBefore() time.Time {
	start := c.now()
	if !c.floor.IsZero() && c.floor.Before(start) {
		start = c.floor
	}
	return start.Add(-backdate)
}

// Interval is how often certificates of that life are to be looked at, so that a renewal has some tries: each minute, or
// ten times in a life that is shorter than that. 0 stands for the life that Options' 0 does.
func Interval(life time.Duration) time.Duration {
	if life <= 0 {
		life = leafLife
	}
	return min(time.Minute, life/10)
}

// Ensure creates what lacks and renews the leaves that have less than a third of their life left, or whose names, authority
// or cross certificate changed. It returns the names of the files that it wrote. It may run at any time and any number of times,
// and in one process at a time.
func Ensure(o Options) (written []string, err error) {
	o = o.withDefaults()
	e, err := newEnsurer(o)
	if err != nil {
		return nil, err
	}
	if err := e.all(); err != nil {
		return e.written, err
	}
	for _, l := range leaves(o) {
		if err := e.leaf(l); err != nil {
			return e.written, fmt.Errorf("certificate %s: %w", l.name, err)
		}
	}
	for _, name := range retired() {
		if err := os.Remove(PairFile(o.Dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return e.written, fmt.Errorf("certificate %s: %w", name, err)
		}
	}
	return e.written, nil
}

// EnsureAuthorities does Ensure's work for the authorities and the service account key alone: it needs neither a name
// nor an address of the node.
func EnsureAuthorities(o Options) (written []string, err error) {
	e, err := newEnsurer(o.withDefaults())
	if err != nil {
		return nil, err
	}
	err = e.all()
	return e.written, err
}

// EnsureLeaf does Ensure's work for one leaf alone. Its authority must be there.
func EnsureLeaf(o Options, name string) (written []string, err error) {
	o = o.withDefaults()
	l, err := findLeaf(o, name)
	if err != nil {
		return nil, err
	}
	e, err := newEnsurer(o)
	if err != nil {
		return nil, err
	}
	issuer, err := loadIssuer(o.Dir, l.authority)
	if err != nil {
		return nil, fmt.Errorf("certificate authority %s: %w", l.authority, err)
	}
	e.authorities[l.authority] = issuer
	if err := e.leaf(l); err != nil {
		return e.written, fmt.Errorf("certificate %s: %w", name, err)
	}
	return e.written, nil
}

// Serves reports whether the leaf on the disk is one that Ensure would keep. It needs the authority's certificate but
// not its key, so it also tells a witness, whose certificate others sign, whether to ask for another. Of the store's
// certificate a witness's serves as well. One that an authority signed which is trusted and does not sign any more is in
// use and does not serve. What follows the certificate counts where the file is that it comes from: a witness has none.
func Serves(o Options, name string) (bool, error) {
	o = o.withDefaults()
	l, err := findLeaf(o, name)
	if err != nil {
		return false, err
	}
	issuer, err := loadCert(CertFile(o.Dir, l.authority))
	if err != nil {
		return false, fmt.Errorf("certificate authority %s: %w", l.authority, err)
	}
	have, err := load(PairFile(o.Dir, name))
	if err != nil {
		return false, nil
	}
	if cross := crossOf(o.Dir, l.authority, issuer); len(cross) > 0 && !have.follows(cross) {
		return false, nil
	}
	return l.serves(have.cert, issuer, o.clock()) || name == Store && l.forWitness().serves(have.cert, issuer, o.clock()), nil
}

type ensurer struct {
	Options
	authorities map[string]pair
	written     []string
}

func newEnsurer(o Options) (*ensurer, error) {
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("create certificates: %w", err)
	}
	return &ensurer{Options: o, authorities: make(map[string]pair)}, nil
}

func (e *ensurer) write(name string, data []byte, mode fs.FileMode) error {
	if err := e.Write(filepath.Join(e.Dir, name), data, mode); err != nil {
		return err
	}
	e.written = append(e.written, name)
	return nil
}

// create signs template for a new key with the issuer and writes both, and what follows the issuer's leaves; without an
// issuer the key signs itself.
func (e *ensurer) create(name string, template *x509.Certificate, issuer *pair) (pair, error) {
	key, err := newKey()
	if err != nil {
		return pair{}, err
	}
	if issuer == nil {
		issuer = &pair{cert: template, key: key}
	}
	c, err := issue(template, *issuer, key.Public())
	if err != nil {
		return pair{}, err
	}
	p := pair{c, key, issuer.chain}
	data, err := p.file()
	if err != nil {
		return pair{}, err
	}
	if err := e.write(filepath.Base(PairFile(e.Dir, name)), data, 0o600); err != nil {
		return pair{}, err
	}
	return p, nil
}
