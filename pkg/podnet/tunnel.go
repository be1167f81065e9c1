package podnet

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// tunnelEnd is the other end of a VXLAN tunnel: a device with a hardware address and an address in the pod network,
// behind a node's address.
type tunnelEnd struct {
	mac   string
	inner netip.Addr
	outer netip.Addr
}

// neighbour is an entry of a kernel table that maps a hardware address to another one, either way.
type neighbour struct {
	mac     string
	address netip.Addr
}

// vtepMAC reads the hardware address of a node's VXLAN device from its annotation.
func vtepMAC(data string) (net.HardwareAddr, error) {
	var v struct {
		VtepMAC string
	}
	if err := json.Unmarshal([]byte(data), &v); err != nil {
		return nil, fmt.Errorf("VXLAN annotation %q: %w", data, err)
	}
	mac, err := net.ParseMAC(v.VtepMAC)
	if err != nil || len(mac) != 6 {
		return nil, fmt.Errorf("VXLAN annotation %q: no hardware address", data)
	}
	return mac, nil
}

// planNeighbours compares what is with what should be. What is set replaces an entry of the same key; key says which
// part of an entry that is.
func planNeighbours(have, want []neighbour, key func(neighbour) any) (set, del []neighbour) {
	keys := make(map[any]bool)
	for _, w := range want {
		if !slices.Contains(have, w) {
			set = append(set, w)
			keys[key(w)] = true
		}
	}
	for _, h := range have {
		if !slices.Contains(want, h) && !keys[key(h)] {
			del = append(del, h)
		}
	}
	return set, del
}

// syncTunnelEnds makes the device know exactly these ends: in the neighbour table, which gives hardware addresses for
// pod addresses, and in the forwarding table, which gives the node for a hardware address.
func syncTunnelEnds(f family, link int, ends []tunnelEnd) error {
	var arp, fdb []neighbour
	for _, e := range ends {
		arp = append(arp, neighbour{e.mac, e.inner})
		fdb = append(fdb, neighbour{e.mac, e.outer})
	}
	byAddress := func(n neighbour) any { return n.address }
	byMAC := func(n neighbour) any { return n.mac }
	return errors.Join(
		syncNeighbours(netlink.Neigh{LinkIndex: link, Family: unix.AF_BRIDGE, Flags: netlink.NTF_SELF}, fdb, byMAC),
		syncNeighbours(netlink.Neigh{LinkIndex: link, Family: f.netlink()}, arp, byAddress),
	)
}

// syncNeighbours makes want the only permanent entries of the table that like names.
func syncNeighbours(like netlink.Neigh, want []neighbour, key func(neighbour) any) error {
	list, err := netlink.NeighList(like.LinkIndex, like.Family)
	if err != nil {
		return fmt.Errorf("list neighbours: %w", err)
	}
	var have []neighbour
	for _, n := range list {
		if n.State&netlink.NUD_PERMANENT != 0 {
			have = append(have, neighbour{n.HardwareAddr.String(), addrOf(n.IP)})
		}
	}
	set, del := planNeighbours(have, want, key)
	var errs []error
	for _, n := range set {
		if err := netlink.NeighSet(n.netlink(like)); err != nil {
			errs = append(errs, fmt.Errorf("set neighbour %v at %v: %w", n.mac, n.address, err))
		}
	}
	for _, n := range del {
		if err := netlink.NeighDel(n.netlink(like)); err != nil && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("remove neighbour %v at %v: %w", n.mac, n.address, err))
		}
	}
	return errors.Join(errs...)
}

func (n neighbour) netlink(like netlink.Neigh) *netlink.Neigh {
	mac, _ := net.ParseMAC(n.mac) // it was one when it was made
	like.State = netlink.NUD_PERMANENT
	like.HardwareAddr, like.IP = mac, n.address.AsSlice()
	return &like
}
