package nodens

import (
	"errors"
	"fmt"
	"hash/fnv"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// networkLock serialises changes of the bridge between all programs that run
// nodes: the last node to leave takes the bridge away.
const networkLock = "/run/cairn-nodens.lock"

// linkName is the build machine's end of a node's cable. Interface names hold
// 15 characters, node names 63.
func linkName(node string) string {
	h := fnv.New32a()
	h.Write([]byte(node))
	return fmt.Sprintf("cairn-%08x", h.Sum32())
}

// bridgeAddress is the first address of p's network.
func bridgeAddress(p netip.Prefix) netip.Prefix {
	return netip.PrefixFrom(p.Masked().Addr().Next(), p.Bits())
}

// hardwareAddress is eth0's: a machine that is switched off and on again has
// the card that it had. The second digit says "locally administered".
func hardwareAddress(node string) net.HardwareAddr {
	h := fnv.New32a()
	h.Write([]byte(node))
	return h.Sum([]byte{0x02, 0xca})
}

func withNetworkLock(f func() error) error {
	lock, err := os.OpenFile(networkLock, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s: %w", networkLock, err)
	}
	return f()
}

// attach plugs the node's eth0 into the bridge.
func (n *Node) attach() error {
	return withNetworkLock(func() error {
		// What a killed program left would be faults that nobody asked for.
		if err := removeRules(tableName(n.cfg.Name)); err != nil {
			return err
		}
		bridge, err := ensureBridge(n.cfg.Bridge, n.cfg.bridgeAddresses())
		if err != nil {
			return fmt.Errorf("bridge %s: %w", n.cfg.Bridge, err)
		}
		if err := removeLink(n.link); err != nil {
			return err
		}
		veth := &netlink.Veth{
			LinkAttrs:        netlink.LinkAttrs{Name: n.link, MasterIndex: bridge.Attrs().Index},
			PeerName:         nodeDevice,
			PeerHardwareAddr: hardwareAddress(n.cfg.Name),
			PeerNamespace:    netlink.NsPid(n.pid),
		}
		if err := netlink.LinkAdd(veth); err != nil {
			return fmt.Errorf("add link %s: %w", n.link, err)
		}
		if err := netlink.LinkSetUp(veth); err != nil {
			return fmt.Errorf("set link %s up: %w", n.link, err)
		}
		return nil
	})
}

// nodeDevice is the node's network card.
const nodeDevice = "eth0"

// bridgeAddresses are the bridge's in the node's networks.
func (c *Config) bridgeAddresses() []netip.Prefix {
	all := []netip.Prefix{bridgeAddress(c.Address)}
	if c.Address6.IsValid() {
		all = append(all, bridgeAddress(c.Address6))
	}
	return all
}

func ensureBridge(name string, addresses []netip.Prefix) (netlink.Link, error) {
	link, err := netlink.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name}}); err != nil {
			return nil, err
		}
		link, err = netlink.LinkByName(name)
	}
	if err != nil {
		return nil, err
	}
	if link.Type() != "bridge" {
		return nil, fmt.Errorf("is a %s", link.Type())
	}
	for _, address := range addresses {
		addr, err := netlink.ParseAddr(address.String())
		if err != nil {
			return nil, err
		}
		if address.Addr().Is6() {
			// Usable at once, without asking whether anybody else has it.
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrReplace(link, addr); err != nil {
			return nil, fmt.Errorf("address %s: %w", address, err)
		}
	}
	return link, netlink.LinkSetUp(link)
}

// detach unplugs the node, and removes the bridge after the last one.
func (n *Node) detach() error {
	faults := n.cable.end()
	err := withNetworkLock(func() error {
		if err := removeRules(tableName(n.cfg.Name)); err != nil {
			return err
		}
		if err := removeLink(n.link); err != nil {
			return err
		}
		bridge, err := netlink.LinkByName(n.cfg.Bridge)
		if errors.As(err, &netlink.LinkNotFoundError{}) {
			return nil
		}
		if err != nil {
			return err
		}
		links, err := netlink.LinkList()
		if err != nil {
			return err
		}
		for _, l := range links {
			if l.Attrs().MasterIndex == bridge.Attrs().Index {
				return nil
			}
		}
		return netlink.LinkDel(bridge)
	})
	return errors.Join(faults, err)
}

func removeLink(name string) error {
	link, err := netlink.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := netlink.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove link %s: %w", name, err)
	}
	return nil
}
