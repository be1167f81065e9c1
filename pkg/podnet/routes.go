package podnet

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// route is a route to pods of other nodes.
type route struct {
	dst    netip.Prefix
	via    netip.Addr // none: the device knows
	link   int
	onLink bool // the gateway is behind the link although no route says so
}

// planRoutes compares what is with what should be. Those to set come in order; those to delete are the rest.
func planRoutes(have, want []route) (set, del []route) {
	for _, w := range want {
		if !slices.Contains(have, w) {
			set = append(set, w)
		}
	}
	for _, h := range have {
		if !slices.Contains(want, h) {
			del = append(del, h)
		}
	}
	order := func(a, b route) int {
		return cmp.Or(a.dst.Addr().Compare(b.dst.Addr()), cmp.Compare(a.dst.Bits(), b.dst.Bits()))
	}
	slices.SortFunc(set, order)
	slices.SortFunc(del, order)
	return set, del
}

// syncRoutes makes want the only routes into network besides the kernel's own ones.
func syncRoutes(f family, network netip.Prefix, want []route) error {
	have, err := podRoutes(f, network)
	if err != nil {
		return err
	}
	set, del := planRoutes(have, want)
	var errs []error
	for _, r := range set {
		if err := netlink.RouteReplace(r.netlink(f)); err != nil {
			errs = append(errs, fmt.Errorf("route to %v by %v: %w", r.dst, r.via, r.explain(err)))
		}
	}
	for _, r := range del {
		// ESRCH: replaced above.
		if err := netlink.RouteDel(r.netlink(f)); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("remove route to %v: %w", r.dst, err))
		}
	}
	return errors.Join(errs...)
}

// explain says what a gateway that no route leads to means.
func (r route) explain(err error) error {
	elsewhere := errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.EHOSTUNREACH) || errors.Is(err, unix.EINVAL)
	if elsewhere && r.via.IsValid() && !r.onLink {
		return fmt.Errorf("%w: host-gw needs all nodes on one network; vxlan and wireguard do not", err)
	}
	return err
}

// podRoutes are the routes into network that were set by someone, not those that come with an address of a link.
func podRoutes(f family, network netip.Prefix) ([]route, error) {
	list, err := netlink.RouteListFiltered(f.netlink(), &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	var all []route
	for _, r := range list {
		dst, ok := prefixOf(r.Dst)
		if !ok || !within(network, dst) || r.Protocol != unix.RTPROT_BOOT || r.Type != unix.RTN_UNICAST {
			continue
		}
		all = append(all, route{
			dst: dst, via: addrOf(r.Gw), link: r.LinkIndex, onLink: r.Flags&int(netlink.FLAG_ONLINK) != 0,
		})
	}
	return all, nil
}

func (r route) netlink(f family) *netlink.Route {
	n := &netlink.Route{Dst: ipNet(r.dst), LinkIndex: r.link, Family: f.netlink(), Protocol: unix.RTPROT_BOOT}
	if r.via.IsValid() {
		n.Gw = r.via.AsSlice()
	} else {
		n.Scope = netlink.SCOPE_LINK
	}
	if r.onLink {
		n.SetFlag(netlink.FLAG_ONLINK)
	}
	return n
}
