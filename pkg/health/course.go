package health

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cairn-os/cairn/pkg/status"
)

// course is what has been found so far, as a value: looking and judging are apart. Its times are since the trial's begin.
type course struct {
	settle  time.Duration
	uptime  time.Duration // at the begin
	checks  []Check
	streaks []streak
}

// streak is a row of looks of one check that passed.
type streak struct {
	passes   bool
	from     time.Duration // when the first of them ended
	last     time.Duration // when the last of them began
	hopeless int           // looks in a row that said Permanent
}

// enoughPermanent is how many looks in a row must say that no later one can pass.
const enoughPermanent = 2

func newCourse(lookers []*looker, settle, uptime time.Duration) *course {
	c := &course{settle: settle, uptime: uptime, checks: make([]Check, len(lookers)), streaks: make([]streak, len(lookers))}
	for i, l := range lookers {
		c.checks[i] = Check{Name: l.Name, Text: "not looked at yet"}
	}
	return c
}

// add takes what a look at check i has found, and says whether that is news: another outcome or other words.
func (c *course) add(i int, began, ended time.Duration, f Finding) bool {
	k, s := &c.checks[i], &c.streaks[i]
	text := shorten(f.Text, MaxText)
	news := k.Looks == 0 || k.OK != f.OK || k.Text != text
	if k.Looks == 0 || k.OK != f.OK {
		k.Since = status.InSeconds(c.uptime + ended)
	}
	k.Looks++
	switch {
	case !f.OK:
		k.Failures++
		k.Failed = ""
	case k.Looks > 1 && !k.OK:
		k.Failed = k.Text
	}
	k.OK, k.Text, k.Permanent, k.Remote = f.OK, text, f.Permanent && !f.OK, f.Remote && !f.OK
	s.hopeless++
	if !k.Permanent {
		s.hopeless = 0
	}
	if f.OK {
		if !s.passes {
			s.from = ended
		}
		s.last = began
	}
	s.passes = f.OK
	return news
}

// settled says whether every check has passed without a break for the settle time, and still did when it was over: the
// last look at each one began after that.
func (c *course) settled() bool {
	var all time.Duration // since when all pass
	for _, s := range c.streaks {
		if !s.passes {
			return false
		}
		all = max(all, s.from)
	}
	return !slices.ContainsFunc(c.streaks, func(s streak) bool { return s.last < all+c.settle })
}

// begins says whether some check has not been looked at yet.
func (c *course) begins() bool {
	return slices.ContainsFunc(c.checks, func(k Check) bool { return k.Looks == 0 })
}

// hopeless says whether some check cannot pass any more.
func (c *course) hopeless() bool {
	return slices.ContainsFunc(c.streaks, func(s streak) bool { return s.hopeless >= enoughPermanent })
}

// failing are the checks that do not pass, in words; those that cannot pass any more only, or first.
func (c *course) failing(onlyHopeless bool) []string {
	var first, all []string
	for i, k := range c.checks {
		switch {
		case k.OK:
		case c.streaks[i].hopeless >= enoughPermanent:
			first = append(first, k.Name+": "+k.Text)
		case !onlyHopeless:
			all = append(all, k.Name+": "+k.Text)
		}
	}
	return append(first, all...)
}

// waiting is what the trial waits for, in one line.
func (c *course) waiting() string {
	if failing := c.failing(false); len(failing) > 0 {
		return shorten("waiting for: "+named(failing), MaxReason)
	}
	return fmt.Sprintf("%s; healthy once they have for %s", c.allPass(), c.settle)
}

func (c *course) allPass() string {
	if len(c.checks) == 1 {
		return "the one check passes"
	}
	return fmt.Sprintf("all %d checks pass", len(c.checks))
}

// verdict is the end, as it is after so much time: by a look, or by the deadline.
func (c *course) verdict(now time.Time, after time.Duration) Verdict {
	v := Verdict{Healthy: c.settled(), Evidence: slices.Clone(c.checks), At: now, Uptime: status.InSeconds(c.uptime + after)}
	switch {
	case v.Healthy:
		v.Reason = fmt.Sprintf("%s, and did for %s without a break", c.allPass(), c.settle)
	case c.hopeless():
		v.Reason = "cannot become healthy: " + named(c.failing(true))
	case len(c.failing(false)) > 0:
		v.Reason = "not healthy in time: " + named(c.failing(false))
	default:
		v.Reason = "not healthy in time: " + c.unsteady()
	}
	v.Reason = shorten(v.Reason, MaxReason)
	return v
}

// unsteady tells which checks pass now but did not for long enough.
func (c *course) unsteady() string {
	var all []string
	for _, k := range c.checks {
		if k.Failures > 0 {
			all = append(all, fmt.Sprintf("%s passes only since %s after power-on and failed %d times before, the last time with: %s", k.Name, k.Since, k.Failures, k.Failed))
		}
	}
	if len(all) == 0 {
		return fmt.Sprintf("%s, but not for %s yet", c.allPass(), c.settle)
	}
	return named(all)
}

// named joins the first few of all and counts the others.
func named(all []string) string {
	if n := len(all) - maxNamed; n > 0 {
		return strings.Join(all[:maxNamed], "; ") + fmt.Sprintf("; and %d more", n)
	}
	return strings.Join(all, "; ")
}
