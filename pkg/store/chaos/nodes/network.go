package nodes

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// subnet holds all nodes. It exists in their namespaces only, so that runs
// side by side do not meet.
var subnet = netip.MustParsePrefix("10.213.0.0/24")

// network is the bridge that joins the nodes, in a namespace of its own.
type network struct {
	hub    netns.NsHandle
	spokes []netns.NsHandle
}

// inside runs f on a thread in the namespace.
func inside(ns netns.NsHandle, f func() error) error {
	result := make(chan error, 1)
	go func() {
		// The thread is not unlocked: it ends with the goroutine, and nobody
		// else ever runs in the wrong namespace.
		runtime.LockOSThread()
		if err := netns.Set(ns); err != nil {
			result <- fmt.Errorf("enter network namespace: %w", err)
			return
		}
		result <- f()
	}()
	return <-result
}

// newNamespace makes a namespace that nobody has to clean up: it ends with
// its handle and its processes.
func newNamespace() (netns.NsHandle, error) {
	type made struct {
		ns  netns.NsHandle
		err error
	}
	result := make(chan made, 1)
	go func() {
		runtime.LockOSThread()
		ns, err := netns.New()
		result <- made{ns, err}
	}()
	m := <-result
	if m.err != nil {
		return m.ns, fmt.Errorf("make network namespace: %w", m.err)
	}
	return m.ns, nil
}

func newNetwork(count int) (*network, error) {
	hub, err := newNamespace()
	if err != nil {
		return nil, err
	}
	n := &network{hub: hub}
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "bridge"}}
	err = inside(hub, func() error {
		if err := netlink.LinkAdd(bridge); err != nil {
			return fmt.Errorf("add bridge: %w", err)
		}
		return netlink.LinkSetUp(bridge)
	})
	for i := 0; i < count && err == nil; i++ {
		err = n.plug(i, bridge)
	}
	if err != nil {
		n.close()
		return nil, err
	}
	return n, nil
}

// plug adds node i's namespace and its cable.
func (n *network) plug(i int, bridge netlink.Link) error {
	ns, err := newNamespace()
	if err != nil {
		return err
	}
	n.spokes = append(n.spokes, ns)
	err = inside(n.hub, func() error {
		veth := &netlink.Veth{
			LinkAttrs:     netlink.LinkAttrs{Name: fmt.Sprintf("node%d", i), MasterIndex: bridge.Attrs().Index},
			PeerName:      device,
			PeerNamespace: netlink.NsFd(ns),
		}
		if err := netlink.LinkAdd(veth); err != nil {
			return fmt.Errorf("add link of node %d: %w", i, err)
		}
		return netlink.LinkSetUp(veth)
	})
	if err != nil {
		return err
	}
	return inside(ns, func() error {
		for _, name := range []string{"lo", device} {
			link, err := netlink.LinkByName(name)
			if err != nil {
				return fmt.Errorf("node %d: link %s: %w", i, name, err)
			}
			if name == device {
				ip := &net.IPNet{IP: address(i).AsSlice(), Mask: net.CIDRMask(subnet.Bits(), 32)}
				if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: ip}); err != nil {
					return fmt.Errorf("node %d: add address: %w", i, err)
				}
			}
			if err := netlink.LinkSetUp(link); err != nil {
				return fmt.Errorf("node %d: set %s up: %w", i, name, err)
			}
		}
		return nil
	})
}

// device is the name of each node's network card.
const device = "eth0"

// address is node i's.
func address(i int) netip.Addr {
	a := subnet.Addr().As4()
	a[3] = byte(i + 1)
	return netip.AddrFrom4(a)
}

func (n *network) close() {
	for _, ns := range n.spokes {
		ns.Close()
	}
	n.hub.Close()
}

// path names a namespace to programs, while this process lives.
func path(ns netns.NsHandle) string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), int(ns)) }

// Loss is what a network does not carry: Percent of the packets that go From
// one node To another.
type Loss struct {
	From, To int
	Percent  int
}

// rules spells the losses on their way into node i for nft. The probability of
// a connection's packets is the product of those of all losses that match.
func rules(i int, losses []Loss) string {
	var b strings.Builder
	b.WriteString("table inet chaos\ndelete table inet chaos\ntable inet chaos {\n\tchain in {\n\t\ttype filter hook input priority 0;\n")
	for _, l := range losses {
		if l.To != i {
			continue
		}
		fmt.Fprintf(&b, "\t\tip saddr %s ", address(l.From))
		if l.Percent < 100 {
			fmt.Fprintf(&b, "numgen random mod 100 < %d ", l.Percent)
		}
		b.WriteString("drop\n")
	}
	b.WriteString("\t}\n}\n")
	return b.String()
}

// lose makes the network lose exactly these packets from now on.
func (n *network) lose(ctx context.Context, losses []Loss) error {
	for i, ns := range n.spokes {
		cmd := exec.CommandContext(ctx, "nsenter", "--net="+path(ns), "nft", "-f", "-")
		cmd.Stdin = strings.NewReader(rules(i, losses))
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("nft on node %d: %w: %s", i, err, bytes.TrimSpace(out))
		}
	}
	return nil
}

// throttle makes node i's card send so slowly that packets queue up: each
// waits up to 300 ms, what does not fit is lost. A kernel's netem would do it
// more neatly, but many are built without.
func (n *network) throttle(i int, on bool) error {
	return inside(n.spokes[i], func() error {
		link, err := netlink.LinkByName(device)
		if err != nil {
			return fmt.Errorf("node %d: link %s: %w", i, device, err)
		}
		const rate = 128 << 10 // bytes a second
		q := &netlink.Tbf{
			QdiscAttrs: netlink.QdiscAttrs{LinkIndex: link.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT},
			Rate:       rate, Buffer: netlink.Xmittime(rate, 4<<10), Limit: rate * 3 / 10,
		}
		if on {
			err = netlink.QdiscReplace(q)
		} else {
			err = netlink.QdiscDel(q)
		}
		if err != nil {
			return fmt.Errorf("node %d: throttle %t: %w", i, on, err)
		}
		return nil
	})
}
