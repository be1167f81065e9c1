package pki

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestPrimaryFirst(t *testing.T) {
	a, b, c := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8::1")
	for _, tt := range []struct {
		first netip.Addr
		want  []netip.Addr
	}{
		{a, []netip.Addr{a, b, c}},
		{c, []netip.Addr{c, a, b}},
		{netip.MustParseAddr("203.0.113.1"), []netip.Addr{a, b, c}},
	} {
		got := primaryFirst([]netip.Addr{a, b, c}, tt.first)
		if d := cmp.Diff(tt.want, got, cmp.Comparer(func(x, y netip.Addr) bool { return x == y })); d != "" {
			t.Errorf("primaryFirst(%v): %s", tt.first, d)
		}
	}
}

func TestPodLink(t *testing.T) {
	for name, want := range map[string]bool{"eth0": false, "enp1s0": false, "cni0": true, "veth12ab": true, "wlan0": false} {
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
