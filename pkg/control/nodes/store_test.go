package nodes

import (
	"fmt"
	"strings"
	"testing"

	"github.com/cairn-os/cairn/pkg/store/admin"
)

// members reads "a:voter:leader b:voter:away c:witness": names, parts, and what else there is to say.
func members(text string) (all []admin.Member, leader admin.ID) {
	for i, word := range strings.Fields(text) {
		f := strings.Split(word, ":")
		m := admin.Member{ID: admin.ID(i + 1), Name: f[0], Role: f[1], Online: true}
		for _, more := range f[2:] {
			switch more {
			case "leader":
				m.Leader, leader = true, m.ID
			case "away":
				m.Online = false
			case "witness":
				m.Witness = true
			}
		}
		all = append(all, m)
	}
	return all, leader
}

func TestNextStep(t *testing.T) {
	for _, tt := range []struct {
		members, remove, want string
	}{
		{"a:voter:leader b:voter c:voter", "d", "gone"},
		{"a:voter:leader b:voter c:voter", "b", "remove 0000000000000002"},
		{"a:voter:leader b:voter c:voter:away", "c", "remove 0000000000000003"},
		{"a:voter:leader b:voter c:voter:away", "b", "would lose its quorum: without it 1 of 2 voters are online"},
		{"a:voter:leader b:voter c:voter", "a", "hand over"},
		{"a:voter:leader b:voter:away c:voter:witness", "a", "no other server votes there that is online"},
		{"a:voter:leader b:stand-by", "a", "no other server votes there that is online"},
		{"a:voter:leader b:stand-by", "b", "remove 0000000000000002"},
		{"a:voter:leader", "a", "no other server votes"},
		{"a:voter:leader b:voter c:voter b:spare:away", "b", "remove 0000000000000002"},
		{"", "a", "has no quorum, or it is not known: its phase is follower"},
	} {
		all, leader := members(tt.members)
		step, id, err := nextStep(admin.Status{Phase: "follower", Quorum: true, Members: all, Leader: leader}, tt.remove)
		got := map[action]string{gone: "gone", handOver: "hand over", remove: fmt.Sprintf("remove %v", id)}[step]
		if err != nil {
			got = err.Error()
		}
		if !strings.Contains(got, tt.want) {
			t.Errorf("nextStep(%s, %s) = %s; want %s", tt.members, tt.remove, got, tt.want)
		}
	}
	all, leader := members("a:voter:leader b:voter:away")
	if _, _, err := nextStep(admin.Status{Members: all, Leader: leader, Message: "no majority"}, "c"); err == nil || !strings.Contains(err.Error(), "no majority") {
		t.Errorf("nextStep without quorum = %v; want the store's own words", err)
	}
}
