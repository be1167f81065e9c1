package nodecert

import (
	"context"
	"errors"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"

	"github.com/cairn-os/cairn/pkg/pki"
)

// Keep does Ensure's work again and again until ctx ends, and returns nil then: nothing that it meets is a reason to stop
// the node, whose pods run without the cluster too. It looks once a minute, or ten times in a shorter life, and tries
// sooner after an error.
func Keep(ctx context.Context, o Options) error {
	o = o.withDefaults()
	var last string
	var pause time.Duration
	for {
		_, err := Ensure(ctx, o)
		if ctx.Err() != nil {
			return nil
		}
		interval := o.interval()
		if err == nil {
			if last != "" {
				o.Log.Info("node certificates are in order again")
			}
			last, pause = "", interval
		} else {
			if text := err.Error(); text != last {
				o.Log.Error("node certificates not renewed", "error", err)
				last, pause = text, 0
			}
			pause = backOff(pause, interval, err)
		}
		// All agents of a cluster whose power came back begin at one moment.
		o.sleep(ctx, wait.Jitter(pause, 0.2))
	}
}

// backOff returns the pause after an error: from a sixth of the usual one up to it. What only a person can change is
// asked for more rarely.
func backOff(last, interval time.Duration, err error) time.Duration {
	if errors.Is(err, ErrDenied) {
		return min(max(2*last, interval), 5*interval)
	}
	return min(max(2*last, interval/6), interval)
}

// interval is how often the certificates there must be looked at.
func (o Options) interval() time.Duration {
	shortest := time.Duration(0)
	for _, name := range []string{pki.KubeletClient, pki.KubeletServer} {
		if have, err := loadPair(o.Dir, name); err == nil {
			if l := pki.SignedLife(have.Leaf); shortest == 0 || l < shortest {
				shortest = l
			}
		}
	}
	return pki.Interval(shortest)
}

// sleep waits that long, or until ctx ends.
func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
