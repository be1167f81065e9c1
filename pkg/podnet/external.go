package podnet

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/flannel-io/flannel/pkg/backend"
	"github.com/vishvananda/netlink"
)

// external is the interface by which the node reaches the others, with its address of each family that pods have.
type external struct {
	name      string
	index     int
	mtu       int
	addresses addresses
}

// candidate is an interface of the machine.
type candidate struct {
	name       string
	index, mtu int
	has        []netip.Addr
}

// findExternal lists all addresses at once: a node has a link for each pod.
func findExternal(want addresses) (external, error) {
	list, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return external{}, fmt.Errorf("list addresses: %w", err)
	}
	var candidates []candidate
	for _, a := range list {
		if !slices.Contains(want[:], addrOf(a.IP)) {
			continue
		}
		i := slices.IndexFunc(candidates, func(c candidate) bool { return c.index == a.LinkIndex })
		if i < 0 {
			link, err := netlink.LinkByIndex(a.LinkIndex)
			if err != nil {
				continue // it went away
			}
			i = len(candidates)
			candidates = append(candidates, candidate{name: link.Attrs().Name, index: a.LinkIndex, mtu: link.Attrs().MTU})
		}
		candidates[i].has = append(candidates[i].has, addrOf(a.IP))
	}
	return chooseExternal(candidates, want)
}

// chooseExternal finds the interface with all the wanted addresses: the back-ends have one device for both families.
func chooseExternal(candidates []candidate, want addresses) (external, error) {
	var on []string
	for _, c := range candidates {
		missing, found := false, false
		for _, w := range want {
			if !w.IsValid() {
				continue
			}
			has := slices.Contains(c.has, w)
			missing, found = missing || !has, found || has
		}
		switch {
		case found && !missing:
			return external{c.name, c.index, c.mtu, want}, nil
		case found:
			on = append(on, c.name)
		}
	}
	if len(on) > 1 {
		return external{}, fmt.Errorf("node addresses %v are on different interfaces (%s); the pod network needs them on one: "+
			"set cairn.cluster.node_ip", want, strings.Join(on, ", "))
	}
	return external{}, fmt.Errorf("node addresses %v are not on any interface", want)
}

// String lists those that there are.
func (a addresses) String() string {
	var all []string
	for _, one := range a {
		if one.IsValid() {
			all = append(all, one.String())
		}
	}
	return strings.Join(all, " and ")
}

// flannel is the interface as flannel's back-ends take it. IfaceName stays empty: vxlan's only use for it is to make
// its device anew when that was deleted, which panics without IPv6; see DESIGN.md.
func (e external) flannel() *backend.ExternalInterface {
	ext := &backend.ExternalInterface{Iface: &net.Interface{Index: e.index, MTU: e.mtu, Name: e.name}}
	if a := e.addresses[ipv4]; a.IsValid() {
		ext.IfaceAddr = a.AsSlice()
		ext.ExtAddr = ext.IfaceAddr
	}
	if a := e.addresses[ipv6]; a.IsValid() {
		ext.IfaceV6Addr = a.AsSlice()
		ext.ExtV6Addr = ext.IfaceV6Addr
	}
	return ext
}
