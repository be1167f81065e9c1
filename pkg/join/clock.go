package join

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cairn-os/cairn/pkg/token"
)

// Clock is the clock of a machine that joins. Only Run calls it, one method at a time.
type Clock interface {
	// Unset reports whether nobody vouches for the clock: no time server has answered since the machine was switched on,
	// and it is the machine's own to set. An error says that this is not known; the clock then stays as it is.
	Unset(ctx context.Context) (bool, error)
	// Set sets the time of day at once.
	Set(t time.Time) error
}

// followClock sets the machine's clock by the cluster's, when a try failed because the two differ and nobody vouches for
// the own one: a board without a battery, where no time server can be reached, could not join otherwise. It goes forward
// only. What was written by a clock that is ahead, the time that the machine keeps for its next start before all, would put
// it ahead again.
//
// The server's time is believed because its answer is sealed with the token's secret, and only with a token that names the
// cluster's CA. cause is why the try failed; it is returned unless there is more to say.
func (o Options) followClock(ctx context.Context, stretch *stretcher, cause error) (set bool, err error) {
	var skew *skewError
	t, problem := token.Parse(o.Token)
	if !errors.As(cause, &skew) || o.Clock == nil || problem != nil || t.Plain() {
		return false, cause
	}
	unset, err := o.Clock.Unset(ctx)
	if err != nil {
		o.Log.Warn("join: the clock stays as it is, for who set it is not known", "error", err)
	}
	if err != nil || !unset {
		return false, cause
	}
	to, err := o.askTime(ctx, stretch, t)
	if IsRefusal(err) {
		return false, err // the clock is not all that is in the way
	}
	if err != nil {
		return false, fmt.Errorf("%w; and the cluster does not tell its time: %w", cause, err)
	}
	was := o.clock() // not before the release was built
	if to.Sub(was) <= maxSkew {
		return false, cause
	}
	if err := o.Clock.Set(to); err != nil {
		return false, fmt.Errorf("%w; and the clock cannot be set by the cluster's: %w", cause, err)
	}
	o.Log.Warn("join: no time server set the clock; it is set by the cluster's", "was", was, "is", to)
	o.Status(fmt.Sprintf("no time server answers, so the clock is set by the cluster's, from %s to %s", stamp(was), stamp(to)))
	return true, nil
}

// askTime returns the cluster's time. The question is a join request without a time, which no server admits at any time,
// so it cannot be used by who repeats it. Until the answer is opened, the server's certificate is judged by the time that
// the server claims.
func (o Options) askTime(ctx context.Context, stretch *stretcher, t token.Token) (time.Time, error) {
	r, err := newRemote(o.ServerURL, o.clock)
	if err != nil {
		return time.Time{}, err
	}
	ca, claimed, err := r.caAt(ctx, t)
	if err != nil {
		return time.Time{}, err
	}
	r.clock = func() time.Time { return claimed }
	identity, err := loadIdentity(IdentityFile(o.Dir))
	if err != nil {
		return time.Time{}, err
	}
	seal, err := newSealer(stretch, t, ca)
	if err != nil {
		return time.Time{}, err
	}
	timeless := o
	timeless.now, timeless.Floor = func() time.Time { return time.Time{} }, time.Time{}
	plain, err := timeless.request(identity, seal, nil)
	if err != nil {
		return time.Time{}, err
	}
	_, err = r.exchange(ctx, ca, seal, plain)
	var told *skewError
	switch {
	case err == nil:
		return time.Time{}, fmt.Errorf("the server %s takes a request without a time", r.address)
	case !errors.As(err, &told):
		return time.Time{}, err
	case told.server.Sub(claimed).Abs() > maxSkew:
		return time.Time{}, fmt.Errorf("the server %s says two times, %s and %s", r.address, stamp(claimed), stamp(told.server))
	}
	return told.server, nil
}
