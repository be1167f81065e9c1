package podnet

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	pods4 = "10.42.0.0/16"
	pods6 = "fd42::/48"
)

func shareOf(number int, pods ...string) []string {
	var all []string
	for _, p := range pods {
		switch p {
		case pods4:
			all = append(all, fmt.Sprintf("10.42.%d.0/24", number))
		case pods6:
			all = append(all, fmt.Sprintf("fd42:0:0:%x::/64", number))
		}
	}
	return all
}

// TestNetwork connects pods of two nodes with each other and with the world.
func TestNetwork(t *testing.T) {
	for _, c := range []struct {
		backend string
		pods    []string
		mtu     int
	}{
		{"vxlan", []string{pods4}, 1450},
		{"vxlan", []string{pods4, pods6}, 1430},
		{"vxlan", []string{pods6}, 1430},
		{"host-gw", []string{pods4}, 1500},
		{"host-gw", []string{pods4, pods6}, 1500},
		{"wireguard", []string{pods4, pods6}, 1420},
	} {
		t.Run(c.backend+" "+strings.Join(c.pods, " "), func(t *testing.T) {
			l := newLane(t)
			if c.backend == wireguardBackend {
				needWireguard(t)
			}
			l.api.start()
			var nodes []*node
			for number := 1; number <= 2; number++ {
				n := l.node(number, c.backend, c.pods...)
				l.api.add(n.child.Node, shareOf(number, c.pods...)...)
				n.start()
				nodes = append(nodes, n)
			}
			for _, n := range nodes {
				n.ready()
			}
			serveEcho(t, func(do func() error) error { return do() })
			a, b := nodes[0].pod("a"), nodes[1].pod("b")
			for f, outside := range []string{outside4, outside6} {
				if !a.addresses[f].IsValid() {
					continue
				}
				far := netip.MustParseAddr(outside)
				a.reaches(b.addresses[f], 100, a.addresses[f])
				b.reaches(a.addresses[f], 100, b.addresses[f])
				a.reaches(b.addresses[f], c.mtu, a.addresses[f])
				if _, err := a.ask(b.addresses[f], c.mtu+1); !errors.Is(err, unix.EMSGSIZE) {
					t.Errorf("a packet larger than %d: %v; want %v", c.mtu, err, unix.EMSGSIZE)
				}
				a.reaches(far, 100, nodes[0].child.NodeIPs[f])
				a.reaches(nodes[1].child.NodeIPs[f], 100, nodes[0].child.NodeIPs[f])
				// The node itself reaches pods elsewhere.
				if seen, err := nodes[0].ask(b.addresses[f], 100); err != nil {
					t.Errorf("node to pod %v: %v, %v", b.addresses[f], seen, err)
				}
			}
			for _, n := range nodes {
				if s := n.split(); s != "" {
					t.Errorf("node %s split packets: %s", n.child.Node, s)
				}
			}
		})
	}
}

// TestBesideProxy has rules at work like those that kube-proxy makes for a Service: a pod is seen by its own address behind
// one, and what kube-proxy wants masqueraded is.
func TestBesideProxy(t *testing.T) {
	l := newLane(t)
	l.api.start()
	var nodes []*node
	for number := 1; number <= 2; number++ {
		n := l.node(number, vxlanBackend, pods4)
		l.api.add(n.child.Node, shareOf(number, pods4)...)
		n.start()
		nodes = append(nodes, n)
	}
	nodes[0].ready()
	nodes[1].ready()
	a, b := nodes[0].pod("a"), nodes[1].pod("b")
	rules := filepath.Join(t.TempDir(), "rules.nft")
	must(t, os.WriteFile(rules, fmt.Appendf(nil, `
		table ip kube-proxy {
			chain nat-prerouting {
				type nat hook prerouting priority dstnat
				ip daddr 10.43.0.1 udp dport %[1]d dnat to %[2]v:%[1]d
				ip daddr 10.43.0.2 udp dport %[1]d meta mark set mark or 0x4000 dnat to %[2]v:%[1]d
			}
			chain nat-postrouting {
				type nat hook postrouting priority srcnat
				meta mark and 0x4000 != 0 meta mark set mark xor 0x4000 masquerade fully-random
			}
		}`, echoPort, b.addresses[ipv4]), 0o644))
	nodes[0].run("nft", "-f", rules)
	a.reaches(netip.MustParseAddr("10.43.0.1"), 100, a.addresses[ipv4])
	// Masqueraded behind the tunnel's own address, the first of the share.
	a.reaches(netip.MustParseAddr("10.43.0.2"), 100, netip.MustParseAddr("10.42.1.0"))
	serveEcho(t, func(do func() error) error { return do() })
	a.reaches(netip.MustParseAddr(outside4), 100, nodes[0].child.NodeIPs[ipv4])
}

// TestHostgwElsewhere tells of a node that host-gw cannot reach; the others are not affected.
func TestHostgwElsewhere(t *testing.T) {
	l := newLane(t)
	l.api.start()
	n := l.node(1, hostgwBackend, pods4)
	l.api.add("n1", shareOf(1, pods4)...)
	for number, address := range map[int]string{2: "192.0.2.2", 3: "198.51.100.3"} {
		other := testNode(fmt.Sprint("n", number), 0, shareOf(number, pods4), map[string]string{
			"backend-type": hostgwBackend, "backend-data": "null", "public-ip": address,
		})
		l.api.put(other)
	}
	n.start()
	n.ready()
	n.await("word of the far node", func() bool { return n.logged("host-gw needs all nodes on one network") })
	if got := n.ways(); got != "10.42.2.0/24 via 192.0.2.2 dev eth0 " {
		t.Errorf("ways to other nodes: %q", got)
	}
}

// needWireguard skips the test where the kernel does not have it.
func needWireguard(t *testing.T) {
	t.Helper()
	s := newSpace(t)
	err := s.do(func() error {
		return netlink.LinkAdd(&netlink.Wireguard{LinkAttrs: netlink.LinkAttrs{Name: "wg0"}})
	})
	if errors.Is(err, unix.EOPNOTSUPP) {
		t.Skip("this kernel has no WireGuard")
	}
	must(t, err)
}

// TestNodesComeAndGo follows nodes through what can happen to them.
func TestNodesComeAndGo(t *testing.T) {
	for _, backend := range []string{vxlanBackend, hostgwBackend} {
		t.Run(backend, func(t *testing.T) {
			l := newLane(t)
			first := l.node(1, backend, pods4)
			first.start() // nobody answers yet
			first.await("its wish for a cluster", func() bool { return first.logged("waiting for the cluster") })
			l.api.start()
			first.await("its wish for a Node", func() bool { return first.logged("waiting for the node to be registered") })
			l.api.add("n1", shareOf(1, pods4)...)
			first.ready()
			one := first.pod("one")

			second := l.node(2, backend, pods4)
			l.api.add("n2", shareOf(2, pods4)...)
			second.start()
			second.ready()
			two := second.pod("two")
			one.reaches(two.addresses[ipv4], 100, one.addresses[ipv4])
			two.reaches(one.addresses[ipv4], 100, two.addresses[ipv4])

			// The node's process starts anew; no packet is lost.
			lost := first.loss(func() {
				first.stop()
				first.start()
				time.Sleep(2 * time.Second) // it says nothing when all is right
			}, one, two.addresses[ipv4])
			if lost > 0 {
				t.Errorf("%d packets lost while the process started anew", lost)
			}

			// The cluster goes away and comes back; meanwhile everything stays.
			l.api.stop()
			one.reaches(two.addresses[ipv4], 100, one.addresses[ipv4])
			l.api.start()

			// The second moves to another address.
			second.stop()
			second.readdress(22)
			second.start()
			one.reaches(two.addresses[ipv4], 100, one.addresses[ipv4])
			if got := l.api.annotations("n2")[publicAnnotation(ipv4)]; got != "192.0.2.22" {
				t.Errorf("the second node's address in the cluster is %q; want 192.0.2.22", got)
			}

			// Someone breaks what was set up.
			first.damage(backend)
			one.reaches(two.addresses[ipv4], 100, one.addresses[ipv4])

			// The second is deleted and registers again, with another share; nothing of the old one stays.
			second.stop()
			l.api.delete("n2")
			first.await("forgetting the second node", func() bool { return first.ways() == "" })
			second.start()
			l.api.add("n2", shareOf(9, pods4)...)
			second.await("its new share", func() bool {
				data, err := os.ReadFile(second.cni)
				return err == nil && strings.Contains(string(data), "10.42.9.0/24")
			})
			nine := second.pod("nine")
			one.reaches(nine.addresses[ipv4], 100, one.addresses[ipv4])

			// Its share changes while it runs.
			l.api.delete("n2")
			l.api.add("n2", shareOf(5, pods4)...)
			second.await("its new share", func() bool {
				data, err := os.ReadFile(second.cni)
				return err == nil && strings.Contains(string(data), "10.42.5.0/24")
			})
			five := second.pod("five")
			one.reaches(five.addresses[ipv4], 100, one.addresses[ipv4])
			five.reaches(netip.MustParseAddr("192.0.2.1"), 100, netip.MustParseAddr("192.0.2.22"))
		})
	}
}

// loss counts the packets that p sends in vain during do.
func (n *node) loss(do func(), p *pod, to netip.Addr) int {
	n.t.Helper()
	done, lost := make(chan struct{}), make(chan int)
	go func() {
		count := 0
		for {
			if _, err := p.ask(to, 100); err != nil {
				count++
			}
			select {
			case <-done:
				lost <- count
				return
			case <-time.After(5 * time.Millisecond):
			}
		}
	}()
	do()
	close(done)
	return <-lost
}

// damage removes a node's ways to the others.
func (n *node) damage(backend string) {
	n.t.Helper()
	if backend == vxlanBackend {
		n.run("ip", "link", "del", "flannel.1")
	} else {
		n.run("ip", "route", "del", "10.42.2.0/24")
	}
	n.run("nft", "flush", "ruleset")
}

// ways are a node's ways to others.
func (n *node) ways() string {
	n.t.Helper()
	var all []string
	for _, line := range strings.Split(n.run("ip", "route"), "\n") {
		if strings.HasPrefix(line, "10.42.") && strings.Contains(line, "via") {
			all = append(all, line)
		}
	}
	for _, args := range [][]string{{"ip", "neigh", "show", "nud", "permanent"}, {"bridge", "fdb", "show"}} {
		for _, line := range strings.Split(n.run(args[0], args[1:]...), "\n") {
			if strings.Contains(line, "flannel") {
				all = append(all, line)
			}
		}
	}
	return strings.Join(all, "\n")
}

// TestMTUFollows changes the interface's MTU below a running node.
func TestMTUFollows(t *testing.T) {
	l := newLane(t)
	l.api.start()
	n := l.node(1, vxlanBackend, pods4)
	l.api.add("n1", shareOf(1, pods4)...)
	n.start()
	n.ready()
	n.run("ip", "link", "set", "eth0", "mtu", "1400")
	n.await("a smaller MTU", func() bool {
		data, err := os.ReadFile(n.cni)
		return err == nil && strings.Contains(string(data), `"mtu": 1350`)
	})
	if got := n.run("ip", "link", "show", "flannel.1"); !strings.Contains(got, "mtu 1350") {
		t.Errorf("flannel.1 has another MTU:\n%s", got)
	}
}

// TestSwitch goes through the back-ends on one node; each leaves nothing of the one before.
func TestSwitch(t *testing.T) {
	l := newLane(t)
	l.api.start()
	n, other := l.node(1, vxlanBackend, pods4, pods6), l.node(2, vxlanBackend, pods4, pods6)
	for number, one := range map[int]*node{1: n, 2: other} {
		l.api.add(one.child.Node, shareOf(number, pods4, pods6)...)
	}
	use := func(backend string, pods ...string) {
		for _, one := range []*node{n, other} {
			one.stop()
			one.child.Settings.Flannel, one.child.Settings.PodCIDRs = backend, list(pods...)
			one.start()
		}
	}
	state := func() string {
		out := n.run("ip", "-o", "link") + n.run("ip", "route") + n.run("ip", "-6", "route") + n.run("nft", "list", "ruleset")
		return out
	}
	awaitState := func(what string, has, lacks []string) {
		n.await(what, func() bool {
			out := state()
			for _, h := range has {
				if !strings.Contains(out, h) {
					return false
				}
			}
			for _, l := range lacks {
				if strings.Contains(out, l) {
					return false
				}
			}
			return true
		})
	}
	n.start()
	other.start()
	n.ready()
	n.pod("a")
	awaitState("vxlan", []string{"flannel.1", "flannel-v6.1", "10.42.2.0/24 via 10.42.2.0 dev flannel.1", "fd42:0:0:2::/64 via fd42:0:0:2:: dev flannel-v6.1"}, nil)

	use(hostgwBackend, pods4, pods6)
	awaitState("host-gw", []string{"10.42.2.0/24 via 192.0.2.2", "fd42:0:0:2::/64 via 2001:db8::2"}, []string{"flannel"})

	use(vxlanBackend, pods4)
	awaitState("vxlan without IPv6", []string{"10.42.2.0/24 via 10.42.2.0 dev flannel.1", nftTable}, []string{"flannel-v6.1", "24 via 192.0.2.2", "64 via 2001:db8::2", "saddr fd42"})
	for _, key := range []string{publicAnnotation(ipv6), dataAnnotation(ipv6)} {
		n.await("the cluster forgetting "+key, func() bool { _, has := l.api.annotations("n1")[key]; return !has })
	}

	use(noBackend, pods4)
	awaitState("none", nil, []string{"flannel", "cni0", "10.42.", "fd42:", nftTable})
	for _, dir := range []string{n.child.CNIConfDir, n.child.StateDir} {
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("%s holds %v, %v; want nothing", dir, left, err)
		}
	}
	// A network of the owner's, with links of the same names, is left alone.
	n.run("ip", "link", "add", "cni0", "type", "bridge")
	n.stop()
	n.start()
	time.Sleep(time.Second)
	if !strings.Contains(n.run("ip", "link"), "cni0") {
		t.Error("the owner's own bridge was removed")
	}
}

// TestRestore brings a rebooted node's end back before the cluster answers.
func TestRestore(t *testing.T) {
	l := newLane(t)
	l.api.start()
	n := l.node(1, vxlanBackend, pods4)
	l.api.add("n1", shareOf(1, pods4)...)
	n.start()
	n.ready()
	before, err := os.ReadFile(n.cni)
	must(t, err)
	n.stop()
	l.api.stop()

	n.run("nft", "flush", "ruleset")
	n.run("ip", "link", "del", "flannel.1")
	must(t, os.Remove(n.cni))
	n.child.Restore = true
	cmd := n.command()
	must(t, n.do(cmd.Run))
	n.child.Restore = false
	after, err := os.ReadFile(n.cni)
	if err != nil || string(after) != string(before) {
		t.Errorf("restored %s, %v; want\n%s", after, err, before)
	}
	serveEcho(t, func(do func() error) error { return do() })
	n.pod("early").reaches(netip.MustParseAddr(outside4), 100, n.child.NodeIPs[ipv4])

	// With another choice since, it is not restored.
	must(t, os.Remove(n.cni))
	n.child.Restore, n.child.Settings.Flannel = true, hostgwBackend
	cmd = n.command()
	must(t, n.do(cmd.Run))
	if _, err := os.Stat(n.cni); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("restored for another back-end: %v", err)
	}
}

// TestClean removes what the other tests make.
func TestClean(t *testing.T) {
	l := newLane(t)
	dir := t.TempDir()
	m := memory{Backend: hostgwBackend, Networks: list(pods4), Shares: list("10.42.1.0/24"), MTU: 1500}
	must(t, m.save(dir))
	must(t, m.writeCNI(dir, slog.New(slog.DiscardHandler)))
	_, err := ensureWireguardKey(filepath.Join(dir, wireguardKey))
	must(t, err)
	nft, err := openTable()
	must(t, err)
	must(t, masquerade(t.Context(), nft, pair(t, "10.42.1.0/24"), pair(t, pods4)))
	must(t, netlink.RouteAdd(&netlink.Route{
		Dst: ipNet(netip.MustParsePrefix("10.42.2.0/24")), Gw: net.ParseIP("192.0.2.2"), LinkIndex: l.lan.Index, Protocol: unix.RTPROT_BOOT,
	}))
	for range 2 { // again after a power cut
		must(t, Clean(dir, filepath.Join(dir, "no such folder")))
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("files left: %v, %v", left, err)
	}
	if routes, err := podRoutes(ipv4, netip.MustParsePrefix(pods4)); err != nil || len(routes) > 0 {
		t.Errorf("routes left: %v, %v", routes, err)
	}
	out, err := exec.Command("nft", "list", "ruleset").CombinedOutput()
	if err != nil || strings.Contains(string(out), nftTable) {
		t.Errorf("rules left: %v\n%s", err, out)
	}
}
