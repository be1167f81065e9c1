package node

import (
	"context"
	"errors"
	"log/slog"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

const (
	// memberInterval is how often the cluster is asked for the own Node, and memberPatience how many refusals in a row
	// count: a server that just started may not know everybody yet.
	memberInterval = 30 * time.Second
	memberPatience = 2
	memberLimit    = 20 * time.Second
)

// errRemoved ends the node of a machine that was removed and is a member again.
var errRemoved = errors.New("this machine was removed from the cluster and has joined it again: the node starts anew")

// memberWatch is what watchMembership needs to know and to do.
type memberWatch struct {
	ask     func(context.Context) error // asks the cluster for something that members are told
	renew   func(context.Context) error // asks for a certificate by the machine's identity, and keeps it when a server says that there is none any more
	removed func() bool                 // a server said that the machine was removed, and it did not join again since
	rejoin  func(context.Context) error // starts joining

	interval time.Duration
}

// watchMembership returns nil when ctx ends, and errRemoved once the machine is a member again after it was removed: the
// cluster refuses what it asks with its certificates, which are long valid yet, so that renewing them would tell too late.
func watchMembership(ctx context.Context, log *slog.Logger, w memberWatch) error {
	tick := time.NewTicker(w.interval)
	defer tick.Stop()
	refusals, waiting := 0, w.removed()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if waiting {
			if !w.removed() {
				return errRemoved
			}
			continue
		}
		if !w.limited(ctx, w.ask, apierrors.IsUnauthorized) {
			refusals = 0
			continue
		}
		if refusals++; refusals < memberPatience {
			continue
		}
		refusals = 0
		w.limited(ctx, w.renew, func(error) bool { return false })
		if !w.removed() {
			continue // a certificate that ended, which others renew
		}
		waiting = true
		log.Warn("this machine was removed from the cluster; it joins again if its configuration has a token that is good")
		if err := w.rejoin(ctx); err != nil {
			log.Error("joining does not start", "error", err)
		}
	}
}

// limited calls f for a bounded time and reports whether its error is one that is wanted.
func (w memberWatch) limited(ctx context.Context, f func(context.Context) error, is func(error) bool) bool {
	ctx, cancel := context.WithTimeout(ctx, memberLimit)
	defer cancel()
	err := f(ctx)
	return err != nil && is(err)
}
