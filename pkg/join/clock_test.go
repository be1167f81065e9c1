package join

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cairn-os/cairn/pkg/membership"
	"github.com/cairn-os/cairn/pkg/token"
)

// handClock is a machine's clock, some time off the cluster's.
type handClock struct {
	c     *cluster
	off   time.Duration
	unset bool
	err   error // of Unset
	fails error // of Set
	sets  int
}

func (h *handClock) now() time.Time                      { return h.c.clock().Add(h.off) }
func (h *handClock) Unset(context.Context) (bool, error) { return h.unset, h.err }
func (h *handClock) Set(t time.Time) error {
	h.sets++
	if h.fails == nil {
		h.off = t.Sub(h.c.clock())
	}
	return h.fails
}

const year = 365 * 24 * time.Hour

// TestClockFollows sets the clock of a board without a battery by the cluster's, and no other.
func TestClockFollows(t *testing.T) {
	failed := errors.New("not permitted")
	for _, tt := range []struct {
		name  string
		clock handClock
		plain bool
		floor time.Duration // off the cluster's clock
		joins bool
		tells string
	}{
		{name: "a year behind", clock: handClock{off: -year, unset: true}, joins: true},
		{name: "in 1970", clock: handClock{off: -50 * year, unset: true}, floor: -year, joins: true},
		{name: "eleven minutes behind", clock: handClock{off: -11 * time.Minute, unset: true}, joins: true},
		{name: "ahead", clock: handClock{off: year, unset: true}},
		{name: "the release is newer than the cluster's time", clock: handClock{off: -50 * year, unset: true}, floor: year},
		{name: "set by a time server", clock: handClock{off: -year}},
		{name: "nobody knows who set it", clock: handClock{off: -year, unset: true, err: failed}},
		{name: "cannot be set", clock: handClock{off: -year, unset: true, fails: failed}, tells: "not permitted"},
		{name: "a plain secret", clock: handClock{off: -year, unset: true}, plain: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := newCluster(t)
			h := tt.clock
			h.c = c
			once, _ := c.create(TokenRequest{Role: "server", Once: true})
			text := once
			if tt.plain {
				text = plainSecret
			}
			o, status := c.machine(membership.Server, "board", text)
			o.now, o.Clock = h.now, &h
			if tt.floor != 0 {
				o.Floor = c.clock().Add(tt.floor)
			}
			was := o.clock()
			var said []string
			o.Status = func(s string) { *status = s; said = append(said, s) }
			if tt.joins {
				mustRun(t, o)
				if h.sets != 1 || h.off != 0 {
					t.Errorf("the clock was set %d times and is %v off", h.sets, h.off)
				}
				if all := strings.Join(said, "\n"); !strings.Contains(all, "set by the cluster's, from "+stamp(was)+" to "+stamp(c.clock())) {
					t.Errorf("said %q; want both times", said)
				}
				if !strings.Contains(c.log.String(), "told the time") {
					t.Errorf("the server's log: %s", c.log.String())
				}
				return
			}
			err := run(t, o)
			if err == nil || IsRefusal(err) || !strings.Contains(*status, "clocks differ") || !strings.Contains(*status, stamp(was)) ||
				!strings.Contains(*status, stamp(c.clock())) || !strings.Contains(*status, tt.tells) {
				t.Errorf("Run = %v, status %q", err, *status)
			}
			if h.off != tt.clock.off || (h.sets > 0) != (h.fails != nil) {
				t.Errorf("the clock was set %d times and is %v off; want it as it was", h.sets, h.off)
			}
			if got := files(t, o.Dir); len(got) != 1 {
				t.Errorf("files %v; want the identity alone", got)
			}
		})
	}
}

// TestClockOfLiars believes no time that is not sealed with the token's secret.
func TestClockOfLiars(t *testing.T) {
	c := newCluster(t)
	lie := c.clock().Add(100 * 24 * time.Hour) // the server's certificate is valid then
	var asked atomic.Int64
	liar := c.serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Date", lie.UTC().Format(http.TimeFormat))
		if r.URL.Path == JoinPath {
			asked.Add(1)
		}
		c.server.Handler().ServeHTTP(w, r)
	}), c.dir+"/server/tls")
	h := &handClock{c: c, unset: true}
	o, status := c.machine(membership.Agent, "a", c.token(token.Agent))
	o.ServerURL, o.now, o.Clock = liar.URL, h.now, h
	if err := run(t, o); err == nil || IsRefusal(err) || !strings.Contains(*status, "says two times") || h.sets > 0 || asked.Load() != 1 {
		t.Errorf("Run = %v after %d questions, clock set %d times", err, asked.Load(), h.sets)
	}
	if got, err := getRecord(t.Context(), c.client, "a"); err != nil || got != nil {
		t.Errorf("the question for the time took the name: %v, %v", got, err)
	}
	// Who shows a certificate that is not the cluster's is told nothing.
	other := newCluster(t)
	mallory := other.serve(c.server.Handler(), other.dir+"/server/tls")
	h.off = -year
	o.ServerURL = mallory.URL
	wantRefusal(t, o, run(t, o), CodeCA, "did not sign")
	// A wrong token is told before a wrong clock, and sets nothing.
	k, err := token.Parse(o.Token)
	if err != nil {
		t.Fatal(err)
	}
	k.Secret = "guess"
	o.ServerURL, o.Token = c.http.URL, k.String()
	wantRefusal(t, o, run(t, o), CodeToken)
	if h.sets > 0 {
		t.Error("the clock was set")
	}
}

// TestClockSetOnce does not set the clock again and again when that does not help.
func TestClockSetOnce(t *testing.T) {
	c := newCluster(t)
	h := &handClock{c: c, off: -year, unset: true}
	o, status := c.machine(membership.Agent, "a", c.token(token.Agent))
	o.Clock = h
	o.now = func() time.Time { return c.clock().Add(-year) } // somebody sets it back
	tries := 0
	o.pause = func(context.Context, time.Duration) error {
		if tries++; tries == 4 {
			return errStop
		}
		return nil
	}
	if err := run(t, o); err == nil || IsRefusal(err) || h.sets != 1 || !strings.Contains(*status, "clocks differ") {
		t.Errorf("Run = %v; clock set %d times", err, h.sets)
	}
}
