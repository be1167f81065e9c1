package chaos

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"time"
)

// FaultKind is a way to break a node.
type FaultKind int

// The faults. Each ends after a time.
const (
	Kill      FaultKind = iota // kill -9, and start again
	KillAll                    // kill -9 of all nodes at once
	Terminate                  // SIGTERM, as on an orderly shutdown
	Pause                      // SIGSTOP and SIGCONT
	Isolate                    // no packets to and from the others
	Cut                        // no packets between two nodes
	Mute                       // the others do not hear the node
	Deafen                     // the node does not hear the others
	Lossy                      // Amount percent of the packets are lost
	Slow                       // packets wait in a queue
	Clock                      // the time of day jumps by Amount seconds, and back
	FillDisk                   // no space is left on the node's disk
)

var faultNames = []string{"kill", "kill all", "terminate", "pause", "isolate", "cut", "mute", "deafen", "lossy", "slow", "clock", "fill disk"}

func (k FaultKind) String() string { return faultNames[k] }

// Fault is something that breaks at a time and for a time.
type Fault struct {
	At, For time.Duration
	Kind    FaultKind
	// Leader says that the victim is who leads then; else it is the node
	// Victim. Other is the second node of a Cut, counted from the victim on.
	Leader        bool
	Victim, Other int
	Amount        int
}

func (f Fault) String() string {
	who := fmt.Sprintf("node %d", f.Victim)
	switch {
	case f.Kind == KillAll:
		who = "nodes"
	case f.Leader:
		who = "leader"
	}
	s := fmt.Sprintf("%.1fs %s %s for %.1fs", f.At.Seconds(), f.Kind, who, f.For.Seconds())
	switch f.Kind {
	case Lossy:
		s += fmt.Sprintf(" (%d %%)", f.Amount)
	case Clock:
		s += fmt.Sprintf(" (%+d s)", f.Amount)
	case Cut:
		s += fmt.Sprintf(" (from the node %d further)", f.Other)
	}
	return s
}

// kinds are the faults with how often they are drawn, and how long they last.
// Times around dqlite's and etcd's election timeouts (1-3 s) matter most.
var kinds = []struct {
	kind     FaultKind
	weight   int
	min, max time.Duration
	network  bool // makes sense with several nodes only
}{
	{Kill, 6, 0, 3 * time.Second, false},
	{KillAll, 1, 0, 500 * time.Millisecond, false},
	{Terminate, 2, 0, time.Second, false},
	{Pause, 5, 500 * time.Millisecond, 6 * time.Second, false},
	{Isolate, 5, 500 * time.Millisecond, 5 * time.Second, true},
	{Cut, 3, time.Second, 5 * time.Second, true},
	{Mute, 3, time.Second, 5 * time.Second, true},
	{Deafen, 3, time.Second, 5 * time.Second, true},
	{Lossy, 3, 2 * time.Second, 5 * time.Second, true},
	{Slow, 2, 2 * time.Second, 5 * time.Second, true},
	{Clock, 2, time.Second, 5 * time.Second, false},
	{FillDisk, 2, 3 * time.Second, 5 * time.Second, false},
}

// jumps are the seconds by which clocks jump.
var jumps = []int{-3600, -60, -2, 2, 60, 3600}

// Plan returns the faults of a seed for nodes nodes, in order. All end before
// length.
func Plan(seed uint64, nodes int, length time.Duration) []Fault {
	r := random(seed, 0)
	total := 0
	for _, k := range kinds {
		if !k.network || nodes > 1 {
			total += k.weight
		}
	}
	var plan []Fault
	at := 500*time.Millisecond + duration(r, time.Second)
	for {
		n := r.IntN(total)
		i := 0
		for ; ; i++ {
			if kinds[i].network && nodes == 1 {
				continue
			}
			if n -= kinds[i].weight; n < 0 {
				break
			}
		}
		k := kinds[i]
		f := Fault{
			At: at, For: k.min + duration(r, k.max-k.min), Kind: k.kind,
			Leader: r.IntN(2) == 0, Victim: r.IntN(nodes), Other: 1 + r.IntN(max(1, nodes-1)),
		}
		switch k.kind {
		case Lossy:
			f.Amount = 5 + r.IntN(26)
		case Clock:
			f.Amount = jumps[r.IntN(len(jumps))]
		}
		if f.At+k.min > length {
			return plan
		}
		f.For = min(f.For, length-f.At)
		plan = append(plan, f)
		// Most faults come alone; some meet the one before.
		at += f.For + duration(r, 1500*time.Millisecond)
		if r.IntN(4) == 0 {
			at = f.At + duration(r, f.For)
		}
	}
}

// random is the source of one stream of choices of a seed.
func random(seed, stream uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, stream)) }

func duration(r *rand.Rand, limit time.Duration) time.Duration {
	return time.Duration(r.Int64N(int64(max(1, limit)))).Round(100 * time.Millisecond)
}

// describe spells a plan, one fault a line.
func describe(plan []Fault) string {
	var b strings.Builder
	for _, f := range plan {
		fmt.Fprintf(&b, "  %s\n", f)
	}
	return b.String()
}
