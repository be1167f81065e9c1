package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"

	"github.com/cairn-os/cairn/pkg/store/admin"
	"github.com/cairn-os/cairn/pkg/store/member"
	"github.com/cairn-os/cairn/pkg/store/peer"
)

// callerKey is where a request's context has the peer that sent it.
type callerKey struct{}

// withCaller notes whose connection it is. The operator's are nobody's.
func withCaller(ctx context.Context, conn net.Conn) context.Context {
	if c, ok := conn.(*closing); ok && c.from != nil {
		return context.WithValue(ctx, callerKey{}, c.from)
	}
	return ctx
}

// callerOf returns the peer that sent a request, nil for the operator.
func callerOf(ctx context.Context) *peer.Identity {
	who, _ := ctx.Value(callerKey{}).(*peer.Identity)
	return who
}

// forServers lets peers in that are servers and members. It stands before what passes a request on, which is done with this
// member's certificate.
func (n *Node) forServers(h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		who := callerOf(r.Context())
		switch {
		case who == nil || who.Witness:
			problem(w, http.StatusForbidden, errors.New("a witness may not ask this of the store: ask on a server"))
		case !n.isMember(r.Context(), who.ID):
			problem(w, http.StatusForbidden, fmt.Errorf("%s is no member of this store", member.Name(who.ID)))
		default:
			h(w, r)
		}
	}
}

// forItself lets a peer join as who its certificate says, and a witness as a witness. What a server passes on for another it
// has looked at itself.
func forItself(h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		who := callerOf(r.Context())
		if who == nil || !who.Witness && r.Header.Get(forwarded) != "" {
			h(w, r)
			return
		}
		var req admin.Join
		if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
			problem(w, http.StatusBadRequest, err)
			return
		}
		switch {
		case uint64(req.ID) != who.ID || req.Name != who.Name:
			problem(w, http.StatusForbidden, fmt.Errorf("the certificate is for %q (%s) and cannot be used to join as %q (%s): each member joins by itself, under the name in its certificate",
				who.Name, member.Name(who.ID), req.Name, member.Name(uint64(req.ID))))
			return
		case who.Witness && !req.Witness:
			problem(w, http.StatusForbidden, fmt.Errorf("the certificate of %q is a witness's: it cannot join as a server", who.Name))
			return
		case who.Witness:
			req.Replaces = 0 // Its former self is known by its name; another's place is not for it to take.
		}
		body, err := json.Marshal(req)
		if err != nil {
			problem(w, http.StatusInternalServerError, err)
			return
		}
		r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
		h(w, r)
	}
}

// isMember says whether a peer is a member as far as this member knows. While it cannot know, only who was removed here is
// none.
func (n *Node) isMember(ctx context.Context, id uint64) bool {
	infos, err := n.members(ctx)
	if err != nil || len(infos) == 0 {
		return !n.wasTakenOut(id)
	}
	return slices.ContainsFunc(infos, func(i member.Info) bool { return i.ID == id })
}

// wasTakenOut says whether this member removed another one, and did not take it in again.
func (n *Node) wasTakenOut(id uint64) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.gone[id]
}

// serveRaft gives a peer's raft connection to the member. Only who was removed here is refused: a member that was away knows
// less of who is one than those that send it the news.
func (n *Node) serveRaft(ctx context.Context, from uint64, conn net.Conn) {
	if n.wasTakenOut(from) && !n.isMember(ctx, from) {
		n.log.Debug("store: raft of who was removed is refused", "member", member.Name(from))
		return
	}
	n.member.ServeFrom(from, conn)
}

// roll lists the members that the leader has found to be some, so that not each of their clients' connections asks for the
// configuration. It belongs to one leadership: while that lasts, only the leader itself changes who is a member.
type roll struct {
	mu      sync.Mutex // held while the configuration is read, so that strike comes before or after
	members map[uint64]bool
}

// listed says whether a peer is a member, of the leader that runs s.
func (n *Node) listed(ctx context.Context, s *service, id uint64) bool {
	s.roll.mu.Lock()
	defer s.roll.mu.Unlock()
	if s.roll.members[id] {
		return true
	}
	infos, err := n.members(ctx)
	if err != nil {
		return !n.wasTakenOut(id) // It can be asked of the next connection.
	}
	s.roll.members = make(map[uint64]bool, len(infos))
	for _, i := range infos {
		s.roll.members[i.ID] = true
	}
	return s.roll.members[id]
}

// strike takes a member off the roll.
func (r *roll) strike(id uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.members, id)
}
