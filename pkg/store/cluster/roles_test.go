package cluster

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-os/cairn/pkg/store/member"
)

// parse reads members as "1:voter,leader 2:standby,zone=b,witness
// 3:spare,away=1m".
func parse(t *testing.T, text string) []candidate {
	t.Helper()
	var all []candidate
	for field := range strings.FieldsSeq(text) {
		id, attributes, _ := strings.Cut(field, ":")
		c := candidate{online: true}
		if _, err := fmt.Sscan(id, &c.id); err != nil {
			t.Fatalf("%s: %v", field, err)
		}
		for a := range strings.SplitSeq(attributes, ",") {
			key, value, _ := strings.Cut(a, "=")
			switch key {
			case "voter":
				c.role = member.Voter
			case "standby":
				c.role = member.StandBy
			case "spare":
				c.role = member.Spare
			case "leader":
				c.leader = true
			case "witness":
				c.witness = true
			case "zone":
				c.zone = value
			case "away":
				c.online = false
				d, err := time.ParseDuration(value)
				if err != nil {
					t.Fatalf("%s: %v", field, err)
				}
				c.away = d
			default:
				t.Fatalf("%s: unknown attribute %q", field, key)
			}
		}
		all = append(all, c)
	}
	return all
}

// TestRoles follows the steps from one set of members until nothing is left
// to do.
func TestRoles(t *testing.T) {
	for _, x := range []struct {
		name, members string
		voters        int
		want          []string
	}{
		{"alone", "1:voter,leader", 3, nil},
		{"two: a copy, and one voter", "1:voter,leader 2:spare", 3, []string{"2 standby"}},
		{"two after one of three left", "1:voter,leader 2:voter", 3, []string{"2 standby"}},
		{"two, the second is away", "1:voter,leader 2:spare,away=1h", 3, nil},
		{"third joins", "1:voter,leader 2:standby 3:spare", 3, []string{"3 standby", "2 voter", "3 voter"}},
		{"third is away: two voters are worse than one", "1:voter,leader 2:standby 3:standby,away=10s", 3, nil},
		{"two servers and a witness", "1:voter,leader 2:standby 3:standby,witness", 3, []string{"2 voter", "3 voter"}},
		{"a voter reboots", "1:voter,leader 2:voter 3:voter,away=2m", 3, nil},
		{"a voter is lost and nobody is there", "1:voter,leader 2:voter 3:voter,away=1h", 3, nil},
		{"a voter is lost", "1:voter,leader 2:voter 3:voter,away=1h 4:standby", 3, []string{"4 voter", "3 standby"}},
		{"the lost voter returned", "1:voter,leader 2:voter 3:standby 4:voter", 3, nil},
		{"a server goes before a witness", "1:voter,leader 2:standby,witness 3:standby 4:standby", 3, []string{"3 voter", "4 voter"}},
		{"a server takes a witness's vote", "1:voter,leader 2:voter 3:voter,witness 4:standby", 3, []string{"4 voter", "3 standby"}},
		{"zones", "1:voter,leader,zone=a 2:standby,zone=a 3:standby,zone=a 4:standby,zone=b 5:standby,zone=c", 3, []string{"4 voter", "5 voter"}},
		{"a new zone", "1:voter,leader,zone=a 2:voter,zone=a 3:voter,zone=b 4:standby,zone=c", 3, []string{"4 voter", "2 standby"}},
		{"five voters", "1:voter,leader 2:voter 3:voter 4:spare 5:spare", 5, []string{"4 standby", "5 standby", "4 voter", "5 voter"}},
		{"five wanted, four there", "1:voter,leader 2:voter 3:voter 4:standby", 5, nil},
		{"five no longer wanted", "1:voter,leader 2:voter 3:voter 4:voter 5:voter", 3, []string{"5 standby", "4 standby"}},
		{"too many, one is away", "1:voter,leader 2:voter 3:voter,away=1m 4:voter", 3, []string{"3 standby"}},
	} {
		t.Run(x.name, func(t *testing.T) {
			members := parse(t, x.members)
			var steps []string
			for len(steps) < 10 {
				step, ok := nextChange(members, x.voters)
				if !ok {
					break
				}
				steps = append(steps, fmt.Sprintf("%d %s", step.id, step.role))
				for i := range members {
					if members[i].id == step.id {
						members[i].role = step.role
					}
				}
			}
			if d := cmp.Diff(x.want, steps); d != "" {
				t.Errorf("steps from %s: want -, got +\n%s", x.members, d)
			}
		})
	}
}

// TestRolesKeepQuorum tries all small clusters: no step may leave less than a
// majority of the voters online, demote the leader or vote someone in who is
// not there, and the steps end.
func TestRolesKeepQuorum(t *testing.T) {
	kinds := []candidate{
		{role: member.Voter, online: true}, {role: member.Voter, away: time.Hour}, {role: member.Voter, away: time.Second},
		{role: member.StandBy, online: true}, {role: member.StandBy, away: time.Hour}, {role: member.Spare, online: true},
		{role: member.StandBy, online: true, witness: true, zone: "b"}, {role: member.Voter, online: true, witness: true, zone: "b"},
	}
	for size := range 5 {
		total := 1
		for range size {
			total *= len(kinds)
		}
		for n := range total {
			members := []candidate{{id: 1, role: member.Voter, leader: true, online: true}}
			for i := range size {
				c := kinds[n%len(kinds)]
				n /= len(kinds)
				c.id = uint64(i + 2)
				members = append(members, c)
			}
			checkSteps(t, members)
		}
	}
}

func checkSteps(t *testing.T, members []candidate) {
	t.Helper()
	quorum := func() bool {
		online, voters := 0, 0
		for _, m := range members {
			if m.role == member.Voter {
				voters++
				if m.online {
					online++
				}
			}
		}
		return 2*online > voters
	}
	if !quorum() {
		return // Such a leader cannot change anything.
	}
	start := fmt.Sprint(members)
	for range 20 {
		step, ok := nextChange(members, 3)
		if !ok {
			return
		}
		for i := range members {
			m := &members[i]
			if m.id != step.id {
				continue
			}
			if m.leader || step.role == member.Voter && !m.online || m.role == step.role {
				t.Fatalf("from %s: step %+v for %+v", start, step, *m)
			}
			m.role = step.role
		}
		if !quorum() {
			t.Fatalf("from %s: no quorum after %+v: %+v", start, step, members)
		}
	}
	t.Fatalf("from %s: steps do not end", start)
}
