package podnet

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/flannel-io/flannel/pkg/ip"
	"golang.org/x/sys/unix"
)

// family is a family of addresses.
type family int

const (
	ipv4 family = iota
	ipv6
)

func (f family) String() string {
	if f == ipv6 {
		return "IPv6"
	}
	return "IPv4"
}

// netlink is the family's number in the kernel.
func (f family) netlink() int {
	if f == ipv6 {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

// prefixes and addresses hold at most one of each family; a family that lacks is the zero value.
type (
	prefixes  [2]netip.Prefix
	addresses [2]netip.Addr
)

func familyOf(a netip.Addr) family {
	if a.Is4() {
		return ipv4
	}
	return ipv6
}

func splitPrefixes(list []netip.Prefix) (prefixes, error) {
	var all prefixes
	for _, p := range list {
		f := familyOf(p.Addr())
		if all[f].IsValid() {
			return prefixes{}, fmt.Errorf("two %v ranges, %v and %v: give one of each family", f, all[f], p)
		}
		all[f] = p.Masked()
	}
	if all == (prefixes{}) {
		return prefixes{}, errors.New("no address range")
	}
	return all, nil
}

// list are those that there are.
func (p prefixes) list() []netip.Prefix {
	var all []netip.Prefix
	for _, one := range p {
		if one.IsValid() {
			all = append(all, one)
		}
	}
	return all
}

// within says that part is a range of network.
func within(network, part netip.Prefix) bool {
	return network.IsValid() && part.IsValid() && network.Bits() <= part.Bits() && network.Contains(part.Addr())
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func prefixOf(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	a, ok := netip.AddrFromSlice(n.IP)
	bits, size := n.Mask.Size()
	if !ok || size == 0 {
		return netip.Prefix{}, false
	}
	if size == 32 {
		a = a.Unmap()
	}
	return netip.PrefixFrom(a, bits), true
}

func addrOf(i net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(i)
	return a.Unmap()
}

// flannel4 and flannel6 are flannel's types of a range. Its own parsers panic at an address of the other family.
func flannel4(p netip.Prefix) ip.IP4Net {
	if !p.IsValid() || !p.Addr().Is4() {
		return ip.IP4Net{}
	}
	return ip.FromIPNet(ipNet(p))
}

func flannel6(p netip.Prefix) ip.IP6Net {
	if !p.IsValid() || !p.Addr().Is6() {
		return ip.IP6Net{}
	}
	return ip.FromIP6Net(ipNet(p))
}
