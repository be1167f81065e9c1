package join

import (
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"k8s.io/client-go/util/cert"

	"github.com/cairn-os/cairn/pkg/membership"
	"github.com/cairn-os/cairn/pkg/pki"
	"github.com/cairn-os/cairn/pkg/token"
)

// join makes the machine a member of the cluster that the configuration names.
func (o Options) join(ctx context.Context, stretch *stretcher) error {
	r, err := newRemote(o.ServerURL, o.clock)
	if err != nil {
		return err
	}
	t, err := token.Parse(o.Token)
	if err != nil {
		return refuse(CodeConfig, "cairn.token: %v", err)
	}
	identity, err := ensureIdentity(IdentityFile(o.Dir), o.write)
	if err != nil {
		return err
	}
	o.Status("joining " + r.address)
	ca, err := r.ca(ctx, t)
	if err != nil {
		return err
	}
	if t.Plain() {
		o.Log.Warn("join: cairn.token is a plain secret, so this machine cannot check that the server is the right one; \"cairnctl token\" prints the form that can",
			"ca", token.Pin(ca.Raw))
	}
	seal, err := newSealer(stretch, t, ca)
	if err != nil {
		return err
	}
	key, csr, err := newRequest()
	if err != nil {
		return err
	}
	plain, err := o.request(identity, seal, csr)
	if err != nil {
		return err
	}
	a, err := r.exchange(ctx, ca, seal, plain)
	if err != nil {
		return err
	}
	return o.install(ctx, r, a, key)
}

// request is what is sealed: the request and the proof of the identity.
func (o Options) request(identity *ecdsa.PrivateKey, s sealer, csr []byte) ([]byte, error) {
	public, err := publicDER(identity)
	if err != nil {
		return nil, err
	}
	body, err := json.Marshal(request{
		Role: o.Role, Node: o.Node, Version: o.Version, Identity: public, CSR: csr, Settings: o.Settings, Addresses: o.Addresses, Time: o.clock(),
	})
	if err != nil {
		return nil, fmt.Errorf("encode request: %w", err)
	}
	m, err := sign(identity, labelJoin, joinContext(s), body)
	if err != nil {
		return nil, err
	}
	return json.Marshal(m)
}

// install writes what came. All of it is checked first, and the membership is written last: a machine whose power is cut
// in between has files of a cluster that it does not belong to yet, and the next attempt overwrites them all.
func (o Options) install(ctx context.Context, r remote, a *answer, key *ecdsa.PrivateKey) error {
	m := &membership.Membership{
		Role: o.Role, Node: o.Node, Servers: serversWith(r.address, a.Servers), StorePeers: a.StorePeers, Settings: a.Settings,
	}
	if err := m.Validate(); err != nil {
		return fmt.Errorf("the answer of %s: %w", r.address, err)
	}
	if err := o.check(a, key); err != nil {
		return fmt.Errorf("the answer of %s: %w", r.address, err)
	}
	files, optional := bundleFor(o.Role)
	for _, f := range files {
		if optional(f) && len(a.Files[f.name]) == 0 {
			continue // one that is there is of another key, and does not count
		}
		if err := makeDir(o.path(f.dir)); err != nil {
			return fmt.Errorf("write %s: %w", f.name, err)
		}
		if err := o.write(o.path(f.dir, f.name), a.Files[f.name], f.mode); err != nil {
			return err
		}
	}
	if err := o.installOwn(ctx, m, a, key); err != nil {
		return err
	}
	if err := o.save(m); err != nil {
		return err
	}
	if err := o.unmark(); err != nil { // a cut before it costs the next start one question
		return err
	}
	o.Log.Info("join: joined", "role", o.Role, "node", o.Node, "server", r.address)
	o.Status("joined the cluster of " + r.address)
	return nil
}

// installOwn writes or obtains the machine's own certificates.
func (o Options) installOwn(ctx context.Context, m *membership.Membership, a *answer, key *ecdsa.PrivateKey) error {
	pair, err := pki.EncodePair(a.Certificate, key)
	if err != nil {
		return err
	}
	if o.Role == membership.Agent {
		bootstrap, err := tlsCertificate(a.Certificate, key)
		if err != nil {
			return err
		}
		if err := o.dropNode(); err != nil {
			return err
		}
		return o.obtainNode(ctx, bootstrap, m)
	}
	if err := o.write(pki.PairFile(o.path(serverTLS), pki.Store), pair, 0o600); err != nil {
		return err
	}
	if o.Role == membership.Server {
		return o.ensurePKI(m)
	}
	return nil
}

// obtainNode gets an agent's certificates and looks whether they came.
func (o Options) obtainNode(ctx context.Context, bootstrap tls.Certificate, m *membership.Membership) error {
	if o.ObtainNode == nil {
		return errors.New("obtain the node's certificates: nothing is wired to do so")
	}
	o.Status("waiting for the cluster to sign this node's certificates")
	if err := o.ObtainNode(ctx, bootstrap, m.Servers, m.Settings); err != nil {
		return fmt.Errorf("obtain the node's certificates: %w", err)
	}
	for _, name := range ownFiles(membership.Agent) {
		if _, err := loadLeaf(o.path(name)); err != nil {
			return fmt.Errorf("obtain the node's certificates: %w", err)
		}
	}
	return nil
}

// dropNode removes an agent's certificates that are there when it joins: they may be from another cluster, from before it
// was renamed, or for keys that the cluster forgot when it removed the machine.
func (o Options) dropNode() error {
	for _, name := range ownFiles(membership.Agent) {
		if err := os.Remove(o.path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// check looks whether all is there and fits together.
func (o Options) check(a *answer, key *ecdsa.PrivateKey) error {
	files, optional := bundleFor(o.Role)
	for _, f := range files {
		data := a.Files[f.name]
		if len(data) == 0 && optional(f) {
			continue
		}
		if len(data) == 0 {
			return fmt.Errorf("%s is missing", f.name)
		}
		if ext := filepath.Ext(f.name); ext == ".crt" || ext == ".cross" {
			if _, err := cert.ParseCertsPEM(data); err != nil {
				return fmt.Errorf("%s: %w", f.name, err)
			}
		} else if ext == ".pem" {
			if _, err := tls.X509KeyPair(data, data); err != nil {
				return fmt.Errorf("%s: %w", f.name, err)
			}
		}
	}
	authority := pki.StoreCA
	if o.Role == membership.Agent {
		authority = pki.ClientCA
	}
	return checkCertificate(a.Certificate, a.Files[authority+".crt"], key)
}

// checkCertificate makes sure that the certificate is for the key and signed by one of the authorities.
func checkCertificate(certificate, authorities []byte, key *ecdsa.PrivateKey) error {
	certs, err := cert.ParseCertsPEM(certificate)
	if err != nil {
		return fmt.Errorf("the certificate: %w", err)
	}
	cas, err := cert.ParseCertsPEM(authorities)
	if err != nil {
		return fmt.Errorf("the certificate's authority: %w", err)
	}
	if !key.PublicKey.Equal(certs[0].PublicKey) {
		return errors.New("the certificate is for another key")
	}
	if !signedByAny(certs[0], cas) {
		return errors.New("the certificate is not signed by the cluster's authority")
	}
	return nil
}

func signedByAny(c *x509.Certificate, cas []*x509.Certificate) bool {
	return slices.ContainsFunc(cas, func(ca *x509.Certificate) bool { return c.CheckSignatureFrom(ca) == nil })
}

// serversWith puts the server that answered first: it is the one that is known to be reachable.
func serversWith(first string, others []string) []string {
	all := []string{first}
	for _, s := range others {
		if !slices.Contains(all, s) {
			all = append(all, s)
		}
	}
	return all
}

// loadLeaf reads the certificate of a pair's file and checks that its key is there.
func loadLeaf(path string) (*x509.Certificate, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(data, data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return pair.Leaf, nil
}

func tlsCertificate(certificate []byte, key *ecdsa.PrivateKey) (tls.Certificate, error) {
	pair, err := pki.EncodePair(certificate, key)
	if err != nil {
		return tls.Certificate{}, err
	}
	c, err := tls.X509KeyPair(pair, pair)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("certificate: %w", err)
	}
	return c, nil
}
