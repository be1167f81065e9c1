package cluster

import (
	"cmp"
	"slices"
	"time"

	"github.com/cairn-os/cairn/pkg/store/member"
)

const (
	// minVoters is the size below which one voter is better than more: two
	// voters stop when either is lost.
	minVoters = 3
	// lostAfter is how long a voter may be away before a standby takes its
	// place. A reboot or a move of a board is no reason to copy everything.
	lostAfter = 5 * time.Minute
)

// candidate is what the choice of roles depends on.
type candidate struct {
	id      uint64
	role    member.Role
	leader  bool
	witness bool
	zone    string
	online  bool
	full    bool          // its disk is
	away    time.Duration // since it last answered; 0 while online
}

// change is one step towards the roles that members should have.
type change struct {
	id   uint64
	role member.Role
}

// nextChange returns the next step, or false when all is as it should be. It
// is a pure function; the leader calls it again after each step.
//
// Below three members the leader is the only voter and the others are
// standbys, which hold a copy. From three on there are as many voters as
// wanted, spread over zones, servers rather than witnesses; everyone else is
// a standby. A voter that is away is replaced after lostAfter, provided that a
// standby is online; it is made a standby itself, which it is when it returns.
func nextChange(members []candidate, wantVoters int) (change, bool) {
	if len(members) < minVoters {
		return fewMembers(members)
	}
	wantVoters = min(max(wantVoters, minVoters), len(members))
	if wantVoters%2 == 0 {
		wantVoters-- // An even number survives no more losses than the odd one below.
	}
	// Whoever replicates nothing yet comes first: it can be promoted later.
	for _, m := range members {
		if m.role == member.Spare && m.online {
			return change{m.id, member.StandBy}, true
		}
	}
	var present, lost []candidate
	for _, m := range members {
		switch {
		case m.role != member.Voter:
		case m.away > lostAfter:
			lost = append(lost, m)
		default:
			present = append(present, m)
		}
	}
	if len(present) < wantVoters {
		free := free(members)
		if len(free) == 0 || len(present)%2 == 1 && len(free) < 2 {
			// Nobody is there: a lost voter may return yet. Or one more would
			// make an even number, which is worse than the odd one.
			return change{}, false
		}
		return change{best(free, present).id, member.Voter}, true
	}
	if len(lost) > 0 {
		return change{lost[0].id, member.StandBy}, true
	}
	if len(present) > wantVoters {
		return change{surplus(present).id, member.StandBy}, true
	}
	return betterSpread(members, present)
}

// fewMembers makes the leader the only voter.
func fewMembers(members []candidate) (change, bool) {
	for _, m := range members {
		if !m.leader && m.role != member.StandBy && (m.online || m.role == member.Voter) {
			return change{m.id, member.StandBy}, true
		}
	}
	return change{}, false
}

// free lists the standbys that could vote.
func free(members []candidate) []candidate {
	var free []candidate
	for _, m := range members {
		if m.role == member.StandBy && m.online && !m.full {
			free = append(free, m)
		}
	}
	return free
}

// best chooses who should vote next, of one or more: a server before a
// witness, in a zone without a voter before one with.
func best(free, voters []candidate) candidate {
	return slices.MinFunc(free, func(a, b candidate) int {
		return cmp.Or(cmp.Compare(rank(a, voters), rank(b, voters)), cmp.Compare(a.id, b.id))
	})
}

// rank is the lower the better.
func rank(m candidate, voters []candidate) int {
	r := 2 * count(voters, m.zone)
	if m.witness {
		r++
	}
	return r
}

func count(members []candidate, zone string) int {
	n := 0
	for _, m := range members {
		if m.zone == zone {
			n++
		}
	}
	return n
}

// surplus chooses who of too many voters goes: who is away, then one in the
// fullest zone, there a witness first; never the leader.
func surplus(voters []candidate) candidate {
	weight := func(m candidate) int {
		w := 2 * count(voters, m.zone)
		if !m.online {
			w += 1000
		}
		if m.witness {
			w++
		}
		if m.leader {
			w = -1
		}
		return w
	}
	return slices.MaxFunc(voters, func(a, b candidate) int {
		return cmp.Or(cmp.Compare(weight(a), weight(b)), cmp.Compare(a.id, b.id))
	})
}

// betterSpread promotes a standby in a zone that has no voter while another
// zone has several: the surplus goes in the next step. Witnesses give way to
// servers likewise.
func betterSpread(members, voters []candidate) (change, bool) {
	free := free(members)
	if len(free) == 0 {
		return change{}, false
	}
	best := best(free, voters)
	for _, v := range voters {
		crowded := count(voters, v.zone) > 1 && count(voters, best.zone) == 0
		replacesWitness := v.witness && !best.witness && (v.zone == best.zone || count(voters, best.zone) == 0)
		if !v.leader && (crowded || replacesWitness) {
			return change{best.id, member.Voter}, true
		}
	}
	return change{}, false
}

// successor chooses who should lead instead of a leader that leaves, is a
// witness or has no space: a server that votes, is online and has space.
func successor(members []candidate) (uint64, bool) {
	for _, m := range members {
		if m.role == member.Voter && m.online && !m.full && !m.leader && !m.witness {
			return m.id, true
		}
	}
	return 0, false
}
