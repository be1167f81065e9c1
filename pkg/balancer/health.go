package balancer

import "time"

// State is what a balancer thinks of a server.
type State string

const (
	Unknown  State = "unknown"   // not asked yet
	Ready    State = "ready"     // answers and wants requests
	NotReady State = "not ready" // answers and wants none: its store has no quorum, it starts or ends
	Dead     State = "dead"      // gives no answer that can be trusted
)

// health is the state machine of one server. Four things happen to it:
//
//	           ready   unready                slow       silent
//	Unknown    Ready   NotReady               NotReady   Dead
//	Ready      Ready   NotReady, the 2nd time NotReady   Dead, the 2nd time
//	NotReady   Ready   NotReady               NotReady   Dead, the 2nd time
//	Dead       Ready   NotReady               NotReady   Dead
//
// and a connection that cannot be made makes it Dead from anywhere at once: a
// kernel answers when its programs are too busy to. The second time means in a
// row: one moment of a server that starts or ends moves nobody. Slow is one
// whose kernel answers and which does not get through with a handshake: what
// is new has a better time elsewhere at once, and what is connected may work.
type health struct {
	state  State
	since  time.Time // of state
	reason string    // why it is not Ready; of the last failure

	misses   int       // checks in a row that were not ready
	silences int       // checks in a row without any answer
	missed   time.Time // when the first of the misses began
	failed   time.Time // when the last of them began
	unheard  time.Time // when the first of the last ones began that got no packet back; zero when the last one did
}

// patience is how many failed checks in a row count.
const patience = 2

func (h *health) ready(now time.Time) {
	h.misses, h.silences, h.reason, h.unheard = 0, 0, "", time.Time{}
	h.become(Ready, now)
}

// unready records a check that began then and ended now.
func (h *health) unready(began, now time.Time, why error) {
	h.miss(began, why)
	h.silences = 0
	if h.state != Ready || h.misses >= patience {
		h.become(NotReady, now)
	}
}

// slow records a check whose handshake took too long.
func (h *health) slow(began, now time.Time, why error) {
	h.miss(began, why)
	h.silences = 0
	h.become(NotReady, now)
}

// silent records a check without an answer that can be trusted.
func (h *health) silent(began, now time.Time, why error) {
	h.miss(began, why)
	h.silences++
	if h.state == Unknown || h.silences >= patience {
		h.become(Dead, now)
	}
}

// refused records that a connection could not be made.
func (h *health) refused(began, now time.Time, why error) {
	h.miss(began, why)
	h.silences = patience
	h.become(Dead, now)
}

// vanished records a check that got no packet back.
func (h *health) vanished(began, now time.Time, why error) {
	first := h.unheard
	if first.IsZero() {
		first = began
	}
	h.refused(began, now, why)
	h.unheard = first
}

func (h *health) miss(began time.Time, why error) {
	if h.misses == 0 {
		h.missed = began
	}
	h.misses++
	h.failed, h.unheard = began, time.Time{}
	h.reason = why.Error()
}

func (h *health) become(s State, now time.Time) {
	if h.state != s {
		h.state, h.since = s, now
	}
}

// doubtful reports whether the next check should come soon, for the last one
// alone does not say how things are.
func (h *health) doubtful() bool { return h.state != Dead && h.misses > 0 && h.misses < patience }

// rank orders servers for new connections, lowest first. One that was never
// asked may be as good as any.
func (h *health) rank() int {
	switch h.state {
	case Ready:
		return 0
	case Unknown:
		return 1
	case NotReady:
		return 2
	default:
		return 3
	}
}

// usable reports whether new connections may go to the server while others
// are there.
func (h *health) usable() bool { return h.rank() < 2 }

// hopeless reports whether what is connected is better off elsewhere. A server
// whose kernel answers keeps its connections for grace: some of them carry a
// person's shell, and it may only be starting its controllers again, or have
// more handshakes to do than it can, to which all that is cut would add. It
// does not keep them for ever: a kubelet that stays with it cannot renew its
// lease.
func (h *health) hopeless(now time.Time, grace time.Duration) bool {
	switch h.state {
	case Dead:
		return true
	case NotReady:
		return now.Sub(h.missed) >= grace
	default:
		return false
	}
}
