package pki

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var sameAddr = cmp.Comparer(func(x, y netip.Addr) bool { return x == y })

func addrs(texts ...string) []netip.Addr {
	var all []netip.Addr
	for _, t := range texts {
		all = append(all, netip.MustParseAddr(t))
	}
	return all
}

func up(name string, texts ...string) link {
	l := link{name: name, up: true}
	for _, a := range addrs(texts...) {
		l.addresses = append(l.addresses, address{Addr: a})
	}
	return l
}

func TestChoose(t *testing.T) {
	lo := up("lo", "127.0.0.1", "::1", "203.0.113.9")
	lo.loopback = true
	down := up("eth2", "192.0.2.66")
	down.up = false
	fading := up("eth0", "192.0.2.1")
	fading.addresses = append(fading.addresses, address{addrs("2001:db8::a")[0], true}, address{addrs("2001:db8::b")[0], false})
	old := link{name: "eth0", up: true, addresses: []address{{addrs("2001:db8::a")[0], true}}}
	plain := []link{
		lo, up("eth1", "198.51.100.1", "fe80::1"), up("eth0", "192.0.2.1", "2001:db8::1", "fe80::2"),
		up("cni0", "10.42.0.1"), up("flannel.1", "10.42.0.0"), up("flannel-wg", "10.42.0.0"), up("wg0", "10.9.0.1"), up("veth12ab", "10.1.1.1"), down,
	}
	for _, tt := range []struct {
		name       string
		links      []link
		first      string
		configured []netip.Addr
		want       []netip.Addr
		err        string
	}{
		{"default route", plain, "192.0.2.1", nil, addrs("192.0.2.1", "2001:db8::1", "198.51.100.1"), ""},
		{"no default route", plain, "", nil, addrs("198.51.100.1", "192.0.2.1", "2001:db8::1"), ""},
		{"route by another's address", plain, "203.0.113.1", nil, addrs("198.51.100.1", "192.0.2.1", "2001:db8::1"), ""},
		{"configured", plain, "192.0.2.1", addrs("198.51.100.1"), addrs("198.51.100.1", "192.0.2.1", "2001:db8::1"), ""},
		{"configured for both families", plain, "192.0.2.1", addrs("2001:db8::1", "198.51.100.1"), addrs("2001:db8::1", "198.51.100.1", "192.0.2.1"), ""},
		{"configured on a tunnel", plain, "192.0.2.1", addrs("10.9.0.1"), addrs("10.9.0.1", "192.0.2.1", "2001:db8::1", "198.51.100.1"), ""},
		{"configured on loopback", plain, "192.0.2.1", addrs("203.0.113.9"), addrs("203.0.113.9", "192.0.2.1", "2001:db8::1", "198.51.100.1"), ""},
		{"configured, not there", plain, "192.0.2.1", addrs("192.0.2.77"), nil, "no network interface has the configured node address 192.0.2.77, only [192.0.2.1 2001:db8::1 198.51.100.1]"},
		{"configured, interface down", plain, "192.0.2.1", addrs("192.0.2.66"), nil, "192.0.2.66"},
		{"two of one family", plain, "192.0.2.1", addrs("192.0.2.1", "198.51.100.1"), nil, "at most one of each family"},
		{"fading beside a better one", []link{fading}, "192.0.2.1", nil, addrs("192.0.2.1", "2001:db8::b"), ""},
		{"fading alone", []link{old}, "", nil, addrs("2001:db8::a"), ""},
		{"configured although it fades", []link{fading}, "192.0.2.1", addrs("2001:db8::a"), addrs("2001:db8::a", "192.0.2.1", "2001:db8::b"), ""},
		{"nothing", []link{lo, down, up("eth0", "169.254.3.4", "fe80::1")}, "", nil, nil, ErrNoAddress.Error()},
		{"configured and nothing", []link{lo, down}, "", addrs("192.0.2.66"), nil, "no network interface has the configured node address 192.0.2.66"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var first netip.Addr
			if tt.first != "" {
				first = netip.MustParseAddr(tt.first)
			}
			got, err := choose(tt.links, first, tt.configured)
			if d := cmp.Diff(tt.want, got, sameAddr); d != "" {
				t.Errorf("choose (-want +got): %s", d)
			}
			if (err != nil) != (tt.err != "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Errorf("error = %v; want %q", err, tt.err)
			}
		})
	}
}

func TestMissingErrorMayPass(t *testing.T) {
	_, err := choose(nil, netip.Addr{}, addrs("192.0.2.1"))
	var missing *MissingError
	if !errors.Is(err, ErrNoAddress) || !errors.As(err, &missing) || missing.Want != addrs("192.0.2.1")[0] {
		t.Errorf("error = %v; want one that says 192.0.2.1 and is an ErrNoAddress", err)
	}
	both := []link{up("eth0", "192.0.2.1", "192.0.2.2")}
	if _, err := choose(both, netip.Addr{}, addrs("192.0.2.1", "192.0.2.2")); errors.Is(err, ErrNoAddress) {
		t.Errorf("error = %v; want one that waiting does not mend", err)
	}
}

// TestAddresses asks the kernel.
func TestAddresses(t *testing.T) {
	all, err := Addresses()
	if errors.Is(err, ErrNoAddress) {
		t.Skip("this machine has no address")
	}
	if err != nil {
		t.Fatal(err)
	}
	last := all[len(all)-1]
	got, err := Addresses(last)
	if err != nil || got[0] != last || len(got) != len(all) {
		t.Errorf("Addresses(%v) = %v, %v; want it first, of %v", last, got, err, all)
	}
	if got, err := Addresses(netip.MustParseAddr("203.0.113.254")); !errors.Is(err, ErrNoAddress) {
		t.Errorf("Addresses of another's = %v, %v; want an error", got, err)
	}
}

func TestPrimary(t *testing.T) {
	var none netip.Addr
	four, six := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	for _, tt := range []struct {
		of     []netip.Addr
		v4, v6 netip.Addr
	}{
		{nil, none, none},
		{addrs("192.0.2.1", "192.0.2.2"), four, none},
		{addrs("2001:db8::1", "192.0.2.1", "2001:db8::2"), four, six},
	} {
		if v4, v6 := Primary(tt.of); v4 != tt.v4 || v6 != tt.v6 {
			t.Errorf("Primary(%v) = %v, %v; want %v, %v", tt.of, v4, v6, tt.v4, tt.v6)
		}
	}
}

func TestFadingAddresses(t *testing.T) {
	got := fadingAddresses([]byte(`00000000000000000000000000000001 01 80 10 80       lo
20010db8000000000000000000000001 02 40 00 00     eth0
20010db8000000000000000000000002 02 40 00 01     eth0
20010db8000000000000000000000003 02 40 00 20     eth0
20010db8000000000000000000000004 02 40 00 c8     eth0
20010db8000000000000000000000005 02 40 00 40     eth0
nonsense
`))
	want := map[netip.Addr]bool{}
	for _, a := range addrs("2001:db8::2", "2001:db8::3", "2001:db8::4") {
		want[a] = true
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("fadingAddresses (-want +got): %s", d)
	}
	if got := fadingAddresses(nil); len(got) != 0 {
		t.Errorf("without IPv6: %v; want none", got)
	}
}

func TestPodLink(t *testing.T) {
	for name, want := range map[string]bool{
		"eth0": false, "enp1s0": false, "cni0": true, "veth12ab": true, "wlan0": false, "flannel.1": true, "flannel-wg": true, "wg0": true,
		"kube-ipvs0": true, "wwan0": false,
	} {
		if got := podLink(name); got != want {
			t.Errorf("podLink(%q) = %v; want %v", name, got, want)
		}
	}
}

func TestLost(t *testing.T) {
	a, b := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	for _, tt := range []struct {
		now  []netip.Addr
		want error
	}{
		{[]netip.Addr{a}, nil},
		{[]netip.Addr{b, a}, nil},
		{nil, nil},
		{[]netip.Addr{b}, ErrAddressLost},
	} {
		if got := Lost(a, tt.now); !errors.Is(got, tt.want) {
			t.Errorf("Lost(%v, %v) = %v; want %v", a, tt.now, got, tt.want)
		}
	}
}

func TestNodeAddresses(t *testing.T) {
	addresses := func(all ...string) (out []netip.Addr) {
		for _, a := range all {
			out = append(out, netip.MustParseAddr(a))
		}
		return out
	}
	networks := func(pods ...string) (all []netip.Prefix) {
		for _, p := range pods {
			all = append(all, netip.MustParsePrefix(p))
		}
		return all
	}
	for _, tt := range []struct {
		name    string
		have    []netip.Addr
		pods    []netip.Prefix
		want    []netip.Addr
		problem string
	}{
		{"one family", addresses("10.0.0.7", "fd00::7"), networks("10.42.0.0/16"), addresses("10.0.0.7"), ""},
		{"one family of several networks", addresses("10.0.0.7", "10.0.2.15", "fec0::1"), networks("10.42.0.0/16"), addresses("10.0.0.7"), ""},
		{"both", addresses("fd00::7", "10.0.0.7"), networks("10.42.0.0/16", "fd42::/56"), addresses("10.0.0.7", "fd00::7"), ""},
		{"IPv6 first", addresses("10.0.0.7", "fd00::7"), networks("fd42::/56", "10.42.0.0/16"), addresses("fd00::7", "10.0.0.7"), ""},
		{"a family lacks", addresses("10.0.0.7"), networks("10.42.0.0/16", "fd42::/56"), nil, "no IPv6 address"},
	} {
		got, err := NodeAddresses(tt.have, tt.pods)
		if (err != nil) != (tt.problem != "") || err != nil && !strings.Contains(err.Error(), tt.problem) {
			t.Errorf("%s: NodeAddresses = %v; want %q", tt.name, err, tt.problem)
		}
		if diff := cmp.Diff(tt.want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
			t.Errorf("%s: NodeAddresses (-want +got):\n%s", tt.name, diff)
		}
	}
}
