package pki

import (
	"crypto/x509"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"
)

// Successor is an authority that is to take the place of the one of that name. All but the name is PEM.
type Successor struct {
	Name        string `json:"name"`
	Certificate []byte `json:"certificate"` // signed by itself
	// Cross has the same subject and key and is signed by the authority before: with it after a leaf, who trusts only that
	// one believes the leaf. It ends with that one.
	Cross []byte `json:"cross"`
	Key   []byte `json:"key"`
}

// Successors makes successors of the authorities in o.Dir. It writes nothing.
func Successors(o Options) ([]Successor, error) {
	o = o.withDefaults()
	var all []Successor
	for _, name := range Authorities() {
		s, err := o.successor(name)
		if err != nil {
			return nil, fmt.Errorf("successor of %s: %w", name, err)
		}
		all = append(all, s)
	}
	return all, nil
}

func (o Options) successor(name string) (Successor, error) {
	old, err := load(PairFile(o.Dir, name))
	if err != nil {
		return Successor{}, err
	}
	key, err := newKey()
	if err != nil {
		return Successor{}, err
	}
	// A successor ends later than what it replaces, whatever the clocks said: that is how Outdated knows the order. Another
	// end is another time in the subject.
	begin := o.clock().now()
	if end := begin.Add(authorityLife); !end.Truncate(time.Second).After(old.cert.NotAfter) {
		begin = old.cert.NotAfter.Add(time.Second - authorityLife)
	}
	template := o.authorityTemplate(name, begin)
	c, err := issue(template, pair{cert: template, key: key}, key.Public())
	if err != nil {
		return Successor{}, err
	}
	template = o.authorityTemplate(name, begin)
	template.NotAfter = old.cert.NotAfter
	cross, err := issue(template, old, key.Public())
	if err != nil {
		return Successor{}, err
	}
	data, err := EncodePair(nil, key)
	if err != nil {
		return Successor{}, err
	}
	return Successor{name, encodeCert(c), encodeCert(cross), data}, nil
}

// ErrOutdated says that an authority is a later one already than the successor which is to replace it: the successor came
// from a snapshot of the cluster's data that was restored.
var ErrOutdated = errors.New("the authority here is a later one")

// Trust makes all trust the successors beside what they trust now: it puts their certificates at the end of the authorities'
// CertFiles. Who has replaced an authority by its successor, or has gone further, stays there. It may run any number of
// times, not at once with Ensure in the same process, and reports whether it wrote anything.
//
// Trust, Succeed and Retire, in this order and each on all machines before the next, replace the cluster's authorities
// without an outage. A power cut between any two writes leaves files that serve, and the next call completes them.
func Trust(o Options, all []Successor) (changed bool, err error) {
	r, err := newRotation(o, all)
	if err != nil {
		return false, err
	}
	err = r.each((*rotation).trust)
	return len(r.written) > 0, err
}

// Succeed lets the successors sign in place of the authorities there, which go on to be trusted, and then does Ensure's
// work: all leaves are issued anew. Of what Trust does it does what lacks.
func Succeed(o Options, all []Successor) (changed bool, err error) {
	r, err := newRotation(o, all)
	if err != nil {
		return false, err
	}
	err = r.each((*rotation).trust, (*rotation).succeed)
	if err != nil {
		return len(r.written) > 0, err
	}
	written, err := Ensure(r.Options)
	return len(r.written)+len(written) > 0, err
}

// Retire ends the trust in the authorities before the successors. Of what Succeed does it does what lacks.
func Retire(o Options, all []Successor) (changed bool, err error) {
	if changed, err = Succeed(o, all); err != nil {
		return changed, err
	}
	r, err := newRotation(o, all)
	if err != nil {
		return changed, err
	}
	err = r.each((*rotation).retire)
	return changed || len(r.written) > 0, err
}

// Outdated reports whether one of the authorities in dir is a later one than its successor.
func Outdated(dir string, all []Successor) (bool, error) {
	heirs, err := parseSuccessors(all)
	if err != nil {
		return false, err
	}
	for _, h := range heirs {
		now, err := load(PairFile(dir, h.name))
		if err != nil {
			return false, fmt.Errorf("certificate authority %s: %w", h.name, err)
		}
		if h.outdated(now.cert) {
			return true, nil
		}
	}
	return false, nil
}

// heir is a Successor that can be used. Its chain is the cross certificate.
type heir struct {
	name string
	pair
}

func (h heir) outdated(now *x509.Certificate) bool {
	return !h.cert.Equal(now) && !h.cert.NotAfter.After(now.NotAfter)
}

// parseSuccessors checks all of them before anything is written.
func parseSuccessors(all []Successor) ([]heir, error) {
	var heirs []heir
	for _, s := range all {
		h, err := s.parse()
		if err != nil {
			return nil, fmt.Errorf("successor of %q: %w", s.Name, err)
		}
		if slices.ContainsFunc(heirs, func(o heir) bool { return o.name == h.name }) {
			return nil, fmt.Errorf("successor of %s: there are two", h.name)
		}
		heirs = append(heirs, h)
	}
	if len(heirs) == 0 {
		return nil, errors.New("no successors of the authorities")
	}
	// Machines are told by the server-ca how far a server is, so it is written last.
	if i := slices.IndexFunc(heirs, func(h heir) bool { return h.name == ServerCA }); i >= 0 {
		heirs = append(slices.Delete(slices.Clone(heirs), i, i+1), heirs[i])
	}
	return heirs, nil
}

func (s Successor) parse() (heir, error) {
	if !slices.Contains(Authorities(), s.Name) {
		return heir{}, errors.New("there is no such authority")
	}
	p, err := parsePair(append(slices.Clone(s.Certificate), s.Cross...), s.Key)
	switch {
	case err != nil:
		return heir{}, err
	case len(roots([]*x509.Certificate{p.cert})) == 0:
		return heir{}, errors.New("its certificate is not an authority's that it signed itself")
	case len(p.chain) != 1 || !crosses(p.chain[0], p.cert):
		return heir{}, errors.New("its cross certificate is not for it")
	}
	return heir{s.Name, p}, nil
}

// rotation is one call of Trust, Succeed or Retire.
type rotation struct {
	ensurer
	heirs []heir
}

// newRotation looks whether all is there and fits, so that no authority is replaced without the others.
func newRotation(o Options, all []Successor) (*rotation, error) {
	e, err := newEnsurer(o.withDefaults())
	if err != nil {
		return nil, err
	}
	r := &rotation{ensurer: *e}
	if r.heirs, err = parseSuccessors(all); err != nil {
		return nil, err
	}
	for _, h := range r.heirs {
		now, err := load(PairFile(o.Dir, h.name))
		if err != nil {
			return nil, fmt.Errorf("certificate authority %s: %w", h.name, err)
		}
		if h.outdated(now.cert) {
			return nil, fmt.Errorf("certificate authority %s: %w", h.name, ErrOutdated)
		}
		if !h.cert.Equal(now.cert) && h.chain[0].CheckSignatureFrom(now.cert) != nil {
			return nil, fmt.Errorf("certificate authority %s: its successor is not one of this authority but of another", h.name)
		}
		r.authorities[h.name] = now
	}
	return r, nil
}

// each does the steps for one authority after the other.
func (r *rotation) each(steps ...func(*rotation, heir) error) error {
	for _, h := range r.heirs {
		for _, step := range steps {
			if err := step(r, h); err != nil {
				return fmt.Errorf("certificate authority %s: %w", h.name, err)
			}
		}
	}
	return nil
}

// trust adds the successor at the end. The one that signs is the first, as Ensure keeps it.
func (r *rotation) trust(h heir) error {
	_, err := r.trusted(h.name, func(have []*x509.Certificate) []*x509.Certificate {
		return append(append([]*x509.Certificate{r.authorities[h.name].cert}, have...), h.cert)
	})
	return err
}

// succeed replaces the pair last: until then the old authority signs, and what it signs is trusted. The cross certificate
// is there before the first leaf that needs it. All servers get the same two in CertFile, whatever was there besides: the
// others compare it.
func (r *rotation) succeed(h heir) error {
	if r.authorities[h.name].cert.Equal(h.cert) {
		return r.cross(h)
	}
	_, err := r.trusted(h.name, func([]*x509.Certificate) []*x509.Certificate {
		return []*x509.Certificate{h.cert, r.authorities[h.name].cert}
	})
	if err != nil {
		return err
	}
	if err := r.cross(h); err != nil {
		return err
	}
	data, err := pair{cert: h.cert, key: h.key}.file()
	if err != nil {
		return err
	}
	if err := r.write(filepath.Base(PairFile(r.Dir, h.name)), data, 0o600); err != nil {
		return err
	}
	r.authorities[h.name] = h.pair
	return nil
}

func (r *rotation) cross(h heir) error {
	path := CrossFile(r.Dir, h.name)
	if have, err := loadCert(path); err == nil && have.Equal(h.chain[0]) {
		return nil
	}
	return r.write(filepath.Base(path), encodeCerts(h.chain), 0o644)
}

func (r *rotation) retire(h heir) error {
	_, err := r.trusted(h.name, func([]*x509.Certificate) []*x509.Certificate { return []*x509.Certificate{h.cert} })
	return err
}
