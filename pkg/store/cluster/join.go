package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"time"

	"github.com/cairn-os/cairn/pkg/store/admin"
	"github.com/cairn-os/cairn/pkg/store/member"
	"github.com/cairn-os/cairn/pkg/store/peer"
)

// join brings a member that belongs to no cluster yet into that of the join
// list. It goes on until it succeeds or ctx ends, and says what keeps it.
func (n *Node) join(ctx context.Context) error {
	var said string
	for len(n.config.Join) > 0 {
		members, err := n.member.Members(ctx)
		if err == nil && len(members) > 0 {
			break // dqlite has a configuration: it was taken in before.
		}
		err = n.tryJoin(ctx)
		n.mu.Lock()
		n.joining = err
		n.mu.Unlock()
		if err == nil {
			n.log.Info("store: joined")
			break
		}
		if ctx.Err() != nil {
			return nil
		}
		if err.Error() != said {
			said = err.Error()
			n.log.Warn("store: cannot join yet, will go on trying", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(joinRest):
		}
	}
	return nil
}

// tryJoin asks each address once. Members pass the request on to their leader.
func (n *Node) tryJoin(ctx context.Context) error {
	own := n.entries()[n.member.ID()]
	req := admin.Join{ID: admin.ID(own.ID), Name: own.Name, Addresses: own.Addresses, Witness: own.Witness, Zone: own.Zone, Replaces: admin.ID(n.replaces)}
	var problems []error
	for _, address := range n.config.Join {
		var entries []peer.Entry
		err := n.post(ctx, address, "/v1/join", req, &entries)
		if err == nil {
			n.merge(nil, entries)
			return nil
		}
		problems = append(problems, fmt.Errorf("join by %s: %w", address, err))
	}
	return errors.Join(problems...)
}

// post asks whoever has an address.
func (n *Node) post(ctx context.Context, address, path string, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, changeLimit)
	defer cancel()
	c := admin.NewClient(func(ctx context.Context) (net.Conn, error) {
		conn, _, err := n.network.DialAddress(ctx, address, protocolMember)
		return conn, err
	})
	defer c.Close()
	return c.Do(ctx, http.MethodPost, path, in, out)
}

// gossip exchanges addresses with the other members, so that one whose address
// changed is found as long as it finds anyone. A leader that takes a member in
// tells the others at once: they may need each other when it is gone.
func (n *Node) gossip(ctx context.Context) {
	for wait := time.Duration(0); ; wait = gossipInterval {
		select {
		case <-ctx.Done():
			return
		case <-n.news:
		case <-time.After(wait):
		}
		if err := n.announce(); err != nil {
			n.log.Warn("store: own addresses", "error", err)
		}
		n.forgetStrangers(ctx)
		entries := n.network.Book().All()
		reached := 0
		for _, e := range entries {
			if e.ID != n.member.ID() && n.exchange(ctx, entries, func(ctx context.Context) (net.Conn, uint64, error) {
				conn, err := n.network.Dial(ctx, e.ID, protocolMember)
				return conn, e.ID, err
			}) {
				reached++
			}
		}
		// Nobody is where he was: the join list may know better.
		if reached > 0 || len(entries) < 2 {
			continue
		}
		for _, address := range n.config.Join {
			n.exchange(ctx, entries, func(ctx context.Context) (net.Conn, uint64, error) {
				return n.network.DialAddress(ctx, address, protocolMember)
			})
		}
	}
}

func (n *Node) exchange(ctx context.Context, entries []peer.Entry, dial func(context.Context) (net.Conn, uint64, error)) bool {
	ctx, cancel := context.WithTimeout(ctx, gossipLimit)
	defer cancel()
	var who peer.Identity
	c := admin.NewClient(func(ctx context.Context) (net.Conn, error) {
		conn, id, err := dial(ctx)
		if err == nil {
			who, _ = peer.IdentityOf(conn, id) // A Network's connections have one.
		}
		return conn, err
	})
	defer c.Close()
	var theirs []peer.Entry
	if err := c.Do(ctx, http.MethodPost, "/v1/book", entries, &theirs); err != nil {
		return false
	}
	n.merge(&who, theirs)
	return true
}

// merge takes over what others say of addresses: who is who says it, nil when
// that one is to be believed in all. What is new is passed on at once: two
// members that moved find each other only by a third one.
func (n *Node) merge(who *peer.Identity, entries []peer.Entry) {
	changed := false
	if who == nil {
		changed = n.network.Book().Merge(entries)
	} else {
		changed = n.network.Book().MergeFrom(*who, entries)
	}
	if !changed {
		return
	}
	select {
	case n.news <- struct{}{}:
	default:
	}
}

// status tells about this member and, asked of the leader, about all.
func (n *Node) status(ctx context.Context, ask bool) admin.Status {
	r := n.route()
	s := admin.Status{ID: admin.ID(n.member.ID()), Name: n.config.Name, Leader: admin.ID(r.leader), Disk: n.disk}
	s.Term, _ = n.member.Term() // 0 when it cannot be read.
	n.mu.Lock()
	joining, removed := n.joining, n.removed
	n.mu.Unlock()
	n.addSnapshots(&s, r.service != nil)
	switch {
	case r.service != nil:
		s.Phase = "leader"
		n.leaderStatus(ctx, r.service, &s)
	case joining != nil:
		s.Phase, s.Message = "joining", joining.Error()
	case removed:
		s.Phase, s.Message = "removed", "this member was removed from the cluster; "+removedHelp
	case r.leader == n.member.ID():
		s.Phase, s.Message = "starting", "this member leads and opens the database"
	case r.leader == 0:
		s.Phase, s.Message = "no-leader", "no majority of the voters can be reached: start the other servers, or see `cairnctl store recover`"
		n.addMembers(ctx, &s)
	default:
		s.Phase = "follower"
		if ask {
			n.addLeaderStatus(ctx, r.leader, &s)
		}
	}
	return s
}

// leaderStatus fills in what the leader knows.
func (n *Node) leaderStatus(ctx context.Context, from *service, s *admin.Status) {
	if revision, err := from.backend.CurrentRevision(ctx); err == nil {
		s.Revision, s.Quorum = revision, true
	}
	s.Size, _ = from.backend.DbSize(ctx) // 0 when it cannot be read.
	n.addMembers(ctx, s)
}

// addMembers lists the members. One that does not lead asks who is there: only
// the leader does so all the time.
func (n *Node) addMembers(ctx context.Context, s *admin.Status) {
	infos, err := n.member.Members(ctx)
	if err != nil {
		s.Message = err.Error()
		return
	}
	if s.Phase != "leader" {
		n.seeAll(ctx, infos)
	}
	entries := n.entries()
	for _, info := range infos {
		e := entries[info.ID]
		m := admin.Member{
			ID: admin.ID(info.ID), Name: e.Name, Role: info.Role.String(), Witness: e.Witness, Zone: e.Zone,
			Leader: info.ID == uint64(s.Leader), Addresses: e.Addresses, LastSeen: n.lastSeen(info.ID),
		}
		if m.ID == s.ID {
			m.Name, m.Online, m.LastSeen = n.config.Name, true, time.Now()
		} else {
			m.Online = n.online(info.ID)
		}
		if m.Name == "" {
			m.Name = member.Name(info.ID)
		}
		s.Members = append(s.Members, m)
	}
	slices.SortFunc(s.Members, func(a, b admin.Member) int {
		if a.Name < b.Name {
			return -1
		}
		return 1
	})
}

// statusOf asks a member for what it knows by itself.
func (n *Node) statusOf(ctx context.Context, id uint64) (theirs admin.Status, err error) {
	c := n.clientOf(id)
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, gossipLimit)
	defer cancel()
	err = c.Do(ctx, http.MethodGet, "/v1/status?local", nil, &theirs)
	return theirs, err
}

// addLeaderStatus adds what the leader tells of the cluster.
func (n *Node) addLeaderStatus(ctx context.Context, leader uint64, s *admin.Status) {
	theirs, err := n.statusOf(ctx, leader)
	if err != nil {
		s.Message = fmt.Sprintf("the leader does not answer: %v", err)
		return
	}
	s.Quorum, s.Revision, s.Size, s.Members = theirs.Quorum, theirs.Revision, theirs.Size, theirs.Members
	addLeaderSnapshots(s, theirs)
}
