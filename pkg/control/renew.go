package control

import (
	"context"
	"log/slog"
	"time"

	"k8s.io/client-go/transport"

	"github.com/cairn-os/cairn/pkg/pki"
)

// rereadCertificates makes this process's clients look for renewed certificates often enough for the life of theirs.
// They do so every five minutes by default. It must be called before the first client is made.
func (o Options) rereadCertificates() {
	transport.CertCallbackRefreshDuration = min(transport.CertCallbackRefreshDuration, pki.Interval(o.Life))
}

// renew keeps the certificates valid until ctx ends. The components reread them. It returns an error when the machine
// got another address than the one that the apiserver advertises: only a start anew changes that, and pods reach the
// apiserver by it.
func (o Options) renew(ctx context.Context, log *slog.Logger, expiry *expiry) error {
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
		if addresses, err := o.ownAddresses(); err == nil {
			o.addresses = addresses
		}
		written, err := pki.Ensure(o.pki())
		if err == nil && len(written) > 0 {
			log.Info("certificates renewed", "files", written)
			err = o.writeKubeconfigs()
		}
		if err != nil {
			log.Error("certificates not renewed", "error", err)
		}
	}
}
