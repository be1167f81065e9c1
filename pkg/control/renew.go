package control

import (
	"context"
	"log/slog"
	"time"

	"github.com/cairn-os/cairn/pkg/pki"
)

// renewInterval is how often certificates are compared with the machine's addresses and the clock. Reading them takes
// less than a millisecond.
const renewInterval = time.Minute

// renew keeps the certificates valid until ctx ends. The components reread them. It returns an error when the machine
// got another address than the one that the apiserver advertises: only a start anew changes that, and pods reach the
// apiserver by it.
func (o Options) renew(ctx context.Context, log *slog.Logger) error {
	primary := o.addresses[0]
	tick := time.NewTicker(renewInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		// Without an address, for a pulled cable, the certificates stay as they are.
		addresses, err := pki.Addresses()
		if err != nil {
			continue
		}
		if err := pki.Lost(primary, addresses); err != nil {
			return err
		}
		o.addresses = addresses
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
