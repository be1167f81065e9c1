package control

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"k8s.io/client-go/transport"

	"github.com/cairn-os/cairn/pkg/pki"
)

// rereadCertificates makes this process's clients look for renewed certificates often enough for the life of theirs.
// They do so every five minutes by default. It must be called before the first client is made.
func (o Options) rereadCertificates() {
	transport.CertCallbackRefreshDuration = min(transport.CertCallbackRefreshDuration, pki.Interval(o.Life))
}

// certificateFiles are the machine's files, which two parts of this process change: one when time passes, the other when the
// cluster's authorities are replaced.
type certificateFiles struct {
	log *slog.Logger

	mu      sync.Mutex // held while the files are changed
	options Options    // its addresses follow the machine's
	stale   bool       // what is made of the files is not up to date
}

// ensure renews what is due.
func (c *certificateFiles) ensure() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if addresses, err := c.options.ownAddresses(); err == nil {
		c.options.addresses = addresses
	}
	written, err := pki.Ensure(c.options.pki())
	if len(written) > 0 {
		c.log.Info("certificates renewed", "files", written)
	}
	return errors.Join(err, c.follow(len(written) > 0))
}

// change has f change the files, and brings what is made of them up to date.
func (c *certificateFiles) change(f func(pki.Options) (changed bool, err error)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	changed, err := f(c.options.pki())
	return errors.Join(err, c.follow(changed))
}

// follow writes the configurations that hold or name the certificates after these changed.
func (c *certificateFiles) follow(changed bool) error {
	if c.stale = c.stale || changed; !c.stale {
		return nil
	}
	err := c.options.writeKubeconfigs()
	c.stale = err != nil
	return err
}

// renew keeps the certificates valid until ctx ends. The components reread them. It returns an error when the machine
// got another address than the one that the apiserver advertises: only a start anew changes that, and pods reach the
// apiserver by it.
func (c *certificateFiles) renew(ctx context.Context, expiry *expiry) error {
	o := c.options // what does not change
	primary := o.addresses[0]
	tick := time.NewTicker(pki.Interval(o.Life))
	defer tick.Stop()
	for {
		expiry.look(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		// Without an address, for a pulled cable, the certificates stay valid for the ones of before.
		if found, err := pki.Addresses(o.NodeIPs...); err == nil && !o.listen.IsValid() {
			if err := pki.Lost(primary, found); err != nil {
				return err
			}
		}
		if err := c.ensure(); err != nil {
			c.log.Error("certificates not renewed", "error", err)
		}
	}
}
