package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"github.com/cairn-os/cairn/pkg/store/admin"
	"github.com/cairn-os/cairn/pkg/store/member"
	"github.com/cairn-os/cairn/pkg/store/peer"
)

const (
	guardInterval = time.Second
	// deadAfter is how long a member may know no leader while there is one.
	// dqlite's raft gives up for good when it cannot write (RAFT_UNAVAILABLE):
	// only a new start of the process helps.
	deadAfter = 15 * time.Second
	// forgetAfter is how long an address is kept of somebody who is no
	// member: a new member's address is known before it is one.
	forgetAfter = 2 * gossipInterval
)

// errDead says that the process should start anew.
var errDead = errors.New("the member knows no leader although there is one: its log could not be written (see the messages before); a new start is needed")

// guard watches the own member until ctx ends. It returns an error when the
// member has given up, and notes how many members vote.
func (n *Node) guard(ctx context.Context) error {
	ticker := time.NewTicker(guardInterval)
	defer ticker.Stop()
	since := time.Now()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		infos, err := n.members(ctx)
		if err != nil || len(infos) == 0 {
			since = time.Now() // Not a member yet, or busy.
			continue
		}
		self := slices.IndexFunc(infos, func(i member.Info) bool { return i.ID == n.member.ID() })
		if self < 0 || infos[self].Role != member.Voter {
			since = time.Now()
			continue
		}
		voters := len(votersOf(infos))
		asking, cancel := context.WithTimeout(ctx, roundLimit)
		info, err := n.member.Leader(asking)
		cancel()
		// The leader notes what it changes itself; others what they see.
		if err == nil && info.ID != 0 && info.ID != n.member.ID() && voters > 1 {
			if err := saveVoters(n.config.Dir, voters); err != nil {
				n.log.Warn("store: voters", "error", err)
			}
		}
		if err == nil && info.ID != 0 || !n.othersHaveLeader(ctx, voters) {
			since = time.Now()
			continue
		}
		if n.full() {
			since = time.Now() // It goes on by itself when there is space, and would not start before.
			continue
		}
		if time.Since(since) <= max(deadAfter, 4*n.disk.Election) {
			continue
		}
		if !n.wasRemoved(ctx) {
			return errDead
		}
		since = time.Now()
	}
}

// wasRemoved asks who leads whether this member still is one. A member that
// was off when it was removed cannot know: nobody sends it the news.
func (n *Node) wasRemoved(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, gossipLimit)
	defer cancel()
	for _, v := range n.viewAll(ctx) {
		if v.leader == 0 || v.leader == n.member.ID() {
			continue
		}
		theirs, err := n.statusOf(ctx, v.leader)
		if err != nil || theirs.Phase != "leader" || slices.ContainsFunc(theirs.Members, func(m admin.Member) bool { return uint64(m.ID) == n.member.ID() }) {
			continue
		}
		n.mu.Lock()
		was := n.removed
		n.removed = true
		n.mu.Unlock()
		if !was {
			n.log.Error("store: this member was removed from the cluster", "what to do", removedHelp)
		}
		return true
	}
	return false
}

// removedHelp says how a member that was removed comes back.
const removedHelp = "to join anew, stop the store, move its directory `member` away and start it again"

// members asks the own member for the configuration, not for ever.
func (n *Node) members(ctx context.Context) ([]member.Info, error) {
	ctx, cancel := context.WithTimeout(ctx, roundLimit)
	defer cancel()
	return n.member.Members(ctx)
}

// othersHaveLeader says whether this member should know a leader: it is the
// only voter, or others know one that answers this member. One that does not is
// behind a link that is cut, which a new start would not mend.
func (n *Node) othersHaveLeader(ctx context.Context, voters int) bool {
	if voters == 1 {
		return true
	}
	if n.network == nil {
		return false
	}
	asking, cancel := context.WithTimeout(ctx, roundLimit)
	defer cancel()
	views := n.viewAll(asking)
	i := slices.IndexFunc(views, func(v view) bool { return v.leader != 0 && v.leader != n.member.ID() })
	if i < 0 {
		return false
	}
	// Time of its own: somebody who is silent has used up the other.
	answering, cancel := context.WithTimeout(ctx, roundLimit)
	defer cancel()
	own, err := n.ask(answering, views[i].leader)
	return err == nil && own.leader == views[i].leader
}

// announce puts the own addresses into the book: those of the configuration,
// or those of the interfaces when it names none. They may change at any time.
func (n *Node) announce() error {
	addresses := n.config.Network.Advertise
	if own := n.config.Network.Own; own != nil {
		now, err := own()
		if err != nil {
			return n.withoutAddress(err)
		}
		addresses = now
	}
	if len(addresses) == 0 {
		var err error
		if addresses, err = ownAddresses(n.network.Addr().String()); err != nil {
			return err
		}
	}
	err := n.network.Book().SetOwn(peer.Entry{
		ID: n.member.ID(), Name: n.config.Name, Addresses: addresses, Witness: n.config.Witness, Zone: n.config.Zone,
	})
	if len(n.entries()) > 1 {
		n.poke() // Perhaps it is not alone any more.
	}
	return err
}

// withoutAddress is for a machine that has no address now. What the book has stays true enough: most of the time a
// machine gets its own address back. Who begins the cluster needs none to serve its own machine, and is asked again when
// addresses are exchanged next; who joins has nothing to be reached by.
func (n *Node) withoutAddress(err error) error {
	_, known := n.entries()[n.member.ID()]
	if !known && len(n.config.Join) > 0 {
		return fmt.Errorf("own addresses: %w", err)
	}
	n.log.Warn("store: this machine has no address now by which the other members could reach it", "error", err)
	return nil
}

// ownAddresses lists under which addresses a listener is reached.
func ownAddresses(listener string) ([]string, error) {
	host, port, err := net.SplitHostPort(listener)
	if err != nil {
		return nil, err
	}
	if ip := net.ParseIP(host); ip == nil || !ip.IsUnspecified() {
		return []string{listener}, nil
	}
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	var addresses []string
	for _, a := range all {
		if ip, ok := a.(*net.IPNet); ok && ip.IP.IsGlobalUnicast() {
			addresses = append(addresses, net.JoinHostPort(ip.IP.String(), port))
		}
	}
	if len(addresses) == 0 {
		return nil, errors.New("no interface has an address yet that others could reach: give --advertise")
	}
	slices.Sort(addresses)
	return addresses, nil
}

// forgetStrangers removes addresses of those who are no members for a while.
func (n *Node) forgetStrangers(ctx context.Context) {
	infos, err := n.member.Members(ctx)
	if err != nil || !slices.ContainsFunc(infos, func(i member.Info) bool { return i.ID == n.member.ID() }) {
		return // Who is no member itself, or not yet, cannot tell.
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, e := range n.network.Book().All() {
		known := slices.ContainsFunc(infos, func(i member.Info) bool { return i.ID == e.ID })
		first, strange := n.strangers[e.ID]
		switch {
		case known:
			delete(n.strangers, e.ID)
		case !strange:
			n.strangers[e.ID] = time.Now()
		case time.Since(first) > forgetAfter:
			n.network.Book().Remove(e.ID)
			delete(n.strangers, e.ID)
		}
	}
}
