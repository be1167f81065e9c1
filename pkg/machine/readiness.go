package machine

import (
	"fmt"
	"time"

	"github.com/cairn-os/cairn/pkg/machine/nodewatch"
	"github.com/cairn-os/cairn/pkg/status"
)

// readiness decides what to say about the node's Ready condition. It is a value: deciding and saying are apart.
type readiness struct {
	ready   bool
	readyAt status.Seconds // of the first time in this boot; 0: not yet
}

// boot is what tells this boot's observations from those that the store kept from an earlier one.
type boot struct {
	id string // /proc/sys/kernel/random/boot_id
	// shared: other systems run on this kernel (container mode), so that a boot id alone proves nothing.
	shared bool
	since  time.Time // when init was started, by the wall clock; used only when shared
}

// current says whether the observation is of this boot. After a power cut the object in the store says Ready until
// the new kubelet reports. Where the kernel is ours the boot id decides, because clocks of small boards jump.
func (b boot) current(o nodewatch.Observation) bool {
	// The object's times have whole seconds.
	return o.BootID == b.id && (!b.shared || !o.Heartbeat.Before(b.since.Truncate(time.Second)))
}

// observe takes an observation and returns the next value, the node as it is to be shown, and a line to announce or
// "". at is the time since power-on.
func (r readiness) observe(o nodewatch.Observation, b boot, at status.Seconds) (readiness, status.Node, string) {
	node := o.Node
	if !o.Seen {
		return r, node, "" // nothing is known of the condition: no news
	}
	if !b.current(o) {
		node.Ready, node.Reason = false, "StatusOfEarlierBoot"
		node.Message = "the kubelet has not reported since this boot"
		return r, node, ""
	}
	was := r.ready
	r.ready = node.Ready
	switch {
	case node.Ready == was:
		return r, node, ""
	case !node.Ready:
		return r, node, fmt.Sprintf("node %s is not Ready: %s: %s", node.Name, node.Reason, node.Message)
	case r.readyAt == 0:
		r.readyAt = at
		// The check of the whole image waits for this line.
		return r, node, fmt.Sprintf("node %s Ready after %.1fs", node.Name, float64(at))
	default:
		return r, node, fmt.Sprintf("node %s is Ready again, %.1fs after power-on", node.Name, float64(at))
	}
}
