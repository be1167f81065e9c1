package join

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/util/cert"

	"github.com/cairn-os/cairn/pkg/membership"
	"github.com/cairn-os/cairn/pkg/pki"
)

const (
	// followInterval is how often a machine looks whether the cluster's authorities changed; more often where certificates
	// live for minutes.
	followInterval = 5 * time.Minute
	// followFirst is when it looks first: a machine that was off may be one that no server knows by its certificates now.
	followFirst = 5 * time.Second
	// followAgain is the first pause after a failure.
	followAgain = 15 * time.Second
	// followAnew is after what time a machine acknowledges what it has done already: the record that says so goes back when
	// a snapshot of the cluster's data is restored.
	followAnew = time.Hour
)

// errNotYet says that a machine waits for the others of its cluster, which is no fault.
var errNotYet = errors.New("the cluster's authorities are being replaced")

// BundleHash returns the SHA-256, in hex, of the certificates in an authority's CertFile, in their order.
func BundleHash(file string) (string, error) {
	certs, err := cert.CertsFromFile(file)
	if err != nil {
		return "", fmt.Errorf("authorities: %w", err)
	}
	return bundleHash(certs), nil
}

func bundleHash(certs []*x509.Certificate) string {
	h := sha256.New()
	for _, c := range certs {
		h.Write(c.Raw)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// authorities is the BundleHash of the server-ca that an answer brings, or "".
func (a *answer) authorities() string {
	certs, err := cert.ParseCertsPEM(a.Files[pki.ServerCA+".crt"])
	if err != nil {
		return ""
	}
	return bundleHash(certs)
}

// follows returns the BundleHash of the server-ca on the disk when the machine's own certificates are of the authorities
// that sign, and else "": those of the others may be retired once it is recorded. A server-ca is written after the others
// that came with it, here and on servers, so it says that they are there.
func (o RenewOptions) follows() string {
	own := o.options()
	dir, leaves := nodeTLS, map[string]string{pki.KubeletClient: pki.ClientCA, pki.KubeletServer: pki.KubeletCA}
	if o.Role == membership.Witness {
		dir, leaves = serverTLS, map[string]string{pki.Store: pki.StoreCA}
	}
	for name, authority := range leaves {
		trusted, err := cert.CertsFromFile(pki.CertFile(own.path(dir), authority))
		if err != nil {
			return ""
		}
		leaf, err := loadLeaf(pki.PairFile(own.path(dir), name))
		if err != nil || !pki.Current(trusted, leaf) {
			return ""
		}
	}
	hash, err := BundleHash(pki.CertFile(own.path(nodeTLS), pki.ServerCA))
	if err != nil {
		return ""
	}
	return hash
}

// FollowOptions are what Follow needs beside RenewOptions.
type FollowOptions struct {
	Servers func() []string // host:port of the servers as known now, in place of RenewOptions.Servers
	// Certificates renews the machine's certificates that are not of the authorities that sign. It is called after the
	// authorities' certificates on the disk changed.
	Certificates func(context.Context) error

	pause func(context.Context, time.Duration) error // nil: by the clock
}

// Follow lets an agent or a witness follow when the cluster's authorities are replaced: it looks at the server-ca of a
// server again and again, and when that is another than the one last acknowledged it gets the authorities' certificates
// (Renew), has the own ones renewed, and acknowledges that with another Renew. It also brings back a machine that was off
// all the while, which no server knows by its certificates any more. It returns nil when ctx ends; what fails is logged
// and tried again.
func Follow(ctx context.Context, o RenewOptions, f FollowOptions) error {
	o = o.withDefaults()
	if f.pause == nil {
		f.pause = pause
	}
	acknowledged, last, said := "", "", ""
	var age time.Duration // of what was acknowledged, by the pauses: the clock may be set meanwhile
	for wanted := wait.Jitter(followFirst, 1); ; {
		// All machines of a cluster whose power came back begin at one moment.
		if f.pause(ctx, wait.Jitter(wanted, 0.2)) != nil {
			return nil
		}
		if age += wanted; age >= followAnew {
			acknowledged, age = "", 0
		}
		hash, err := o.follow(ctx, f, acknowledged)
		interval := o.followInterval()
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil:
			if said != "" || last != "" && hash != last {
				o.Log.Info("join: this machine follows the cluster's authorities")
			}
			acknowledged, last, said, wanted = hash, hash, "", interval
		default:
			if text := err.Error(); text != said {
				o.sayBehind(err)
				said, wanted = text, 0
			}
			wanted = min(max(2*wanted, followAgain), interval)
		}
	}
}

func (o RenewOptions) sayBehind(err error) {
	if errors.Is(err, errNotYet) {
		o.Log.Info("join: this machine does not follow the cluster's authorities yet", "cause", err)
		return
	}
	o.Log.Error("join: cannot follow the cluster's authorities", "error", err)
}

// follow looks once, and returns what the cluster has now and knows that this machine has. What was acknowledged counts
// while it is on the disk: somebody may have put files of before there.
func (o RenewOptions) follow(ctx context.Context, f FollowOptions, acknowledged string) (string, error) {
	o.Servers = f.Servers()
	hash, err := o.look(ctx)
	if err != nil || hash == acknowledged && hash == o.follows() {
		return hash, err
	}
	a, _, err := o.ask(ctx)
	if err != nil {
		return "", err
	}
	if a.recorded != "" {
		return a.recorded, nil
	}
	if err := f.Certificates(ctx); err != nil {
		return "", fmt.Errorf("renew this machine's certificates: %w", err)
	}
	if o.follows() == "" {
		return "", fmt.Errorf("%w: this machine's certificates are not of the new ones yet", errNotYet)
	}
	if a, _, err = o.ask(ctx); err != nil {
		return "", err
	}
	if a.recorded == "" {
		return "", fmt.Errorf("%w: the server %s has others than the last one asked", errNotYet, a.from)
	}
	return a.recorded, nil
}

// look returns the BundleHash of the server-ca of the first server that answers.
func (o RenewOptions) look(ctx context.Context) (string, error) {
	roots, err := cert.CertsFromFile(pki.CertFile(o.options().path(nodeTLS), pki.ServerCA))
	if err != nil {
		return "", fmt.Errorf("the cluster's CA: %w", err)
	}
	problems := []error{fmt.Errorf("no server of %v tells its CA", o.Servers)}
	for _, address := range o.Servers {
		r := remote{address: address, clock: o.options().clock}
		p, err := r.do(ctx, r.client(roots), http.MethodGet, CAPath, nil, maxCA)
		if err == nil && p.status != http.StatusOK {
			err = r.failed(p)
		}
		if err == nil {
			var certs []*x509.Certificate
			if certs, err = cert.ParseCertsPEM(p.body); err == nil {
				return bundleHash(certs), nil
			}
		}
		problems = append(problems, err)
	}
	return "", errors.Join(problems...)
}

// followInterval is the pause between two looks. The machine's certificates say how long they live where nothing else does.
func (o RenewOptions) followInterval() time.Duration {
	life := o.Life
	if leaf, err := loadLeaf(pki.PairFile(o.options().path(nodeTLS), pki.KubeletClient)); life <= 0 && err == nil {
		life = max(pki.SignedLife(leaf), time.Minute)
	}
	return min(followInterval, 5*pki.Interval(life))
}
