package podnet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"

	flannel "github.com/flannel-io/flannel/pkg/backend"
	"github.com/flannel-io/flannel/pkg/backend/hostgw"
	"github.com/flannel-io/flannel/pkg/backend/vxlan"
	"github.com/flannel-io/flannel/pkg/subnet"
	"github.com/vishvananda/netlink"
)

// backEnd is a way to carry packets of pods to other nodes.
type backEnd interface {
	// devices are the links that carry them, by family; "" for the node's own interface.
	devices() [2]string
	// overhead is by how much a packet of a pod must be smaller than the interface's, when the outer packet is of the
	// family.
	overhead(outer family) int
	// flannelOverhead is what flannel takes off from the MTU it is given, whatever the family.
	flannelOverhead() int
	// setUp makes the devices, with the share's addresses, and tells l what others must know. It may be repeated and
	// leaves alone what is right: connections go on.
	setUp(ctx context.Context, l *leases, ext external, mtu int) error
	// apply makes the devices reach exactly these other nodes; those of another back-end are not among them.
	apply(peers []peer, networks prefixes, ext external) error
}

func newBackend(name, stateDir string) (backEnd, error) {
	switch name {
	case vxlanBackend:
		return vxlanEnd{}, nil
	case hostgwBackend:
		return hostgwEnd{}, nil
	case wireguardBackend:
		return newWireguard(stateDir), nil
	}
	return nil, fmt.Errorf("pod network: unknown back-end %q: cairn.cluster.flannel is one of %s, %s, %s, %s",
		name, vxlanBackend, hostgwBackend, wireguardBackend, noBackend)
}

// podMTU is the largest packet that a pod may send, in bytes. Pods have one device for both families, so the larger
// overhead counts.
func podMTU(b backEnd, link int, networks prefixes) int {
	most := 0
	for f, p := range networks {
		if p.IsValid() {
			most = max(most, b.overhead(family(f)))
		}
	}
	return link - most
}

// flannelConfig is what flannel reads from its net-conf.json otherwise, such that its devices get this MTU.
func flannelConfig(name string, networks prefixes, mtu, flannelOverhead int) (*subnet.Config, error) {
	own, err := json.Marshal(map[string]any{
		"Type": name, "MTU": mtu + flannelOverhead,
		"PersistentKeepaliveInterval": keepalive, // wireguard's; the others do not know it
	})
	if err != nil {
		return nil, err
	}
	return &subnet.Config{
		EnableIPv4: networks[ipv4].IsValid(), EnableIPv6: networks[ipv6].IsValid(), EnableNFTables: true,
		Network: flannel4(networks[ipv4]), IPv6Network: flannel6(networks[ipv6]),
		BackendType: name, Backend: own,
	}, nil
}

// register lets flannel's back-end set itself up. Its loop is not started: see DESIGN.md.
func register(ctx context.Context, construct flannel.BackendCtor, l *leases, ext external) error {
	b, err := construct(l, ext.flannel())
	if err != nil {
		return err
	}
	_, err = b.RegisterNetwork(ctx, new(sync.WaitGroup), l.config)
	return err
}

// setMTU corrects a device that was there before with another one.
func setMTU(name string, mtu int) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find link %s: %w", name, err)
	}
	if link.Attrs().MTU == mtu {
		return nil
	}
	if err := netlink.LinkSetMTU(link, mtu); err != nil {
		return fmt.Errorf("set MTU of %s: %w", name, err)
	}
	return nil
}

// hostgwEnd routes by the other nodes themselves: all must be on one network.
type hostgwEnd struct{}

func (hostgwEnd) devices() [2]string   { return [2]string{} }
func (hostgwEnd) overhead(family) int  { return 0 }
func (hostgwEnd) flannelOverhead() int { return 0 }

func (hostgwEnd) setUp(ctx context.Context, l *leases, ext external, _ int) error {
	return register(ctx, hostgw.New, l, ext)
}

func (hostgwEnd) apply(peers []peer, networks prefixes, ext external) error {
	var errs []error
	for f, network := range networks {
		if !network.IsValid() {
			continue
		}
		var want []route
		for _, p := range peers {
			if p.share[f].IsValid() {
				want = append(want, route{dst: p.share[f], via: p.public[f], link: ext.index})
			}
		}
		errs = append(errs, syncRoutes(family(f), network, want))
	}
	return errors.Join(errs...)
}

// vxlanEnd wraps packets in UDP: any network that carries those will do.
type vxlanEnd struct{}

// flannel's VXLAN identifier is 1, which the names hold.
func (vxlanEnd) devices() [2]string { return [2]string{"flannel.1", "flannel-v6.1"} }

// overhead: outer IP, UDP 8, VXLAN 8, and the inner Ethernet header 14.
func (vxlanEnd) overhead(outer family) int {
	if outer == ipv6 {
		return 40 + 30
	}
	return 20 + 30
}

func (vxlanEnd) flannelOverhead() int { return 50 }

func (v vxlanEnd) setUp(ctx context.Context, l *leases, ext external, mtu int) error {
	if err := register(ctx, vxlan.New, l, ext); err != nil {
		return err
	}
	for f, name := range v.devices() {
		if !l.share[f].IsValid() {
			continue
		}
		if err := setMTU(name, mtu); err != nil {
			return err
		}
	}
	return nil
}

func (v vxlanEnd) apply(peers []peer, networks prefixes, _ external) error {
	var errs []error
	for f, network := range networks {
		if !network.IsValid() {
			continue
		}
		link, err := netlink.LinkByName(v.devices()[f])
		if err != nil {
			return fmt.Errorf("find link %s: %w", v.devices()[f], err)
		}
		var routes []route
		var ends []tunnelEnd
		for _, p := range peers {
			if !p.share[f].IsValid() {
				continue
			}
			mac, err := vtepMAC(p.data[f])
			if err != nil {
				errs = append(errs, fmt.Errorf("node %s: %w", p.node, err))
				continue
			}
			// The other end's device has the first address of its share.
			gateway := p.share[f].Addr()
			ends = append(ends, tunnelEnd{mac: mac.String(), inner: gateway, outer: p.public[f]})
			routes = append(routes, route{dst: p.share[f], via: gateway, link: link.Attrs().Index, onLink: true})
		}
		// Routes go last on the way in: the kernel would ask for the gateway's hardware address.
		errs = append(errs, syncTunnelEnds(family(f), link.Attrs().Index, ends), syncRoutes(family(f), network, routes))
	}
	return errors.Join(errs...)
}
