package pki

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	utilnet "k8s.io/apimachinery/pkg/util/net"
)

// ErrNoAddress says that the machine has no address that others could use, or lacks one that its configuration names.
// It may come: from a DHCP server, with a cable.
var ErrNoAddress = errors.New("no network interface has an address yet")

// MissingError says which configured address is on no interface of the machine. It is an ErrNoAddress too.
type MissingError struct {
	Want netip.Addr
	Have []netip.Addr // what others could reach the machine by instead
}

func (e *MissingError) Error() string {
	if len(e.Have) == 0 {
		return fmt.Sprintf("no network interface has the configured node address %v", e.Want)
	}
	return fmt.Sprintf("no network interface has the configured node address %v, only %v: "+
		"correct cairn.cluster.node_ip or cairn.network", e.Want, e.Have)
}

// Is makes the error an ErrNoAddress.
func (e *MissingError) Is(target error) bool { return target == ErrNoAddress }

// Addresses returns the machine's addresses that others can reach it by. The configured ones come first, at most one of
// each family, in their order; then that on the default route and the others of its interface. Addresses of the pod
// network do not count, nor ones that the network asks not to use any more while there is a better one of their family.
// It fails with ErrNoAddress when there is none, and with a MissingError when a configured one is on no interface.
func Addresses(configured ...netip.Addr) ([]netip.Addr, error) {
	links, err := readLinks()
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	// Without a default route the first address is as good as any.
	var first netip.Addr
	if ip, err := utilnet.ChooseHostInterface(); err == nil {
		if a, ok := netip.AddrFromSlice(ip); ok {
			first = a.Unmap()
		}
	}
	return choose(links, first, configured)
}

// Primary returns the first address of each family; invalid ones for a family that lacks.
func Primary(addresses []netip.Addr) (v4, v6 netip.Addr) {
	for _, a := range addresses {
		to := &v6
		if a.Is4() {
			to = &v4
		}
		if !to.IsValid() {
			*to = a
		}
	}
	return v4, v6
}

// NodeAddresses returns the address of the machine that its node has in each family of the cluster's networks: of
// addresses, in the order that Addresses gives, the first of each. The others are nobody's business: many machines have the
// same one on a second network, of a service processor or a till's printer.
func NodeAddresses(addresses []netip.Addr, networks []netip.Prefix) ([]netip.Addr, error) {
	v4, v6 := Primary(addresses)
	var all []netip.Addr
	for _, n := range networks {
		own, family := v4, "IPv4"
		if n.Addr().Is6() {
			own, family = v6, "IPv6"
		}
		if !own.IsValid() {
			return nil, fmt.Errorf("the cluster has the network %v and this machine no %s address: %w", n, family, ErrNoAddress)
		}
		all = append(all, own)
	}
	return all, nil
}

// ErrAddressLost says that the address a component was started with is no longer the machine's, and that it has another.
var ErrAddressLost = errors.New("the machine's address has changed")

// Lost returns ErrAddressLost when the machine has addresses and primary is not among them. A machine without any, for a
// pulled cable, gets its own back most of the time.
func Lost(primary netip.Addr, now []netip.Addr) error {
	if len(now) == 0 || slices.Contains(now, primary) {
		return nil
	}
	return fmt.Errorf("%w from %v to %v", ErrAddressLost, primary, now[0])
}

// choose is Addresses without the kernel: first is the address on the default route.
func choose(links []link, first netip.Addr, configured []netip.Addr) ([]netip.Addr, error) {
	found := reachable(links, first)
	var all []netip.Addr
	for _, want := range configured {
		want = want.Unmap()
		if slices.ContainsFunc(all, func(a netip.Addr) bool { return a.Is4() == want.Is4() }) {
			return nil, fmt.Errorf("configured node addresses %v: at most one of each family", configured)
		}
		// On any interface: a tunnel that the operator made, or the loopback one of a machine that routes.
		if !slices.ContainsFunc(links, func(l link) bool { return l.has(want) }) {
			return nil, &MissingError{Want: want, Have: found}
		}
		all = append(all, want)
	}
	for _, a := range found {
		if !slices.Contains(all, a) {
			all = append(all, a)
		}
	}
	if len(all) == 0 {
		return nil, ErrNoAddress
	}
	return all, nil
}

// reachable returns the addresses that others can use, the best first.
func reachable(links []link, first netip.Addr) []netip.Addr {
	type candidate struct {
		address
		rank int // smaller is better
	}
	var candidates []candidate
	for _, l := range links {
		if !l.up || l.loopback || podLink(l.name) {
			continue
		}
		for _, a := range l.addresses {
			c := candidate{a, 2}
			switch {
			case !a.IsGlobalUnicast():
				continue
			case a.Addr == first:
				c.rank = 0
			case l.has(first):
				c.rank = 1
			}
			candidates = append(candidates, c)
		}
	}
	slices.SortStableFunc(candidates, func(a, b candidate) int { return cmp.Compare(a.rank, b.rank) })
	var all []netip.Addr
	for _, c := range candidates {
		better := func(o candidate) bool { return o.Is4() == c.Is4() && !o.fading }
		if c.fading && slices.ContainsFunc(candidates, better) || slices.Contains(all, c.Addr) {
			continue
		}
		all = append(all, c.Addr)
	}
	return all
}
