// Package clock keeps the machine's time by NTP.
//
// It is a simple client, not a server's discipline: every few minutes it asks up to four servers, takes the median of
// the valid answers, and corrects the kernel's clock: a step when the first measurement is off by more than a second
// (boards without a battery start in the past), else a slew. A later large offset is stepped only when a second
// measurement confirms it, because running pods do not like jumps.
package clock

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/beevik/ntp"
	"golang.org/x/sys/unix"

	"github.com/cairn-os/cairn/pkg/status"
)

// DefaultServers are asked when the configuration names none: the public, vendor-neutral pool of ntppool.org.
func DefaultServers() []string {
	return []string{"0.pool.ntp.org", "1.pool.ntp.org", "2.pool.ntp.org", "3.pool.ntp.org"}
}

const (
	stepThreshold = time.Second
	queryTimeout  = 5 * time.Second
	maxServers    = 4
	firstRetry    = 2 * time.Second
	minInterval   = 64 * time.Second
	maxInterval   = 1024 * time.Second // ntpd's longest; kind to the pool
)

// Options configure a Clock. Zero fields mean the real thing.
type Options struct {
	Servers []string // "host" or "host:port"; empty: DefaultServers
	Log     *slog.Logger
	// Adjust is adjtimex(2), for tests that must not touch the machine's clock.
	Adjust func(*unix.Timex) (int, error)
	// Synced, if set, is told when the clock becomes right, for the first time and after each outage. Nobody waits for
	// who does not listen.
	Synced chan<- struct{}
}

// Clock synchronises the kernel's clock.
type Clock struct {
	opt Options

	mu    sync.Mutex
	state status.Clock
}

// New returns a Clock that does nothing before Run.
func New(opt Options) *Clock {
	if len(opt.Servers) == 0 {
		opt.Servers = DefaultServers()
	}
	opt.Servers = opt.Servers[:min(len(opt.Servers), maxServers)]
	if opt.Adjust == nil {
		opt.Adjust = unix.Adjtimex
	}
	return &Clock{opt: opt}
}

// Status returns the state of the synchronisation.
func (c *Clock) Status() status.Clock {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state
}

// Run synchronises until ctx ends. Servers that cannot be reached are asked again, ever less often.
func (c *Clock) Run(ctx context.Context) {
	wait := firstRetry
	synced, doubtful := false, false
	for {
		s, err := c.measure(ctx)
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			doubtful, err = c.correct(s, !synced || doubtful)
		}
		if !doubtful {
			c.record(s, err)
		}
		switch {
		case err != nil:
			wait = min(wait*2, maxInterval)
		case doubtful || !synced:
			wait = minInterval
		default:
			wait = min(wait*4, maxInterval)
		}
		synced = synced || err == nil
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
	}
}

// record keeps the outcome for Status and logs changes of it.
func (c *Clock) record(s sample, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	next := c.state
	next.Error = ""
	if err != nil {
		next.Error = err.Error()
		if c.state.Error == "" { // once per outage
			c.opt.Log.Warn("clock not synchronised", "error", err)
		}
	} else {
		next = status.Clock{Synchronized: true, Server: s.server, OffsetS: status.InSeconds(s.offset)}
		if !c.state.Synchronized || c.state.Error != "" {
			c.opt.Log.Info("clock synchronised", "server", s.server, "offset", s.offset)
			select {
			case c.opt.Synced <- struct{}{}:
			default:
			}
		}
	}
	c.state = next
}

// sample is one server's opinion.
type sample struct {
	server string
	offset time.Duration // to add to our clock
	err    time.Duration // the largest error of offset
}

// measure asks all servers at once and returns the median of the valid answers.
func (c *Clock) measure(ctx context.Context) (sample, error) {
	type answer struct {
		s   sample
		err error
	}
	answers := make(chan answer, len(c.opt.Servers))
	for _, server := range c.opt.Servers {
		go func() {
			s, err := query(server)
			answers <- answer{s, err}
		}()
	}
	var good []sample
	var errs []error
	for range c.opt.Servers {
		select {
		case a := <-answers:
			if a.err != nil {
				errs = append(errs, a.err)
			} else {
				good = append(good, a.s)
			}
		case <-ctx.Done():
			return sample{}, ctx.Err()
		}
	}
	if len(good) == 0 {
		return sample{}, errors.Join(errs...)
	}
	return median(good), nil
}

func query(server string) (sample, error) {
	r, err := ntp.QueryWithOptions(server, ntp.QueryOptions{Timeout: queryTimeout})
	if err == nil {
		err = r.Validate()
	}
	if err != nil {
		return sample{}, fmt.Errorf("ntp server %s: %w", server, err)
	}
	return sample{server: server, offset: r.ClockOffset, err: r.RootDistance}, nil
}

func median(s []sample) sample {
	slices.SortFunc(s, func(a, b sample) int { return int(min(1, max(-1, a.offset-b.offset))) })
	return s[(len(s)-1)/2]
}

// correct brings the clock to s. When a large offset may not be stepped yet, it is left and doubtful is true.
func (c *Clock) correct(s sample, mayStep bool) (doubtful bool, err error) {
	if s.offset.Abs() > stepThreshold {
		if !mayStep {
			c.opt.Log.Warn("clock is far off: stepped if the next measurement agrees", "server", s.server, "offset", s.offset)
			return true, nil
		}
		// Relative, so that the time between measurement and call does not count.
		tx := unix.Timex{Modes: unix.ADJ_SETOFFSET, Time: unix.NsecToTimeval(s.offset.Nanoseconds())}
		if _, err := c.opt.Adjust(&tx); err != nil {
			return false, fmt.Errorf("step clock by %s: %w", s.offset, err)
		}
		c.opt.Log.Info("clock stepped", "server", s.server, "offset", s.offset)
	} else {
		var tx unix.Timex
		tx.Modes = unix.ADJ_OFFSET_SINGLESHOT
		setOffset(&tx, s.offset)
		if _, err := c.opt.Adjust(&tx); err != nil {
			return false, fmt.Errorf("slew clock by %s: %w", s.offset, err)
		}
	}
	return false, c.vouch(s)
}

// vouch clears the kernel's "unsynchronised" flag, with which it also writes the hardware clock every 11 minutes.
func (c *Clock) vouch(s sample) error {
	var tx unix.Timex
	tx.Modes = unix.ADJ_STATUS | unix.ADJ_MAXERROR | unix.ADJ_ESTERROR
	tx.Status = unix.STA_PLL
	setErrors(&tx, s.err)
	if _, err := c.opt.Adjust(&tx); err != nil {
		return fmt.Errorf("mark clock synchronised: %w", err)
	}
	return nil
}
