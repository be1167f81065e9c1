package podnet

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/ipc"
	"golang.zx2c4.com/wireguard/tun"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// userWireguard makes the devices that the kernel would, by WireGuard's own program in this process: what configures the
// kernel's configures these. They are there before Run, as after a restart of the node's process.
func userWireguard(o Options) error {
	if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, ""); err != nil { // sockets by the names of the devices
		return err
	}
	w := newWireguard(o.StateDir)
	key, err := ensureWireguardKey(w.keyFile)
	if err != nil {
		return err
	}
	for f, name := range w.devices() {
		link, err := tun.CreateTUN(name, device.DefaultMTU)
		if err != nil {
			return err
		}
		d := device.NewDevice(link, conn.NewDefaultBind(), device.NewLogger(device.LogLevelError, name+" "))
		if err := d.IpcSet(fmt.Sprintf("private_key=%s\nlisten_port=%d\n", hex.EncodeToString(key[:]), w.port(family(f)))); err != nil {
			return err
		}
		if err := d.Up(); err != nil {
			return err
		}
		file, err := ipc.UAPIOpen(name)
		if err != nil {
			return err
		}
		socket, err := ipc.UAPIListen(name, file)
		if err != nil {
			return err
		}
		go func() {
			for {
				c, err := socket.Accept()
				if err != nil {
					return
				}
				go d.IpcHandle(c)
			}
		}()
	}
	return nil
}

// TestWireguardPeers sends encrypted packets between devices that were there before. The devices themselves are flannel's
// business and need the kernel's: TestNetwork.
func TestWireguardPeers(t *testing.T) {
	l := newLane(t)
	l.api.start()
	var nodes []*node
	for number := 1; number <= 2; number++ {
		n := l.node(number, wireguardBackend, pods4, pods6)
		n.child.UserWireguard = true
		l.api.add(n.child.Node, shareOf(number, pods4, pods6)...)
		n.start()
		nodes = append(nodes, n)
	}
	for _, n := range nodes {
		n.ready()
	}
	a, b := nodes[0].pod("a"), nodes[1].pod("b")
	for f := range a.addresses {
		a.reaches(b.addresses[f], 1420, a.addresses[f])
		b.reaches(a.addresses[f], 100, b.addresses[f])
		if _, err := a.ask(b.addresses[f], 1421); !errors.Is(err, unix.EMSGSIZE) {
			t.Errorf("a packet larger than 1420: %v; want %v", err, unix.EMSGSIZE)
		}
	}
	for _, n := range nodes {
		if s := n.split(); s != "" {
			t.Errorf("node %s split packets: %s", n.child.Node, s)
		}
	}

	// The second moves, and its key is another: a machine that was wiped.
	nodes[1].stop()
	nodes[1].readdress(22)
	nodes[1].child.StateDir += "-wiped"
	nodes[1].start()
	for f := range a.addresses {
		a.reaches(b.addresses[f], 100, a.addresses[f])
	}
}

// TestWireguardDevices takes the kernel's devices through a restart of the node's process, their loss, and a change of
// back-end.
func TestWireguardDevices(t *testing.T) {
	l := newLane(t)
	needWireguard(t)
	l.api.start()
	var nodes []*node
	for number := 1; number <= 2; number++ {
		n := l.node(number, wireguardBackend, pods4)
		l.api.add(n.child.Node, shareOf(number, pods4)...)
		n.start()
		nodes = append(nodes, n)
	}
	nodes[0].ready()
	nodes[1].ready()
	first := nodes[0]
	a, b := first.pod("a"), nodes[1].pod("b")
	a.reaches(b.addresses[ipv4], 1440, a.addresses[ipv4])
	lost := first.loss(func() {
		first.stop()
		first.start()
		time.Sleep(5 * time.Second) // it says nothing when all is right
	}, a, b.addresses[ipv4])
	if lost > 0 {
		t.Errorf("%d packets lost while the process started anew", lost)
	}
	must(t, first.do(func() error { return removeLinks([]string{"flannel-wg"}) }))
	a.reaches(b.addresses[ipv4], 100, a.addresses[ipv4])
	b.reaches(a.addresses[ipv4], 100, b.addresses[ipv4])

	for _, n := range nodes {
		n.stop()
		n.child.Settings.Flannel = vxlanBackend
		n.start()
	}
	a.reaches(b.addresses[ipv4], 100, a.addresses[ipv4])
	first.await("the end of flannel-wg", func() bool {
		return first.do(func() error {
			_, err := netlink.LinkByName("flannel-wg")
			if errors.As(err, new(netlink.LinkNotFoundError)) {
				return nil
			}
			return errors.New("it is there")
		}) == nil
	})
}

func TestWireguardPlan(t *testing.T) {
	key := func(n byte) wgtypes.Key { return wgtypes.Key{n} }
	at := netip.MustParseAddrPort
	share := netip.MustParsePrefix("10.42.2.0/24")
	alive := keepalive * time.Second
	is := func(n byte, endpoint, allowed string) wgtypes.Peer {
		_, ipnet, err := net.ParseCIDR(allowed)
		if err != nil {
			t.Fatal(err)
		}
		return wgtypes.Peer{
			PublicKey: key(n), Endpoint: net.UDPAddrFromAddrPort(at(endpoint)), PersistentKeepaliveInterval: alive, AllowedIPs: []net.IPNet{*ipnet},
		}
	}
	want := []wireguardPeer{{key(2), at("192.0.2.2:51820"), share}}
	for name, c := range map[string]struct {
		said string // what the node said last, as far as we know
		have []wgtypes.Peer
		want string
	}{
		"new":           {"", nil, "set 2 192.0.2.2:51820 10.42.2.0/24"},
		"right":         {"192.0.2.2:51820", []wgtypes.Peer{is(2, "192.0.2.2:51820", "10.42.2.0/24")}, ""},
		"after restart": {"", []wgtypes.Peer{is(2, "192.0.2.2:51820", "10.42.2.0/24")}, ""},
		"behind NAT":    {"192.0.2.2:51820", []wgtypes.Peer{is(2, "198.51.100.1:4711", "10.42.2.0/24")}, ""},
		"moved":         {"192.0.2.9:51820", []wgtypes.Peer{is(2, "192.0.2.9:51820", "10.42.2.0/24")}, "set 2 192.0.2.2:51820 10.42.2.0/24"},
		"other share":   {"192.0.2.2:51820", []wgtypes.Peer{is(2, "192.0.2.2:51820", "10.42.9.0/24")}, "set 2 10.42.2.0/24"},
		"gone": {"192.0.2.2:51820", []wgtypes.Peer{is(2, "192.0.2.2:51820", "10.42.2.0/24"), is(3, "192.0.2.3:51820", "10.42.3.0/24")},
			"remove 3"},
	} {
		w := newWireguard(t.TempDir())
		if c.said != "" {
			w.endpoints["wg "+key(2).String()] = at(c.said)
		}
		var got []string
		for _, change := range w.plan("wg", c.have, want) {
			var words []string
			if change.Remove {
				words = append(words, "remove", fmt.Sprint(change.PublicKey[0]))
			} else {
				words = append(words, "set", fmt.Sprint(change.PublicKey[0]))
				if change.Endpoint != nil {
					words = append(words, change.Endpoint.String())
				}
				for _, a := range change.AllowedIPs {
					words = append(words, a.String())
				}
			}
			got = append(got, strings.Join(words, " "))
		}
		if diff := cmp.Diff(c.want, strings.Join(got, "; ")); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
		if again := w.plan("wg", []wgtypes.Peer{is(2, "192.0.2.2:51820", "10.42.2.0/24")}, want); len(again) > 0 {
			t.Errorf("%s: planned again after it was done: %v", name, again)
		}
	}
}
