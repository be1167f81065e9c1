// Package health judges whether a machine is healthy: after an upgrade, whether the release that was just booted may stay,
// and later on, whether there is something to alarm about.
//
// A Judge looks at everything at once and again and again: the Kubernetes node, the store, the control plane, critical pods,
// and the owner's probes. Each look has a time limit of its own, and one that hangs holds up no other. The release is
// healthy when all of them have passed without a break for the settle time, and is not when the deadline comes first, or
// when one of them says that it cannot pass any more. What was seen is kept with the verdict, so that it can be read after the
// machine has gone back to the release before.
//
// Nothing here knows Kubernetes' libraries: the daemon that judges must outlive them. How the API server, the node and the
// store are reached is given by the caller. All times are monotonic, for clocks of small boards jump when they find a time server.
package health

import (
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/cairn-os/cairn/pkg/status"
)

// Finding is what one look found.
type Finding struct {
	OK bool
	// Text says what was seen, in words for people; of several lines and long text only some is kept. It should not
	// change from look to look while nothing happens: what it says is told on the console whenever it changes.
	Text string
	// Permanent says that no later look can pass, so that there is nothing to wait for.
	Permanent bool
	// Remote says that the cause may lie outside of this machine, so that restarting it is no remedy.
	Remote bool
}

// Check is what was found of one thing: the evidence of a verdict. Its JSON is kept on disk and shown by cairnctl: fields
// may be added, never renamed.
type Check struct {
	Name string `json:"name"`
	OK   bool   `json:"ok"`
	Text string `json:"text"` // of the last look; at most MaxText bytes
	// Since is when it became so, since power-on; 0 before the first look.
	Since    status.Seconds `json:"since_s"`
	Looks    int            `json:"looks"`
	Failures int            `json:"failures"` // how many of the looks did not pass
	// Failed is the text of the last look that did not pass, when the last one did.
	Failed    string `json:"failed,omitempty"`
	Permanent bool   `json:"permanent,omitempty"`
	Remote    bool   `json:"remote,omitempty"`
}

// Verdict is the end of a trial. Its JSON is kept as Check's is.
type Verdict struct {
	Healthy  bool    `json:"healthy"`
	Reason   string  `json:"reason"` // a sentence for people; at most MaxReason bytes
	Evidence []Check `json:"evidence"`
	// At is the time by the wall clock, which may not be right, and Uptime the time since power-on.
	At     time.Time      `json:"at"`
	Uptime status.Seconds `json:"uptime_s"`
}

// Progress is told while a trial runs.
type Progress struct {
	// Text is one line: "waiting for: critical pods shop app=till: till-x: CrashLoopBackOff".
	Text   string  `json:"text"`
	Checks []Check `json:"checks"`
	// Left is the time until the deadline.
	Left time.Duration `json:"left_ns"`
}

// Store is what the store's process tells of itself and of its cluster.
type Store struct {
	Leader  bool   // a leader is known
	Quorum  bool   // a majority of the voters is online
	Voters  int    // 0: not known, as without a leader
	Online  int    // of the voters
	Index   uint64 // of what was applied last, or the leader's revision: it must grow, for nodes renew their leases
	Message string // what the store itself says is wrong, if anything
}

// Node is what is seen of this machine's node.
type Node struct {
	// Node's Ready is true only when the kubelet of this boot has said so: the object outlives a power cut.
	status.Node
	// Seen is false when the API server could not be asked.
	Seen bool
}

// Bounds of what is kept.
const (
	MaxText   = 400
	MaxReason = 1000
	// maxNamed is how many things of a kind a text names before it says how many more there are.
	maxNamed = 3
)

// shorten makes text fit for a console, a log and the disk: one line, without control characters, at most most bytes.
func shorten(text string, most int) string {
	cut := len(text) > 4*most // of what is enormous the begin is enough
	if cut {
		text = text[:4*most]
	}
	text = strings.Map(func(r rune) rune {
		switch {
		case r == '\n', r == '\r', r == '\t':
			return ' '
		case !unicode.IsPrint(r), r == utf8.RuneError:
			return -1
		}
		return r
	}, text)
	text = strings.TrimSpace(text)
	if len(text) <= most && !cut {
		return text
	}
	end := min(len(text), most-len("..."))
	for 0 < end && end < len(text) && !utf8.RuneStart(text[end]) {
		end--
	}
	return text[:end] + "..."
}
