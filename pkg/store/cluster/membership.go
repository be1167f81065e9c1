package cluster

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/cairn-os/cairn/pkg/store/admin"
	"github.com/cairn-os/cairn/pkg/store/member"
	"github.com/cairn-os/cairn/pkg/store/peer"
)

const (
	// manageInterval is how often the leader looks after its members.
	manageInterval = time.Second
	// onlineFor is how long a member counts as online after it answered.
	onlineFor = 5 * time.Second
	// changeLimit bounds one change of roles; a new voter must catch up.
	changeLimit = 2 * time.Minute
	// changeRest is the pause after a change that failed.
	changeRest = 10 * time.Second
)

// sight is the last answer of a member.
type sight struct {
	at   time.Time
	full bool // its disk was
}

// voters lists who votes, as this member knows it.
func (n *Node) voters(ctx context.Context) ([]uint64, error) {
	members, err := n.member.Members(ctx)
	return votersOf(members), err
}

func votersOf(members []member.Info) []uint64 {
	var ids []uint64
	for _, m := range members {
		if m.Role == member.Voter {
			ids = append(ids, m.ID)
		}
	}
	return ids
}

// manage gives members the roles they should have, while this member leads.
func (n *Node) manage(ctx context.Context, s *service) {
	ticker := time.NewTicker(manageInterval)
	defer ticker.Stop()
	began := time.Now()
	var restUntil time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		// After a change that failed both configurations are asked: until the
		// member shows which one is in force.
		if n.membership.TryLock() {
			_ = n.loadVoters(ctx, s.confirmer) // The next round tries again.
			n.membership.Unlock()
		}
		members, err := n.candidates(ctx, began)
		if err != nil || len(members) < 2 || time.Now().Before(restUntil) {
			continue
		}
		if n.yield(ctx, members) {
			restUntil = time.Now().Add(changeRest)
			continue
		}
		step, ok := nextChange(members, n.config.Voters)
		if !ok {
			continue
		}
		if err := n.assign(ctx, s, step); err != nil && ctx.Err() == nil {
			n.log.Warn("store: change of a role failed, it is tried again", "member", member.Name(step.id), "role", step.role, "error", err)
			restUntil = time.Now().Add(changeRest)
		}
	}
}

// yield gives leadership to a server from a witness, which need not be able to
// do more than to vote, and from a member whose disk is full: it would have to
// refuse what others can store.
func (n *Node) yield(ctx context.Context, members []candidate) bool {
	if !n.config.Witness && !n.full() {
		return false
	}
	to, ok := successor(members)
	if !ok {
		return false
	}
	n.log.Info("store: leadership is given away", "to", member.Name(to), "witness", n.config.Witness, "full", n.full())
	ctx, cancel := context.WithTimeout(ctx, transferLimit)
	defer cancel()
	if err := n.member.Transfer(ctx, to); err != nil && ctx.Err() == nil {
		n.log.Warn("store: hand leadership over", "error", err)
	}
	return true
}

// candidates asks every member whether it is there. began is when this member
// became the leader: before, it did not ask.
func (n *Node) candidates(ctx context.Context, began time.Time) ([]candidate, error) {
	infos, err := n.member.Members(ctx)
	if err != nil {
		return nil, err
	}
	n.seeAll(ctx, infos)
	entries := n.entries()
	var all []candidate
	for _, info := range infos {
		e := entries[info.ID]
		c := candidate{id: info.ID, role: info.Role, leader: info.ID == n.member.ID(), witness: e.Witness, zone: e.Zone}
		seen := n.lastSeen(info.ID)
		if seen.Before(began) {
			seen = began
		}
		n.mu.Lock()
		c.full = n.seen[info.ID].full
		n.mu.Unlock()
		if c.online = c.leader || n.online(info.ID); !c.online {
			c.away = time.Since(seen)
		}
		all = append(all, c)
	}
	slices.SortFunc(all, func(a, b candidate) int { return cmp.Compare(a.id, b.id) })
	return all, nil
}

// seeAll asks the members for their view and notes who answered.
func (n *Node) seeAll(ctx context.Context, infos []member.Info) {
	ctx, cancel := context.WithTimeout(ctx, roundLimit)
	defer cancel()
	var wg sync.WaitGroup
	for _, info := range infos {
		if info.ID == n.member.ID() {
			continue
		}
		wg.Go(func() {
			if v, err := n.ask(ctx, info.ID); err == nil {
				n.mu.Lock()
				n.seen[info.ID] = sight{time.Now(), v.full}
				n.mu.Unlock()
			}
		})
	}
	wg.Wait()
}

func (n *Node) lastSeen(id uint64) time.Time {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.seen[id].at
}

func (n *Node) online(id uint64) bool { return time.Since(n.lastSeen(id)) < onlineFor }

// entries are what the members say of themselves.
func (n *Node) entries() map[uint64]peer.Entry {
	entries := map[uint64]peer.Entry{}
	if n.network == nil {
		return entries
	}
	for _, e := range n.network.Book().All() {
		entries[e.ID] = e
	}
	return entries
}

// assign gives a member a role. While the voters change, reads are confirmed
// by majorities of the old and of the new ones: an error does not tell which
// are in force.
func (n *Node) assign(ctx context.Context, s *service, step change) error {
	n.membership.Lock()
	defer n.membership.Unlock()
	ctx, cancel := context.WithTimeout(ctx, changeLimit)
	defer cancel()
	n.log.Info("store: change a role", "member", member.Name(step.id), "role", step.role)
	return n.reconfigure(ctx, s, step.id, step.role == member.Voter, func() error {
		return n.member.Assign(ctx, step.id, step.role)
	})
}

// reconfigure runs a change after which the member with the id votes or not.
func (n *Node) reconfigure(ctx context.Context, s *service, id uint64, votes bool, run func() error) error {
	before, err := n.voters(ctx)
	if err != nil {
		return err
	}
	after := slices.DeleteFunc(slices.Clone(before), func(v uint64) bool { return v == id })
	if votes {
		after = append(after, id)
	}
	s.confirmer.setVoters(before, after)
	// Who may be the only voter from now on must know when it starts next.
	if len(after) == 1 {
		if err := saveVoters(n.config.Dir, 1); err != nil {
			return err
		}
	}
	if err := run(); err != nil {
		// Whatever came of it: both majorities are asked until the next
		// change that succeeds, or the next leader.
		return err
	}
	return errors.Join(n.loadVoters(ctx, s.confirmer), saveVoters(n.config.Dir, len(after)))
}

// handleJoin takes a member in, as a spare; manage promotes it.
func (n *Node) handleJoin(w http.ResponseWriter, r *http.Request) {
	var req admin.Join
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
		problem(w, http.StatusBadRequest, err)
		return
	}
	if req.ID == 0 || req.Name == "" || len(req.Addresses) == 0 {
		problem(w, http.StatusBadRequest, errors.New("join: id, name and addresses are required"))
		return
	}
	s := n.route().service
	if s == nil {
		problem(w, http.StatusServiceUnavailable, errors.New("this member leads no more"))
		return
	}
	if code, err := n.admit(r.Context(), s, req); err != nil {
		n.log.Warn("store: a member was not taken in", "name", req.Name, "id", req.ID, "error", err)
		problem(w, code, err)
		return
	}
	writeJSON(w, http.StatusOK, n.network.Book().All())
}

func (n *Node) admit(ctx context.Context, s *service, req admin.Join) (int, error) {
	n.membership.Lock()
	defer n.membership.Unlock()
	ctx, cancel := context.WithTimeout(ctx, changeLimit)
	defer cancel()
	infos, err := n.member.Members(ctx)
	if err != nil {
		return http.StatusServiceUnavailable, err
	}
	known := slices.ContainsFunc(infos, func(i member.Info) bool { return i.ID == uint64(req.ID) })
	replaced, err := n.replaced(ctx, infos, req)
	if err != nil {
		return http.StatusConflict, err
	}
	for _, id := range replaced {
		n.log.Info("store: a member is replaced by its machine's new one", "name", req.Name, "old", member.Name(id), "new", req.ID)
		if err := n.remove(ctx, s, id); err != nil {
			return http.StatusServiceUnavailable, err
		}
	}
	// Its address must be known before entries can be sent to it.
	n.merge(nil, []peer.Entry{{ID: uint64(req.ID), Name: req.Name, Addresses: req.Addresses, Witness: req.Witness, Zone: req.Zone, Sequence: 1}})
	if known {
		return http.StatusOK, nil
	}
	n.log.Info("store: take a member in", "name", req.Name, "id", req.ID, "addresses", req.Addresses)
	n.mu.Lock()
	delete(n.gone, uint64(req.ID))
	n.mu.Unlock()
	if err := n.member.Add(ctx, uint64(req.ID)); err != nil {
		return http.StatusServiceUnavailable, err
	}
	return http.StatusOK, nil
}

// replaced lists the members that the new one takes the place of: the one it
// names, and one of the same name. It fails when such a member answers, for
// then two machines have one name.
func (n *Node) replaced(ctx context.Context, infos []member.Info, req admin.Join) ([]uint64, error) {
	entries := n.entries()
	var ids []uint64
	for _, info := range infos {
		if info.ID == uint64(req.ID) || info.ID != uint64(req.Replaces) && entries[info.ID].Name != req.Name {
			continue
		}
		asking, cancel := context.WithTimeout(ctx, roundLimit)
		_, err := n.ask(asking, info.ID)
		cancel()
		if info.ID == n.member.ID() || err == nil {
			return nil, fmt.Errorf("a member named %s is in the cluster and online (%s, %v): give the new machine another name",
				req.Name, info.Address, entries[info.ID].Addresses)
		}
		ids = append(ids, info.ID)
	}
	return ids, nil
}

// remove takes a member out; n.membership is held.
func (n *Node) remove(ctx context.Context, s *service, id uint64) error {
	err := n.reconfigure(ctx, s, id, false, func() error { return n.member.Remove(ctx, id) })
	if err != nil {
		return err
	}
	n.network.Book().Remove(id)
	n.mu.Lock()
	delete(n.seen, id)
	n.gone[id] = true
	n.mu.Unlock()
	s.roll.strike(id)
	for _, protocol := range []string{protocolEtcd, protocolRaft} {
		n.network.Disconnect(id, protocol)
	}
	return nil
}

func (n *Node) handleRemove(w http.ResponseWriter, r *http.Request) {
	id, err := admin.ParseID(r.PathValue("id"))
	if err != nil {
		problem(w, http.StatusBadRequest, err)
		return
	}
	s := n.route().service
	if s == nil {
		problem(w, http.StatusServiceUnavailable, errors.New("this member leads no more"))
		return
	}
	if uint64(id) == n.member.ID() {
		problem(w, http.StatusConflict, fmt.Errorf("member %s leads: stop it or hand leadership over first", id))
		return
	}
	n.membership.Lock()
	defer n.membership.Unlock()
	ctx, cancel := context.WithTimeout(r.Context(), changeLimit)
	defer cancel()
	infos, err := n.member.Members(ctx)
	if err == nil && !slices.ContainsFunc(infos, func(i member.Info) bool { return i.ID == uint64(id) }) {
		problem(w, http.StatusNotFound, fmt.Errorf("no member %s", id))
		return
	}
	if err == nil {
		err = n.remove(ctx, s, uint64(id))
	}
	if err != nil {
		problem(w, http.StatusServiceUnavailable, err)
		return
	}
	n.log.Info("store: a member was removed", "id", id)
	writeJSON(w, http.StatusOK, struct{}{})
}
