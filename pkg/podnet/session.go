package podnet

import (
	"context"
	"fmt"
	"time"

	"github.com/vishvananda/netlink"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

const (
	// masqueradeInterval is how often the rules are written anew, in case someone flushed them; it costs a run of nft.
	masqueradeInterval = time.Minute
	// callTimeout bounds one request to the cluster, and one run of nft.
	callTimeout = 10 * time.Second
	// leastIPv6MTU is IPv6's own lower bound, in bytes.
	leastIPv6MTU = 1280
)

// session is the network on one share and one interface.
type session struct {
	*network
	share prefixes
	ext   external

	mtu        int
	announce   announcement
	masqueDone time.Time // when the rules were written
	written    bool      // the CNI configuration
}

// setUp makes the devices. It may be repeated.
func (s *session) setUp(ctx context.Context) error {
	own, known := s.nodes.own(s.Node)
	if !known {
		return fmt.Errorf("node %s is gone from the cluster", s.Node)
	}
	s.mtu = podMTU(s.end, s.ext.mtu, s.networks)
	if s.networks[ipv6].IsValid() && s.mtu < leastIPv6MTU {
		return fmt.Errorf("MTU %d of %s leaves %d for pods, and IPv6 needs %d: use a larger MTU or host-gw",
			s.ext.mtu, s.ext.name, s.mtu, leastIPv6MTU)
	}
	if err := s.removeStale(); err != nil {
		return err
	}
	if err := enableForwarding(s.networks); err != nil {
		return err
	}
	config, err := flannelConfig(s.Settings.Flannel, s.networks, s.mtu, s.end.flannelOverhead())
	if err != nil {
		return err
	}
	l := &leases{config: config, own: own, share: s.share}
	if err := s.end.setUp(ctx, l, s.ext, s.mtu); err != nil {
		return fmt.Errorf("%s: %w", s.Settings.Flannel, err)
	}
	s.announce = newAnnouncement(l.attrs, s.networks, s.ext.addresses)
	return nil
}

// removeStale removes what a former choice of back-end, networks or families left: it would carry packets elsewhere.
func (s *session) removeStale() error {
	before, err := remembered(s.StateDir)
	if err != nil {
		s.log.Warn("pod network remembered is unreadable", "error", err) // and is replaced soon
	}
	for _, p := range before.Networks {
		if f := familyOf(p.Addr()); s.networks[f] != p {
			if err := syncRoutes(f, p, nil); err != nil {
				return err
			}
		}
	}
	return removeLinks(staleLinks(s.end, s.networks))
}

// keep holds everything as it should be until ctx ends or the session's foundations changed.
func (s *session) keep(ctx context.Context) error {
	for {
		if err := s.changed(); err != nil {
			return err
		}
		wait := interval
		if !s.step(ctx) {
			wait = retryInterval
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return ctx.Err()
		case <-s.nodes.changed:
			t.Stop()
		case <-t.C:
		}
	}
}

// changed returns an errAgain when the session no longer fits.
func (s *session) changed() error {
	if own, known := s.nodes.own(s.Node); known {
		share, err := ownShare(own, s.networks)
		if err == nil && share != s.share {
			return fmt.Errorf("%w: the node's share is %v and was %v", errAgain, share.list(), s.share.list())
		}
	}
	ext, err := findExternal(s.wantedPublic())
	if err != nil {
		return fmt.Errorf("%w: %w", errAgain, err)
	}
	if ext != s.ext {
		return fmt.Errorf("%w: the interface is %s with MTU %d and was %s with MTU %d", errAgain, ext.name, ext.mtu, s.ext.name, s.ext.mtu)
	}
	for f, name := range s.end.devices() {
		if name == "" || !s.share[f].IsValid() {
			continue
		}
		if _, err := netlink.LinkByName(name); err != nil {
			return fmt.Errorf("%w: find link %s: %w", errAgain, name, err)
		}
	}
	return nil
}

// step brings everything to where it should be, and reports whether all of it is. Pods may start once others can know of
// this node and packets can leave; that some other node says nonsense does not matter for that.
func (s *session) step(ctx context.Context) bool {
	announced := s.tell(ctx)
	s.say("tell the cluster", announced)

	followed := s.follow()
	s.say("follow other nodes", followed)

	var masqueraded error
	if time.Since(s.masqueDone) >= masqueradeInterval {
		masqueraded = s.masquerade(ctx)
		s.say("masquerade", masqueraded)
	}

	var configured error
	if announced == nil && masqueraded == nil && !s.written {
		configured = s.configure()
		s.written = configured == nil
		s.say("write CNI configuration", configured)
	}
	return announced == nil && followed == nil && masqueraded == nil && configured == nil
}

// tell makes the own Node say where the node is.
func (s *session) tell(ctx context.Context) error {
	own, known := s.nodes.own(s.Node)
	if !known {
		return fmt.Errorf("node %s is gone from the cluster", s.Node)
	}
	patch := s.announce.patch(own)
	if patch == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if _, err := s.Client.CoreV1().Nodes().Patch(ctx, s.Node, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		return fmt.Errorf("annotate node %s: %w", s.Node, err)
	}
	return nil
}

func (s *session) masquerade(ctx context.Context) error {
	if s.nft == nil {
		var err error
		if s.nft, err = openTable(); err != nil {
			return err
		}
	}
	if err := masquerade(ctx, s.nft, s.share, s.networks); err != nil {
		return err
	}
	s.masqueDone = time.Now()
	return nil
}

// follow makes the other nodes reachable, as they say now.
func (s *session) follow() error {
	all, nonsense := peersOf(s.nodes.all(), s.Node, s.share, s.networks)
	s.say("read other nodes", nonsense)
	var peers []peer
	for _, p := range all {
		if p.backend == s.Settings.Flannel {
			peers = append(peers, p)
		}
	}
	return s.end.apply(peers, s.networks, s.ext)
}

// configure lets pods start, and remembers how.
func (s *session) configure() error {
	m := memory{Backend: s.Settings.Flannel, Networks: s.networks.list(), Shares: s.share.list(), MTU: s.mtu}
	if err := m.save(s.StateDir); err != nil {
		return err
	}
	return m.writeCNI(s.CNIConfDir, s.log)
}
