package pki

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	utilnet "k8s.io/apimachinery/pkg/util/net"
)

// ErrNoAddress says that the machine has no address that others could use.
var ErrNoAddress = errors.New("no network interface has an address yet")

// Addresses returns the machine's addresses that others can reach it by, the one on the default route first. Addresses
// of the pod network do not count. It fails with ErrNoAddress when there is none.
func Addresses() ([]netip.Addr, error) {
	links, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	var all []netip.Addr
	for _, l := range links {
		if l.Flags&net.FlagUp == 0 || l.Flags&net.FlagLoopback != 0 || podLink(l.Name) {
			continue
		}
		addrs, err := l.Addrs()
		if err != nil {
			return nil, fmt.Errorf("list addresses of %s: %w", l.Name, err)
		}
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().IsGlobalUnicast() {
				all = append(all, p.Addr())
			}
		}
	}
	if len(all) == 0 {
		return nil, ErrNoAddress
	}
	// Without a default route the first address is as good as any.
	if ip, err := utilnet.ChooseHostInterface(); err == nil {
		if first, ok := netip.AddrFromSlice(ip); ok {
			all = primaryFirst(all, first.Unmap())
		}
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

func primaryFirst(all []netip.Addr, first netip.Addr) []netip.Addr {
	i := slices.Index(all, first)
	if i < 0 {
		return all
	}
	return slices.Insert(slices.Delete(slices.Clone(all), i, i+1), 0, first)
}

// podLink reports whether the interface is one that the pod network makes.
func podLink(name string) bool {
	for _, prefix := range []string{"cni", "veth", "flannel", "kube-"} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}
