package join

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"time"

	"k8s.io/client-go/util/cert"

	"github.com/cairn-os/cairn/pkg/atomicfile"
	"github.com/cairn-os/cairn/pkg/membership"
	"github.com/cairn-os/cairn/pkg/pki"
)

// RenewOptions say who asks for a certificate without a token, and whom.
type RenewOptions struct {
	Role    membership.Role // Agent or Witness
	Node    string
	Servers []string      // host:port, asked in this order
	Dir     string        // /var/lib/cairn
	Floor   time.Time     // see pki.Options
	Life    time.Duration // see pki.Options; for RenewStore
	Log     *slog.Logger  // nil: none

	now   func() time.Time // nil: time.Now
	write writeFile        // nil: atomicfile.Write
}

func (o RenewOptions) withDefaults() RenewOptions {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.now == nil {
		o.now = time.Now
	}
	if o.write == nil {
		o.write = atomicfile.Write
	}
	return o
}

// options has the paths and the clock in common.
func (o RenewOptions) options() Options {
	return Options{Role: o.Role, Node: o.Node, Dir: o.Dir, Floor: o.Floor, Life: o.Life, now: o.now, write: o.write, Log: o.Log}
}

// Renew asks the cluster for a certificate by the machine's identity alone: an agent gets one to obtain its others with,
// valid for ten minutes, a witness that of its store, which is written (see RenewStore). It also brings the cluster's
// settings, replaces the authorities' certificates on the disk when they changed, and tells the cluster which ones the
// machine follows (see Follow). A Refusal with CodeRemoved says that the node was
// removed from the cluster: that is kept on the disk, and the next Run joins again. Certificates of the machine itself may
// have ended long ago.
func Renew(ctx context.Context, o RenewOptions) (tls.Certificate, membership.Settings, error) {
	o = o.withDefaults()
	a, key, err := o.ask(ctx)
	if err != nil {
		return tls.Certificate{}, membership.Settings{}, err
	}
	c, err := tlsCertificate(a.Certificate, key)
	return c, a.Settings, err
}

// RenewStore renews a witness's certificate when it has less than a third of its life left or another authority signs now,
// and reports whether it did. The store rereads the file. It brings the servers in the membership up to date as well.
func RenewStore(ctx context.Context, o RenewOptions) (renewed bool, err error) {
	o = o.withDefaults()
	own := o.options()
	if serves, err := own.storeServes(); err != nil || serves {
		return false, err
	}
	if _, _, err = o.ask(ctx); err != nil {
		return false, err
	}
	return true, nil
}

// remember keeps the cluster's servers of today in the membership: those that the machine joined by may all be gone when
// the next certificate is due, and a witness has no balancer that learns of them.
func (o RenewOptions) remember(a *answer) error {
	own := o.options()
	m, err := membership.Load(own.membershipFile())
	if err != nil {
		return err
	}
	servers := serversWith(a.from, a.Servers)
	if slices.Equal(servers, m.Servers) && slices.Equal(a.StorePeers, m.StorePeers) {
		return nil
	}
	m.Servers = servers
	if len(a.StorePeers) > 0 {
		m.StorePeers = a.StorePeers
	}
	return own.save(m)
}

// ask asks the servers in turn. A Refusal ends it, for all servers answer alike; not what shows another CA, which is none.
func (o RenewOptions) ask(ctx context.Context) (*answer, *ecdsa.PrivateKey, error) {
	identity, err := loadIdentity(IdentityFile(o.Dir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, refuse(CodeIdentity, "this machine's identity is lost: it must join again, with cairn.server_url and cairn.token")
	}
	if err != nil {
		return nil, nil, err
	}
	roots, err := cert.CertsFromFile(pki.CertFile(o.options().path(nodeTLS), pki.ServerCA))
	if err != nil {
		return nil, nil, fmt.Errorf("renew: the cluster's CA: %w", err)
	}
	key, csr, err := newRequest()
	if err != nil {
		return nil, nil, err
	}
	problems := []error{fmt.Errorf("renew: no server of %v answered", o.Servers)}
	for _, address := range o.Servers {
		r := remote{address: address, clock: o.options().clock}
		a, err := o.askOne(ctx, r, roots, identity, csr)
		if err == nil {
			err = o.take(a, key)
		}
		if err == nil {
			return a, key, o.options().unmark()
		}
		if isRemoved(err) {
			return nil, nil, errors.Join(err, o.options().mark())
		}
		if r := new(Refusal); errors.As(err, &r) && r.Code != CodeCA || ctx.Err() != nil {
			return nil, nil, err
		}
		problems = append(problems, err)
	}
	return nil, nil, errors.Join(problems...)
}

// askOne sends the signed request to one server, which must show that it is one of the cluster.
func (o RenewOptions) askOne(ctx context.Context, r remote, roots []*x509.Certificate, identity *ecdsa.PrivateKey, csr []byte) (*answer, error) {
	public, err := publicDER(identity)
	if err != nil {
		return nil, err
	}
	nonce, err := newSalt()
	if err != nil {
		return nil, err
	}
	holds := o.follows()
	body, err := json.Marshal(renewal{
		Node: o.Node, Identity: public, CSR: csr, Nonce: nonce, Time: o.options().clock(), Authorities: holds,
	})
	if err != nil {
		return nil, fmt.Errorf("encode request: %w", err)
	}
	m, err := sign(identity, labelRenew, nil, body)
	if err != nil {
		return nil, err
	}
	data, err := json.Marshal(signedRequest{V: protocolVersion, Signed: m})
	if err != nil {
		return nil, fmt.Errorf("encode request: %w", err)
	}
	p, err := r.do(ctx, r.client(roots), http.MethodPost, RenewPath, data, maxAnswer)
	if err != nil {
		return nil, err
	}
	if p.status != http.StatusOK {
		return nil, r.failed(p)
	}
	var a answer
	if err := json.Unmarshal(p.body, &a); err != nil {
		return nil, fmt.Errorf("read the answer of %s: %w", r.address, err)
	}
	a.from = r.address
	if holds != "" && holds == a.authorities() {
		a.recorded = holds
	}
	return &a, nil
}

// take checks what came, writes a witness's certificate and replaces authorities' certificates that changed. Each file is
// whole after a power cut, and the next renewal brings the others. The certificate comes first: with the cross certificate
// behind it, it fits the authorities before as well as the new ones. The server-ca comes last, for it stands for all: see
// follows.
func (o RenewOptions) take(a *answer, key *ecdsa.PrivateKey) error {
	own := o.options()
	if err := own.check(a, key); err != nil {
		return fmt.Errorf("renew: the answer: %w", err)
	}
	if o.Role == membership.Witness {
		pair, err := pki.EncodePair(a.Certificate, key)
		if err != nil {
			return err
		}
		if err := o.write(pki.PairFile(own.path(serverTLS), pki.Store), pair, 0o600); err != nil {
			return err
		}
		if err := o.remember(a); err != nil {
			return err
		}
	}
	files, optional := bundleFor(o.Role)
	for _, f := range serverCALast(files) {
		if optional(f) && len(a.Files[f.name]) == 0 {
			continue
		}
		path := own.path(f.dir, f.name)
		if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, a.Files[f.name]) {
			continue
		}
		if err := makeDir(filepath.Dir(path)); err != nil {
			return err
		}
		if err := o.write(path, a.Files[f.name], f.mode); err != nil {
			return err
		}
		o.Log.Info("join: the cluster's authority changed", "file", f.name)
	}
	return nil
}
