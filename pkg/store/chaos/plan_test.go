package chaos

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-os/cairn/pkg/store/chaos/history"
	"github.com/cairn-os/cairn/pkg/store/chaos/nodes"
)

func TestPlan(t *testing.T) {
	const length = 12 * time.Second
	drawn := map[FaultKind]int{}
	for seed := range uint64(300) {
		plan := Plan(seed, 3, length)
		if diff := cmp.Diff(plan, Plan(seed, 3, length)); diff != "" {
			t.Errorf("seed %d gives two plans:\n%s", seed, diff)
		}
		if len(plan) == 0 {
			t.Errorf("seed %d: no faults", seed)
		}
		for _, f := range plan {
			drawn[f.Kind]++
			if f.At < 0 || f.For < 0 || f.At+f.For > length || f.Victim < 0 || f.Victim > 2 || f.Other < 1 || f.Other > 2 {
				t.Errorf("seed %d: fault %+v", seed, f)
			}
		}
		for _, f := range Plan(seed, 1, length) {
			if f.Victim != 0 || f.Kind >= Isolate && f.Kind <= Slow {
				t.Errorf("seed %d: fault %s of a lone node", seed, f)
			}
		}
	}
	for kind := range faultNames {
		if drawn[FaultKind(kind)] < 20 {
			t.Errorf("%s came %d times in 300 plans", FaultKind(kind), drawn[FaultKind(kind)])
		}
	}
}

func TestLossesOf(t *testing.T) {
	for _, tt := range []struct {
		fault Fault
		want  []nodes.Loss
	}{
		{Fault{Kind: Isolate}, []nodes.Loss{{From: 1, To: 0, Percent: 100}, {From: 0, To: 1, Percent: 100}, {From: 1, To: 2, Percent: 100}, {From: 2, To: 1, Percent: 100}}},
		{Fault{Kind: Cut, Other: 2}, []nodes.Loss{{From: 1, To: 0, Percent: 100}, {From: 0, To: 1, Percent: 100}}},
		{Fault{Kind: Mute}, []nodes.Loss{{From: 1, To: 0, Percent: 100}, {From: 1, To: 2, Percent: 100}}},
		{Fault{Kind: Deafen}, []nodes.Loss{{From: 0, To: 1, Percent: 100}, {From: 2, To: 1, Percent: 100}}},
		{Fault{Kind: Lossy, Amount: 7}, []nodes.Loss{{From: 1, To: 0, Percent: 7}, {From: 0, To: 1, Percent: 7}, {From: 1, To: 2, Percent: 7}, {From: 2, To: 1, Percent: 7}}},
	} {
		if diff := cmp.Diff(tt.want, lossesOf(tt.fault, 1, 3)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.fault.Kind, diff)
		}
	}
}

// TestSeedDecides asks two clients of one seed, who get different answers.
func TestSeedDecides(t *testing.T) {
	draw := func(known int64) (all []history.Operation) {
		c := client{random: random(5, 1), known: map[string]int64{}}
		for i := range 200 {
			for _, key := range keys {
				c.known[key] = known * int64(i)
			}
			o := c.next(i)
			o.Expect = 0
			all = append(all, o)
		}
		return all
	}
	if diff := cmp.Diff(draw(1)[1:], draw(2)[1:]); diff != "" {
		t.Errorf("one seed, two sequences of requests:\n%s", diff)
	}
}

func TestPayload(t *testing.T) {
	for _, name := range []string{"1.2", "3.47", "0.33", "final.0"} {
		value := payload(name)
		if got := nameOf([]byte(value)); got != name {
			t.Errorf("nameOf(payload(%q)) = %q", name, got)
		}
		if got := nameOf([]byte(value[:len(value)-1])); got == name {
			t.Errorf("a value of %q that is cut off is not noticed", name)
		}
	}
}
