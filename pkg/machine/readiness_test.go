package machine

import (
	"testing"
	"time"

	"github.com/cairn-os/cairn/pkg/machine/nodewatch"
	"github.com/cairn-os/cairn/pkg/status"
)

func TestReadiness(t *testing.T) {
	start := time.Date(2026, 11, 20, 14, 0, 0, 900, time.UTC)
	own := boot{id: "now"}
	shared := boot{id: "now", shared: true, since: start}
	obs := func(bootID string, ready bool, heartbeat time.Duration) nodewatch.Observation {
		o := nodewatch.Observation{Seen: true, BootID: bootID, Heartbeat: start.Truncate(time.Second).Add(heartbeat),
			Node: status.Node{Name: "till-1", Ready: ready, Reason: "KubeletNotReady", Message: "no CNI"}}
		if ready {
			o.Node.Reason, o.Node.Message = "KubeletReady", "fine"
		}
		return o
	}
	outage := nodewatch.Observation{Node: status.Node{Name: "till-1", Reason: nodewatch.ReasonUnreachable}}
	type step struct {
		o     nodewatch.Observation
		at    status.Seconds
		ready bool
		line  string
	}
	tests := map[string]struct {
		b     boot
		steps []step
	}{
		"a life": {own, []step{
			{outage, 10, false, ""},
			{obs("now", false, 0), 60, false, ""},
			{obs("now", true, 0), 71.34, true, "node till-1 Ready after 71.3s"},
			{obs("now", true, 0), 80, true, ""},
			{outage, 90, false, ""},
			{obs("now", true, 0), 95, true, ""},
			{obs("now", false, 0), 100, false, "node till-1 is not Ready: KubeletNotReady: no CNI"},
			{obs("now", true, 0), 120, true, "node till-1 is Ready again, 120.0s after power-on"},
		}},
		"the store remembers the boot before a power cut": {own, []step{
			{obs("before", true, 0), 40, false, ""},
			{obs("now", true, -time.Hour), 55, true, "node till-1 Ready after 55.0s"}, // the clock was wrong: no matter
		}},
		"the kernel is shared with others": {shared, []step{
			{obs("now", true, -time.Second), 2, false, ""},
			{obs("now", true, 0), 4, true, "node till-1 Ready after 4.0s"},
		}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var r readiness
			for i, s := range tt.steps {
				var node status.Node
				var line string
				r, node, line = r.observe(s.o, tt.b, s.at)
				if node.Ready != s.ready || line != s.line {
					t.Errorf("step %d: Ready %v, line %q; want %v, %q", i, node.Ready, line, s.ready, s.line)
				}
			}
		})
	}
}
