package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"time"

	"github.com/cairn-os/cairn/pkg/store/admin"
	"github.com/cairn-os/cairn/pkg/store/member"
)

// operatorRoutes are for the operator's socket alone.
func (n *Node) operatorRoutes(mux *http.ServeMux) {
	mux.HandleFunc("GET /v1/members", n.atLeader(n.handleStatus))
	mux.Handle("GET /metrics", n.metricsHandler())
}

// forwardedRoutes are what one member does for the operator of another, if guard
// lets that one in.
func (n *Node) forwardedRoutes(mux *http.ServeMux, guard func(http.HandlerFunc) http.HandlerFunc) {
	mux.HandleFunc("POST /v1/leader", guard(n.atLeader(n.handleLead)))
	mux.HandleFunc("POST /v1/snapshot", guard(n.atLeader(n.handleTake)))
	mux.HandleFunc("GET /v1/snapshots", guard(n.atMember(n.handleSnapshots)))
	mux.HandleFunc("GET /v1/snapshots/{name}", guard(n.atMember(n.handleDownload)))
}

// atMember calls h on the member that the query names: here, or by passing
// the request on.
func (n *Node) atMember(h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		text := r.URL.Query().Get("member")
		if text == "" {
			h(w, r)
			return
		}
		id, err := admin.ParseID(text)
		switch {
		case err != nil:
			problem(w, http.StatusBadRequest, err)
		case uint64(id) == n.member.ID():
			h(w, r)
		case r.Header.Get(forwarded) != "":
			problem(w, http.StatusMisdirectedRequest, fmt.Errorf("this is not member %s", id))
		case n.network == nil || len(n.entries()[uint64(id)].Addresses) == 0:
			problem(w, http.StatusNotFound, fmt.Errorf("no address of member %s is known", id))
		default:
			n.forward(w, r, uint64(id))
		}
	}
}

// handleLead gives leadership to the member that is asked for, or to any.
func (n *Node) handleLead(w http.ResponseWriter, r *http.Request) {
	var req admin.Lead
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil && !errors.Is(err, io.EOF) {
		problem(w, http.StatusBadRequest, err)
		return
	}
	// While a role changes dqlite refuses a transfer.
	n.membership.Lock()
	defer n.membership.Unlock()
	ctx, cancel := context.WithTimeout(r.Context(), transferLimit)
	defer cancel()
	members, err := n.candidates(ctx, time.Now())
	if err != nil {
		problem(w, http.StatusServiceUnavailable, err)
		return
	}
	to, err := heir(members, uint64(req.To))
	switch {
	case err != nil:
		problem(w, http.StatusConflict, err)
		return
	case to != n.member.ID():
		err = n.member.Transfer(ctx, to)
		n.poke()
	}
	if err != nil {
		problem(w, http.StatusServiceUnavailable, err)
		return
	}
	n.log.Info("store: leadership handed over, as the operator asked", "member", member.Name(to))
	writeJSON(w, http.StatusOK, admin.Lead{To: admin.ID(to)})
}

// heir is the member that shall lead: the one that is asked for, if it can, or
// with 0 the best one other than the leader.
func heir(members []candidate, to uint64) (uint64, error) {
	if to == 0 {
		id, ok := successor(members)
		if !ok {
			return 0, errors.New("no other voter is online that could lead")
		}
		return id, nil
	}
	i := slices.IndexFunc(members, func(c candidate) bool { return c.id == to })
	switch {
	case i < 0:
		return 0, fmt.Errorf("no member %s", admin.ID(to))
	case members[i].role != member.Voter:
		return 0, fmt.Errorf("member %s is a %s: only a voter can lead", admin.ID(to), members[i].role)
	case !members[i].online:
		return 0, fmt.Errorf("member %s is not online", admin.ID(to))
	}
	return to, nil
}
