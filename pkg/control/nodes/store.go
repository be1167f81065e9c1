package nodes

import (
	"context"
	"errors"
	"fmt"

	"github.com/cairn-os/cairn/pkg/store/admin"
)

// StoreMembers is what the removal of a server needs of the store; *admin.Client of the own member is one. Any member
// passes a request on to the leader. Requests may be repeated.
type StoreMembers interface {
	// Status tells the members as the leader knows them. Without a leader it tells no quorum.
	Status(ctx context.Context) (admin.Status, error)
	// Remove takes a member out of the cluster. It refuses the leader, and one that is none.
	Remove(ctx context.Context, id admin.ID) error
	// Lead hands leadership over to another voter: any that can, when to is 0.
	Lead(ctx context.Context, to admin.ID) error
}

var _ StoreMembers = (*admin.Client)(nil)

// What is to be done next to be rid of a member.
type action int

const (
	gone     action = iota // there is no such member
	handOver               // it leads: another must first
	remove                 // it can go
)

// The store's words for a member's part.
const voter = "voter"

// nextStep decides how to be rid of the members of that name without harm to the store, or says why it must wait.
func nextStep(s admin.Status, name string) (action, admin.ID, error) {
	if !s.Quorum || len(s.Members) == 0 {
		return gone, 0, fmt.Errorf("the store has no quorum, or it is not known: %s", whyNot(s))
	}
	for _, m := range s.Members {
		if m.Name != name {
			continue
		}
		if m.Leader || m.ID == s.Leader {
			if !otherLeader(s, m.ID) {
				return gone, 0, errors.New("its store leads and no other server votes there that is online: " +
					"start the others, or join another server")
			}
			return handOver, m.ID, nil
		}
		if voters, online := without(s, m.ID); m.Role == voter && online <= voters/2 {
			return gone, 0, fmt.Errorf("the store would lose its quorum: without it %d of %d voters are online; "+
				"start the others first", online, voters)
		}
		return remove, m.ID, nil
	}
	return gone, 0, nil
}

func whyNot(s admin.Status) string {
	if s.Message != "" {
		return s.Message
	}
	return "its phase is " + s.Phase
}

// otherLeader reports whether somebody else can lead than the member.
func otherLeader(s admin.Status, not admin.ID) bool {
	for _, m := range s.Members {
		if m.ID != not && m.Role == voter && m.Online && !m.Witness {
			return true
		}
	}
	return false
}

// without counts the voters that stay when the member goes, and those of them that are online.
func without(s admin.Status, id admin.ID) (voters, online int) {
	for _, m := range s.Members {
		if m.ID == id || m.Role != voter {
			continue
		}
		voters++
		if m.Online {
			online++
		}
	}
	return voters, online
}
