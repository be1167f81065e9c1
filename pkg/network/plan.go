package network

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/cairn-os/cairn/pkg/config"
)

// plan is what one interface shall be: a config.Interface in the kernel's terms.
type plan struct {
	name      string
	mac       net.HardwareAddr // selects the interface instead of name
	dhcp      bool
	mtu       int
	addresses []netip.Prefix
	routes    []route
}

// route is a route of a plan or a lease.
type route struct {
	to     netip.Prefix
	via    netip.Addr // the zero Addr: on the link
	metric int        // 0: the kernel's own
}

// Metrics of default routes, plus the link's index so that two interfaces do not replace each other's. Static ones win.
const (
	staticMetric = 100
	dhcpMetric   = 1000
)

// defaultPlan is for wired interfaces when the configuration names none.
var defaultPlan = plan{dhcp: true}

func newPlans(interfaces map[string]config.Interface) ([]plan, error) {
	var all []plan
	var errs []error
	for name, i := range interfaces {
		p, err := newPlan(name, i)
		if err != nil {
			errs = append(errs, fmt.Errorf("interface %s: %w", name, err))
		}
		all = append(all, p)
	}
	// Those that name a MAC first: they are the more specific ones.
	slices.SortFunc(all, func(a, b plan) int {
		return cmp.Or(-cmp.Compare(len(a.mac), len(b.mac)), strings.Compare(a.name, b.name))
	})
	return all, errors.Join(errs...)
}

func newPlan(name string, i config.Interface) (plan, error) {
	p := plan{name: name, dhcp: i.DHCP, mtu: i.MTU}
	var err error
	if i.MAC != "" {
		if p.mac, err = net.ParseMAC(i.MAC); err != nil {
			return plan{}, err
		}
	}
	for _, text := range i.Addresses {
		a, err := netip.ParsePrefix(text)
		if err != nil {
			return plan{}, err
		}
		p.addresses = append(p.addresses, a)
	}
	for _, r := range i.Routes {
		to, err1 := netip.ParsePrefix(r.To)
		via, err2 := netip.ParseAddr(r.Via)
		if err := errors.Join(err1, err2); err != nil {
			return plan{}, err
		}
		p.routes = append(p.routes, route{to, via, r.Metric})
	}
	if i.Gateway != "" {
		via, err := netip.ParseAddr(i.Gateway)
		if err != nil {
			return plan{}, err
		}
		everything := netip.IPv4Unspecified()
		if via.Is6() {
			everything = netip.IPv6Unspecified()
		}
		p.routes = append(p.routes, route{to: netip.PrefixFrom(everything, 0), via: via})
	}
	return p, nil
}

func (p plan) String() string {
	var words []string
	if p.dhcp {
		words = append(words, "dhcp")
	}
	for _, a := range p.addresses {
		words = append(words, a.String())
	}
	return strings.Join(words, " ")
}

// planFor finds the plan of link; ok is false when the link is none of ours.
func (n *Network) planFor(link netlink.Link) (plan, bool) {
	attrs := link.Attrs()
	if attrs.Flags&net.FlagLoopback != 0 {
		return plan{}, false
	}
	mac := attrs.PermHWAddr
	if len(mac) == 0 {
		mac = attrs.HardwareAddr
	}
	for _, p := range n.plans {
		if len(p.mac) > 0 && bytes.Equal(p.mac, mac) && physical(link) || len(p.mac) == 0 && p.name == attrs.Name {
			return p, true
		}
	}
	if len(n.plans) == 0 && physical(link) && !wireless("/sys/class/net", attrs.Name) {
		return defaultPlan, true
	}
	return plan{}, false
}

// physical tells network cards from what software makes: only the latter have a kind (veth, bridge, vxlan, vlan ...). A
// VLAN has the MAC of its card, so a plan by MAC must not match it.
func physical(link netlink.Link) bool {
	attrs := link.Attrs()
	return link.Type() == "device" && attrs.EncapType == "ether" && attrs.MasterIndex == 0 &&
		attrs.RawFlags&(unix.IFF_LOOPBACK|unix.IFF_POINTOPOINT|unix.IFF_NOARP) == 0
}

// wireless reports whether the interface is a radio, which has nothing to ask before somebody joins it to a network.
func wireless(sys, name string) bool {
	for _, sign := range []string{"wireless", "phy80211"} {
		if _, err := os.Stat(filepath.Join(sys, name, sign)); err == nil {
			return true
		}
	}
	return false
}
