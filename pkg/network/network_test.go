package network

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/cairn-os/cairn/pkg/config"
	"github.com/cairn-os/cairn/pkg/dhcp"
)

func dhcpOn(name string) config.Network {
	return config.Network{Interfaces: map[string]config.Interface{name: {DHCP: true}}}
}

func newServer() *server {
	return &server{
		me: net.IPv4(192, 0, 2, 1), give: net.IPv4(192, 0, 2, 7), lease: time.Hour,
		extra: []dhcpv4.Modifier{
			dhcpv4.WithRouter(net.IPv4(192, 0, 2, 1)), dhcpv4.WithDNS(net.IPv4(192, 0, 2, 53)),
			dhcpv4.WithOption(dhcpv4.OptDomainName("store.example")), dhcpv4.WithOption(dhcpv4.OptNTPServers(net.IPv4(192, 0, 2, 123))),
			dhcpv4.WithGeneric(dhcpv4.OptionInterfaceMTU, []byte{0x05, 0x78}),
		},
	}
}

func newNetwork(t *testing.T, cfg config.Network, o Options) *Network {
	t.Helper()
	n, err := New(cfg, o)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func wait(t *testing.T, n *Network) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := n.Wait(ctx); err != nil {
		t.Fatal(err)
	}
}

func TestDHCP(t *testing.T) {
	f := newFar(t)
	f.cable("eth0", "192.0.2.1/24")
	f.cable("cni0", "198.51.100.1/24") // somebody else's
	s := newServer()
	f.serve("eth0", s)
	o := testOptions(t)
	n := newNetwork(t, dhcpOn("eth0"), o)
	start(t, n)
	wait(t, n)

	if diff := cmp.Diff([]string{"192.0.2.7/24"}, addresses(t, "eth0")); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"0.0.0.0/0 via 192.0.2.1 metric +1000"}, routes4(t, "eth0")); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"192.0.2.7/24"}, prefixes(n.Addresses())); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]netip.Addr{netip.MustParseAddr("192.0.2.123")}, n.NTPServers(), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
	if got, want := read(t, o.ResolvConf), "search store.example\nnameserver 192.0.2.53\n"; !strings.HasSuffix(got, want) {
		t.Errorf("resolv.conf = %q; want it to end in %q", got, want)
	}
	if got := read(t, filepath.Join(o.LeaseDir, "eth0.json")); !strings.Contains(got, `"address": "192.0.2.7/24"`) {
		t.Errorf("saved lease: %s", got)
	}
	if diff := cmp.Diff([]string{"DISCOVER till-07", "REQUEST 0.0.0.0"}, s.log()); diff != "" {
		t.Error(diff)
	}
	link, err := netlink.LinkByName("eth0")
	if err != nil || link.Attrs().MTU != 1400 {
		t.Errorf("MTU %v, %v; want 1400", link, err)
	}
	other, err := netlink.LinkByName("cni0")
	if err != nil || other.Attrs().RawFlags&unix.IFF_UP != 0 {
		t.Errorf("cni0 was touched: %v, %v", other, err)
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil || lo.Attrs().RawFlags&unix.IFF_UP == 0 {
		t.Errorf("loopback: %v, %v; want it up", lo, err)
	}
	if got := n.String(); got != "eth0: 192.0.2.7/24" {
		t.Errorf("String = %s", got)
	}
}

// TestRenew lets a short lease be renewed by its server, refused, and given out anew with another address.
func TestRenew(t *testing.T) {
	f := newFar(t)
	f.cable("eth0", "192.0.2.1/24")
	s := newServer()
	s.lease = 4 * time.Second
	f.serve("eth0", s)
	n := newNetwork(t, dhcpOn("eth0"), testOptions(t))
	start(t, n)
	wait(t, n)
	eventually(t, "two renewals", func() bool {
		return slices.Equal(s.log(), []string{"DISCOVER till-07", "REQUEST 0.0.0.0", "REQUEST 192.0.2.7", "REQUEST 192.0.2.7"})
	})
	if diff := cmp.Diff([]string{"192.0.2.7/24"}, addresses(t, "eth0")); diff != "" {
		t.Error(diff)
	}
	s.set(func(s *server) { s.nak = true })
	eventually(t, "address withdrawn after a refusal", func() bool { return len(addresses(t, "eth0")) == 0 })
	if got := routes4(t, "eth0"); len(got) != 0 {
		t.Errorf("routes without a lease: %v", got)
	}
	s.set(func(s *server) { s.nak, s.give = false, net.IPv4(192, 0, 2, 8) })
	eventually(t, "the new address", func() bool { return slices.Equal(addresses(t, "eth0"), []string{"192.0.2.8/24"}) })
}

// TestServerGone wants the address given up at the end of the lease, not earlier, where no lease is kept.
func TestServerGone(t *testing.T) {
	f := newFar(t)
	f.cable("eth0", "192.0.2.1/24")
	s := newServer()
	s.lease = 3 * time.Second
	f.serve("eth0", s)
	o := testOptions(t)
	o.LeaseDir = ""
	n := newNetwork(t, dhcpOn("eth0"), o)
	start(t, n)
	wait(t, n)
	s.set(func(s *server) { s.silent = true })
	began := time.Now()
	eventually(t, "address withdrawn at expiry", func() bool { return len(addresses(t, "eth0")) == 0 })
	if took := time.Since(began); took < 1500*time.Millisecond {
		t.Errorf("given up after %v; want the lease's 3 s", took)
	}
	eventually(t, "fallback name server", func() bool { return strings.HasSuffix(read(t, o.ResolvConf), "\nnameserver 203.0.113.53\n") })
	s.set(func(s *server) { s.silent = false })
	eventually(t, "a lease again", func() bool { return len(addresses(t, "eth0")) == 1 })
}

// TestRebind replaces the server by another one: the lease goes on with the same address.
func TestRebind(t *testing.T) {
	f := newFar(t)
	f.cable("eth0", "192.0.2.1/24")
	s := newServer()
	s.lease = 4 * time.Second
	f.serve("eth0", s)
	o := testOptions(t)
	n := newNetwork(t, dhcpOn("eth0"), o)
	start(t, n)
	wait(t, n)
	s.set(func(s *server) { s.me = net.IPv4(192, 0, 2, 2) })
	lease := filepath.Join(o.LeaseDir, "eth0.json")
	eventually(t, "the lease of the new server", func() bool { return strings.Contains(read(t, lease), `"server": "192.0.2.2"`) })
	if diff := cmp.Diff([]string{"192.0.2.7/24"}, addresses(t, "eth0")); diff != "" {
		t.Error(diff)
	}
	if got := s.log(); slices.Contains(got[1:], "DISCOVER till-07") {
		t.Errorf("the server saw %v; want no second discovery", got)
	}
}

// TestCarrier pulls the cable: the address stays, and at the other end of the new cable may be another network.
func TestCarrier(t *testing.T) {
	f := newFar(t)
	f.cable("eth0", "192.0.2.1/24")
	s := newServer()
	f.serve("eth0", s)
	n := newNetwork(t, dhcpOn("eth0"), testOptions(t))
	start(t, n)
	wait(t, n)
	f.plug("eth0", false)
	eventually(t, "carrier lost", func() bool { return n.String() == "eth0: no carrier" })
	if diff := cmp.Diff([]string{"192.0.2.7/24"}, addresses(t, "eth0")); diff != "" {
		t.Error(diff)
	}
	s.set(func(s *server) {
		s.give, s.extra = net.IPv4(192, 0, 2, 9), []dhcpv4.Modifier{dhcpv4.WithRouter(net.IPv4(192, 0, 2, 2))}
	})
	f.plug("eth0", true)
	eventually(t, "the new network's address", func() bool { return slices.Equal(addresses(t, "eth0"), []string{"192.0.2.9/24"}) })
	if diff := cmp.Diff([]string{"0.0.0.0/0 via 192.0.2.2 metric +1000"}, routes4(t, "eth0")); diff != "" {
		t.Error(diff)
	}
}

// TestHotplug plugs a card in after the start and out again, and sets the interface down behind our back.
func TestHotplug(t *testing.T) {
	f := newFar(t)
	s := newServer()
	n := newNetwork(t, config.Network{Interfaces: map[string]config.Interface{"eth0": {DHCP: true}, "eth1": {Addresses: []string{"198.51.100.7/24"}, Gateway: "198.51.100.1"}}}, testOptions(t))
	start(t, n)
	f.cable("eth0", "192.0.2.1/24")
	f.serve("eth0", s)
	wait(t, n)
	f.cable("eth1", "198.51.100.1/24")
	static := []string{"0.0.0.0/0 via 198.51.100.1 metric +100"}
	eventually(t, "static route", func() bool { return slices.Equal(routes4(t, "eth1"), static) })
	link, err := netlink.LinkByName("eth1")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetDown(link); err != nil {
		t.Fatal(err)
	}
	eventually(t, "static route after down", func() bool { return slices.Equal(routes4(t, "eth1"), static) })
	if err := netlink.LinkDel(link); err != nil {
		t.Fatal(err)
	}
	eventually(t, "eth1 forgotten", func() bool { return n.String() == "eth0: 192.0.2.7/24" })
}

func TestStatic(t *testing.T) {
	f := newFar(t)
	f.cable("eth0", "192.0.2.1/24", "192.0.2.2/24")
	link, err := netlink.LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	o := testOptions(t)
	cfg := config.Network{
		Nameservers: []string{"192.0.2.53", "192.0.2.53"}, Search: []string{"a.example"},
		Interfaces: map[string]config.Interface{"eth0": {
			Addresses: []string{"192.0.2.7/24", "2001:db8::7/64"}, Gateway: "192.0.2.1", MTU: 1300,
			Routes: []config.Route{{To: "10.0.0.0/8", Via: "192.0.2.2", Metric: 5 + link.Attrs().Index}, {To: "2001:db8:1::/48", Via: "2001:db8::1"}},
		}},
	}
	check := func(n *Network) {
		t.Helper()
		wait(t, n)
		if diff := cmp.Diff([]string{"192.0.2.7/24"}, addresses(t, "eth0")); diff != "" {
			t.Error(diff)
		}
		want := []string{"0.0.0.0/0 via 192.0.2.1 metric +100", "10.0.0.0/8 via 192.0.2.2 metric +5"}
		if diff := cmp.Diff(want, routes4(t, "eth0")); diff != "" {
			t.Error(diff)
		}
		eventually(t, "IPv6 address past duplicate detection", func() bool {
			return slices.Equal(prefixes(n.Addresses()), []string{"192.0.2.7/24", "2001:db8::7/64"})
		})
		if link, err := netlink.LinkByName("eth0"); err != nil || link.Attrs().MTU != 1300 {
			t.Errorf("MTU %v, %v; want 1300", link, err)
		}
		if got, want := read(t, o.ResolvConf), "\nsearch a.example\nnameserver 192.0.2.53\n"; !strings.HasSuffix(got, want) {
			t.Errorf("resolv.conf = %q; want it to end in %q", got, want)
		}
	}
	first := newNetwork(t, cfg, o)
	stop := start(t, first)
	check(first)
	stop()
	// Again over what is there already.
	second := newNetwork(t, cfg, o)
	start(t, second)
	check(second)
}

func TestWaitSaysWhy(t *testing.T) {
	f := newFar(t)
	f.cable("eth0")
	n := newNetwork(t, dhcpOn("eth0"), testOptions(t))
	start(t, n)
	eventually(t, "waiting", func() bool { return n.String() == "eth0: waiting for DHCP" })
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := n.Wait(ctx)
	if want := "no network yet (eth0: waiting for DHCP): context canceled"; err == nil || err.Error() != want || !errors.Is(err, context.Canceled) {
		t.Errorf("Wait = %v; want %s", err, want)
	}
}

// TestGatewayOutside is what clouds hand out: a /32 address whose gateway is reached through a route on the link.
func TestGatewayOutside(t *testing.T) {
	f := newFar(t)
	f.cable("eth0", "10.0.0.1/32")
	s := newServer()
	s.extra = []dhcpv4.Modifier{
		dhcpv4.WithNetmask(net.CIDRMask(32, 32)),
		dhcpv4.WithOption(dhcpv4.OptClasslessStaticRoute(
			&dhcpv4.Route{Dest: &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}, Router: net.IPv4(10, 0, 0, 1)},
			&dhcpv4.Route{Dest: &net.IPNet{IP: net.IPv4(10, 0, 0, 1), Mask: net.CIDRMask(32, 32)}, Router: net.IPv4zero},
		)),
	}
	f.serve("eth0", s)
	n := newNetwork(t, dhcpOn("eth0"), testOptions(t))
	start(t, n)
	wait(t, n)
	want := []string{"0.0.0.0/0 via 10.0.0.1 metric +1000", "10.0.0.1/32 via <nil> metric +1000"}
	if diff := cmp.Diff(want, routes4(t, "eth0")); diff != "" {
		t.Error(diff)
	}
}

func TestPlanFor(t *testing.T) {
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 1}
	card := func(name string, change func(*netlink.LinkAttrs)) netlink.Link {
		a := netlink.LinkAttrs{Name: name, EncapType: "ether", HardwareAddr: mac}
		if change != nil {
			change(&a)
		}
		return &netlink.Device{LinkAttrs: a}
	}
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0", EncapType: "ether", HardwareAddr: mac}}
	lo := card("lo", func(a *netlink.LinkAttrs) {
		a.Flags |= net.FlagLoopback
		a.RawFlags |= unix.IFF_LOOPBACK
		a.EncapType = "loopback"
	})
	byName := map[string]config.Interface{"eth0": {DHCP: true}}
	byMAC := map[string]config.Interface{"uplink": {DHCP: true, MAC: "02:00:00:00:00:01"}}
	for _, tt := range []struct {
		name       string
		interfaces map[string]config.Interface
		link       netlink.Link
		want       bool
	}{
		{"every card by default", nil, card("enp1s0", nil), true},
		{"no veth by default", nil, veth, false},
		{"no bridge port by default", nil, card("enp1s0", func(a *netlink.LinkAttrs) { a.MasterIndex = 3 }), false},
		{"no other encapsulation", nil, card("can0", func(a *netlink.LinkAttrs) { a.EncapType = "can" }), false},
		{"no loopback", map[string]config.Interface{"lo": {DHCP: true}}, lo, false},
		{"by name", byName, card("eth0", nil), true},
		{"veth by name", byName, veth, true},
		{"others unnamed", byName, card("eth1", nil), false},
		{"by MAC", byMAC, card("eth7", nil), true},
		{"by permanent MAC", byMAC, card("eth7", func(a *netlink.LinkAttrs) { a.HardwareAddr, a.PermHWAddr = nil, mac }), true},
		{"other permanent MAC", byMAC, card("eth7", func(a *netlink.LinkAttrs) { a.PermHWAddr = net.HardwareAddr{2, 0, 0, 0, 0, 2} }), false},
		{"the name of a MAC's entry", byMAC, card("uplink", func(a *netlink.LinkAttrs) { a.HardwareAddr = nil }), false},
		{"VLAN with a card's MAC", byMAC, &netlink.Vlan{LinkAttrs: netlink.LinkAttrs{Name: "v7", EncapType: "ether", HardwareAddr: mac}}, false},
	} {
		n := newNetwork(t, config.Network{Interfaces: tt.interfaces}, Options{})
		if p, got := n.planFor(tt.link); got != tt.want || got && !p.dhcp {
			t.Errorf("%s: planFor = %v, %v; want %v", tt.name, p, got, tt.want)
		}
	}
}

func TestResolvConf(t *testing.T) {
	lease := func(search string, dns ...string) *dhcp.Lease {
		l := &dhcp.Lease{Search: []string{search}}
		for _, d := range dns {
			l.DNS = append(l.DNS, netip.MustParseAddr(d))
		}
		return l
	}
	for _, tt := range []struct {
		name   string
		cfg    config.Network
		leases []*dhcp.Lease
		want   string
	}{
		{"nothing", config.Network{}, nil, "nameserver 9.9.9.9\n"},
		{"leases", config.Network{}, []*dhcp.Lease{lease("a", "1.0.0.1", "1.0.0.2"), lease("b", "1.0.0.2", "1.0.0.3", "1.0.0.4")},
			"search a b\nnameserver 1.0.0.1\nnameserver 1.0.0.2\nnameserver 1.0.0.3\n"},
		{"lease without servers", config.Network{}, []*dhcp.Lease{lease("a")}, "search a\nnameserver 9.9.9.9\n"},
		{"configuration", config.Network{Nameservers: []string{"2.0.0.1"}, Search: []string{"c"}}, []*dhcp.Lease{lease("a", "1.0.0.1")},
			"search c a\nnameserver 2.0.0.1\n"},
	} {
		n := newNetwork(t, tt.cfg, Options{FallbackDNS: []string{"9.9.9.9"}})
		_, got, _ := strings.Cut(n.resolvConf(tt.leases), "\n")
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s: %s", tt.name, diff)
		}
	}
}

func TestWireless(t *testing.T) {
	sys := t.TempDir()
	if err := os.MkdirAll(filepath.Join(sys, "wlan0/phy80211"), 0o755); err != nil {
		t.Fatal(err)
	}
	if wireless(sys, "eth0") || !wireless(sys, "wlan0") {
		t.Error("wireless does not tell wlan0 from eth0")
	}
}
