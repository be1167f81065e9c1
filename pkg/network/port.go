package network

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/cairn-os/cairn/pkg/dhcp"
	"github.com/cairn-os/cairn/pkg/sysctl"
)

// port is an interface that is managed.
type port struct {
	index      int
	name       string
	plan       plan
	configured bool // the static part was applied since the link came up
	carrier    bool

	session int    // counts DHCP clients; tells events of old ones from new
	cancel  func() // stops the client; nil: none
	lease   *dhcp.Lease
	expiry  *time.Timer

	fallback bool        // no server stands behind lease any more
	kept     *dhcp.Lease // what LeaseDir has
}

// String says what the port is doing, for people.
func (p *port) String() string {
	switch {
	case p.fallback:
		return p.lease.Address.String() + " of an earlier lease"
	case p.lease != nil && p.carrier:
		return p.lease.Address.String()
	case !p.carrier:
		return "no carrier"
	case p.plan.dhcp:
		return "waiting for DHCP"
	}
	return p.plan.String()
}

func (p *port) stop() {
	if p.cancel != nil {
		p.cancel()
		p.cancel = nil
	}
}

func loopbackUp() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find loopback: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("bring up loopback: %w", err)
	}
	return nil
}

func (p *port) link() netlink.Link {
	return &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: p.index, Name: p.name}}
}

func bringUp(p *port) error {
	// A machine that forwards, as Kubernetes makes it, ignores router advertisements unless told otherwise.
	err := sysctl.Set("/proc/sys", "net/ipv6/conf/"+p.name+"/accept_ra", "2")
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.EROFS) {
		return err
	}
	return netlink.LinkSetUp(p.link())
}

// applyStatic gives the interface what its plan says; what is there already is left alone.
func (p *port) applyStatic() error {
	var errs []error
	if p.plan.mtu > 0 {
		errs = append(errs, setMTU(p, p.plan.mtu))
	}
	for _, a := range p.plan.addresses {
		errs = append(errs, addAddress(p, a))
	}
	for _, r := range p.plan.routes {
		if r.to.Bits() == 0 && r.metric == 0 {
			r.metric = staticMetric + p.index
		}
		errs = append(errs, addRoute(p.kernelRoute(r, unix.RTPROT_STATIC, netip.Prefix{})))
	}
	return errors.Join(errs...)
}

// applyLease replaces what lease old brought by what now brings; either may be nil.
func (p *port) applyLease(old, now *dhcp.Lease) error {
	var errs []error
	var wanted []route
	if now != nil {
		wanted = p.leaseRoutes(now)
	}
	if old != nil {
		for _, r := range p.leaseRoutes(old) {
			if !slices.Contains(wanted, r) {
				errs = append(errs, ignore(netlink.RouteDel(p.kernelRoute(r, unix.RTPROT_DHCP, old.Address)), unix.ESRCH, unix.ENODEV))
			}
		}
		// Before the new address comes: removing the first address of a network takes its later ones along.
		if now == nil || now.Address != old.Address {
			err := netlink.AddrDel(p.link(), &netlink.Addr{IPNet: ipNet(old.Address)})
			errs = append(errs, ignore(err, unix.EADDRNOTAVAIL, unix.ENODEV))
		}
	}
	if now == nil {
		return errors.Join(errs...)
	}
	if p.plan.mtu == 0 && now.MTU > 0 {
		errs = append(errs, setMTU(p, now.MTU))
	}
	errs = append(errs, addAddress(p, now.Address))
	for _, r := range wanted {
		errs = append(errs, addRoute(p.kernelRoute(r, unix.RTPROT_DHCP, now.Address)))
	}
	return errors.Join(errs...)
}

// leaseRoutes are the routes of a lease, those on the link first: the others may need them.
func (p *port) leaseRoutes(l *dhcp.Lease) []route {
	var all []route
	for _, r := range l.Routes {
		all = append(all, route{r.To, r.Via, dhcpMetric + p.index})
	}
	slices.SortStableFunc(all, func(a, b route) int {
		switch {
		case a.via.IsValid() == b.via.IsValid():
			return 0
		case b.via.IsValid():
			return -1
		}
		return 1
	})
	return all
}

// kernelRoute is r for the kernel. A next hop outside the network of own, as clouds hand out beside a /32 address, is
// declared to be on the link.
func (p *port) kernelRoute(r route, protocol int, own netip.Prefix) *netlink.Route {
	k := &netlink.Route{
		LinkIndex: p.index, Dst: ipNet(r.to), Priority: r.metric, Protocol: netlink.RouteProtocol(protocol),
	}
	if own.IsValid() {
		k.Src = own.Addr().AsSlice()
	}
	if !r.via.IsValid() {
		k.Scope = netlink.SCOPE_LINK
		return k
	}
	k.Gw = r.via.AsSlice()
	if own.IsValid() && !own.Contains(r.via) {
		k.Flags |= int(netlink.FLAG_ONLINK)
	}
	return k
}

func addRoute(r *netlink.Route) error {
	if err := netlink.RouteReplace(r); err != nil {
		return fmt.Errorf("route to %s via %s: %w", r.Dst, r.Gw, err)
	}
	return nil
}

func addAddress(p *port, a netip.Prefix) error {
	if err := netlink.AddrReplace(p.link(), &netlink.Addr{IPNet: ipNet(a)}); err != nil {
		return fmt.Errorf("address %s: %w", a, err)
	}
	return nil
}

func setMTU(p *port, mtu int) error {
	link, err := netlink.LinkByIndex(p.index)
	if err != nil {
		return fmt.Errorf("mtu: %w", err)
	}
	if link.Attrs().MTU == mtu {
		return nil
	}
	if err := netlink.LinkSetMTU(link, mtu); err != nil {
		return fmt.Errorf("mtu %d: %w", mtu, err)
	}
	return nil
}

// ignore drops an error that means the thing is gone already.
func ignore(err error, gone ...error) error {
	for _, g := range gone {
		if errors.Is(err, g) {
			return nil
		}
	}
	return err
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// globalAddresses lists the usable addresses of the link that others can reach.
func globalAddresses(index int) []netip.Prefix {
	link := &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: index}}
	addrs, err := netlink.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return nil // the link is gone
	}
	var all []netip.Prefix
	for _, a := range addrs {
		ip, ok := netip.AddrFromSlice(a.IP)
		if !ok || a.Scope != unix.RT_SCOPE_UNIVERSE || a.Flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED) != 0 {
			continue
		}
		bits, _ := a.Mask.Size()
		all = append(all, netip.PrefixFrom(ip.Unmap(), bits))
	}
	return all
}

// hasIPv6 reports whether the kernel gave the link a global IPv6 address and a default route.
func hasIPv6(index int) bool {
	if !slices.ContainsFunc(globalAddresses(index), func(p netip.Prefix) bool { return p.Addr().Is6() }) {
		return false
	}
	filter := &netlink.Route{LinkIndex: index, Dst: nil}
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_V6, filter, netlink.RT_FILTER_OIF|netlink.RT_FILTER_DST)
	return err == nil && len(routes) > 0
}
