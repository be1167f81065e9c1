package join

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"

	"k8s.io/client-go/util/cert"

	"github.com/cairn-os/cairn/pkg/membership"
	"github.com/cairn-os/cairn/pkg/pki"
)

// usualLife is the life of a certificate when the configuration names none.
const usualLife = 365 * 24 * time.Hour

// refresh obtains the own certificates of an agent or a witness when they lack or have ended, and the witness's when it is
// due. It asks no server while all is well. A Refusal with CodeRemoved says that the machine is no member any more.
func (o Options) refresh(ctx context.Context, m *membership.Membership) error {
	_, err := os.Stat(o.removedFile())
	marked := !errors.Is(err, fs.ErrNotExist)
	if m.Role != membership.Witness {
		return o.refreshNode(ctx, m, marked)
	}
	if marked { // it may be a member again, by a snapshot of the store that was restored
		if _, _, err := Renew(ctx, o.renewOptions(m)); err != nil {
			return err
		}
	}
	return o.refreshStore(ctx, m)
}

// refreshNode looks after an agent's certificates. Its node renews them in time. One that has ended tells that the machine
// was off for long, and may have been removed meanwhile; what else is wrong then is the node's to repair.
func (o Options) refreshNode(ctx context.Context, m *membership.Membership, marked bool) error {
	lacks := slices.ContainsFunc(ownFiles(m.Role), func(name string) bool {
		_, err := os.Stat(o.path(name))
		return errors.Is(err, fs.ErrNotExist)
	})
	client, err := loadLeaf(pki.PairFile(o.path(nodeTLS), pki.KubeletClient))
	if ended := err == nil && !o.clock().Before(client.NotAfter); !lacks && !ended && !marked {
		return nil
	}
	bootstrap, _, err := Renew(ctx, o.renewOptions(m))
	if err == nil && marked { // a member again, by a snapshot of the store that may not know the last keys
		err = o.dropNode()
	}
	if err == nil {
		err = o.obtainNode(ctx, bootstrap, m)
	}
	if err != nil && !lacks && !marked && !isRemoved(err) {
		o.Log.Warn("join: this node's certificates have ended and are not renewed yet", "error", err)
		return nil
	}
	return err
}

// refreshStore renews a witness's certificate. While the old one is valid, a failure waits for the next time.
func (o Options) refreshStore(ctx context.Context, m *membership.Membership) error {
	if serves, err := o.storeServes(); err != nil || serves {
		return err
	}
	_, err := RenewStore(ctx, o.renewOptions(m))
	if err == nil || isRemoved(err) {
		return err
	}
	if c, bad := loadLeaf(pki.PairFile(o.path(serverTLS), pki.Store)); bad == nil && o.clock().Before(c.NotAfter) {
		o.Log.Warn("join: the store's certificate is not renewed yet", "expires", c.NotAfter, "error", err)
		return nil
	}
	return fmt.Errorf("renew the store's certificate: %w", err)
}

// storeServes reports whether a witness's certificate is what the cluster would give it now, with a third of its life left
// or as long as the authority has. One by an authority that is trusted but does not sign any more is good, and does not
// serve: that authority's time is over soon.
func (o Options) storeServes() (bool, error) {
	cas, err := cert.CertsFromFile(pki.CertFile(o.path(serverTLS), pki.StoreCA))
	if err != nil {
		return false, fmt.Errorf("certificate authority: %w", err)
	}
	have, err := loadLeaf(pki.PairFile(o.path(serverTLS), pki.Store))
	if err != nil {
		return false, nil // none, or damaged
	}
	want := pki.StoreWitnessRequest(o.Node)
	if !pki.Current(cas, have) || have.Subject.CommonName != want.User || !slices.Equal(have.Subject.Organization, want.Groups) ||
		!slices.Equal(have.DNSNames, want.DNSNames) || !slices.Equal(have.ExtKeyUsage, want.Usages) {
		return false, nil
	}
	now := o.clock()
	if now.Before(have.NotBefore) || !now.Before(have.NotAfter) {
		return false, nil
	}
	life := o.Life
	if life <= 0 {
		life = usualLife
	}
	// The servers' configuration may give it a shorter life than the own one.
	life = min(life, have.NotAfter.Sub(have.NotBefore))
	left := have.NotAfter.Sub(now)
	lasts := slices.ContainsFunc(cas, func(ca *x509.Certificate) bool {
		return have.CheckSignatureFrom(ca) == nil && !have.NotAfter.Before(ca.NotAfter)
	})
	return left >= life/3 || lasts, nil
}

// Removed says whether a server told the machine whose state is in dir that it was removed from the cluster, and it is no
// member again yet.
func Removed(dir string) bool {
	_, err := os.Stat(Options{Dir: dir}.removedFile())
	return err == nil
}

// removedFile is there from when a server said that the machine was removed from the cluster until it is a member again.
// What runs meanwhile learns it long before the certificates end, and the machine joins again at its next start.
func (o Options) removedFile() string { return o.path("node", "removed") }

func isRemoved(err error) bool {
	var r *Refusal
	return errors.As(err, &r) && r.Code == CodeRemoved
}

// mark keeps that the machine was removed.
func (o Options) mark() error {
	if _, err := os.Stat(o.removedFile()); err == nil {
		return nil
	}
	return o.write(o.removedFile(), []byte("A server said at "+stamp(o.clock())+" that this machine was removed from the cluster.\n"), 0o600)
}

func (o Options) unmark() error {
	if err := os.Remove(o.removedFile()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// joinRemoved takes a machine in again that was removed and still has what it needs to join. Until that succeeded the old
// membership is on the disk.
func (o Options) joinRemoved(ctx context.Context, stretch *stretcher) error {
	const removed = "this machine was removed from its cluster"
	if o.ServerURL == "" || o.Token == "" {
		return refuse(CodeRemoved, removed+": give it cairn.server_url and a cairn.token that is good to take it in again, "+
			"or return it to its factory state with \"cairnctl reset\"")
	}
	o.Log.Warn("join: again, because this machine was removed from the cluster")
	err := o.join(ctx, stretch)
	var r *Refusal
	if errors.As(err, &r) {
		return &Refusal{r.Code, removed + " and cannot join it again: " + r.Text}
	}
	return err
}
