package health

import (
	"hash/fnv"
	"time"
)

// Watch is what is known of the health of a machine whose release is confirmed. There a failure never changes the slot: a
// release that was healthy is not to blame for what broke months later, and the one before it is older still. It alarms,
// and restarts the machine at most once, which mends what a restart can mend (as openSUSE MicroOS's health-checker does).
//
// It is a value, and Next the only thing that changes it. Rebooted outlives the restart: the caller writes it to disk when
// it changes, before it restarts the machine, and does not restart when it cannot write. Power that goes between the two costs
// a restart that did not happen, which is as good as one that did. All other fields begin anew with each boot. There is no
// wall clock in it: what happened in an earlier boot counts until the machine has been well for long enough in one boot.
type Watch struct {
	// Rebooted says that the machine was restarted for its health and has not been well for Policy.Forget since.
	Rebooted bool `json:"rebooted"`

	alarmed bool
	failing span // since the first look that failed and was not followed by Steady of good ones
	here    span // the same of looks that failed for a reason on this machine
	well    span // since the first of the good looks in a row
}

// span is a time that goes on.
type span struct {
	on    bool
	since time.Duration
}

func (s *span) run(now time.Duration) {
	if !s.on {
		*s = span{true, now}
	}
}

func (s span) lasted(now, atLeast time.Duration) bool { return s.on && now-s.since >= atLeast }

// Policy is when to do what. Its times are of one boot.
type Policy struct {
	Alarm  time.Duration // failing for so long alarms
	Steady time.Duration // well for so long ends a failure; less is part of it
	// Reboot: failing for so long, for a reason on this machine, restarts it. 0: never.
	Reboot time.Duration
	// Quiet is the time since power-on in which the machine is not restarted: somebody may want to log in and look.
	Quiet time.Duration
	// Forget: well for so long in one boot permits another restart.
	Forget time.Duration
}

// DefaultPolicy alarms after 5 minutes and restarts after 20 to 50, so that a fault that all machines of a shop have at the same
// time does not take them all away at the same time: name, the node's, picks when.
func DefaultPolicy(name string) Policy {
	h := fnv.New32a()
	h.Write([]byte(name)) // never fails, as package hash says
	spread := time.Duration(h.Sum32()%1800) * time.Second
	return Policy{Alarm: 5 * time.Minute, Steady: 2 * time.Minute, Reboot: 20*time.Minute + spread, Quiet: 20 * time.Minute, Forget: 24 * time.Hour}
}

// Sight is the outcome of one look at everything.
type Sight struct {
	Healthy bool
	// Here says that something on this machine fails: a check that is not Remote.
	Here bool
	// Busy says that the machine must not be restarted now: an upgrade is under way, or an operator works on it.
	Busy bool
}

// See sums up what Judge.Look has found.
func See(checks []Check) Sight {
	s := Sight{Healthy: true}
	for _, c := range checks {
		s.Healthy = s.Healthy && c.OK
		s.Here = s.Here || !c.OK && !c.Remote
	}
	return s
}

// Action is what is to be done after a look.
type Action string

// The actions.
const (
	Nothing  Action = "nothing"
	Alarm    Action = "alarm"     // tell people, once for each failure
	AllClear Action = "all clear" // tell them that it is over
	Reboot   Action = "reboot"    // after Rebooted has been written
)

// Next takes a look at uptime since power-on, and returns the next value and what to do. Looks come in order.
func (w Watch) Next(p Policy, s Sight, uptime time.Duration) (Watch, Action) {
	if s.Healthy {
		return w.good(p, uptime)
	}
	w.well = span{}
	w.failing.run(uptime)
	if s.Here {
		w.here.run(uptime)
	} else {
		w.here = span{}
	}
	switch {
	case p.Reboot > 0 && !w.Rebooted && !s.Busy && uptime >= p.Quiet && w.here.lasted(uptime, p.Reboot) && w.alarmed:
		w.Rebooted = true
		return w, Reboot
	case !w.alarmed && w.failing.lasted(uptime, p.Alarm):
		w.alarmed = true
		return w, Alarm
	}
	return w, Nothing
}

func (w Watch) good(p Policy, uptime time.Duration) (Watch, Action) {
	w.well.run(uptime)
	if w.well.lasted(uptime, p.Forget) {
		w.Rebooted = false
	}
	if !w.well.lasted(uptime, p.Steady) {
		return w, Nothing
	}
	w.failing, w.here = span{}, span{}
	if !w.alarmed {
		return w, Nothing
	}
	w.alarmed = false
	return w, AllClear
}
