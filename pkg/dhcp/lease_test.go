package dhcp

import (
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/rfc1035label"
)

var now = time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)

func ack(t testing.TB, modifiers ...dhcpv4.Modifier) *dhcpv4.DHCPv4 {
	t.Helper()
	all := append([]dhcpv4.Modifier{
		dhcpv4.WithMessageType(dhcpv4.MessageTypeAck),
		dhcpv4.WithYourIP(net.IPv4(192, 0, 2, 7)),
		dhcpv4.WithNetmask(net.CIDRMask(24, 32)),
		dhcpv4.WithServerIP(net.IPv4(192, 0, 2, 1)),
		dhcpv4.WithOption(dhcpv4.OptServerIdentifier(net.IPv4(192, 0, 2, 1))),
		dhcpv4.WithLeaseTime(3600),
	}, modifiers...)
	m, err := dhcpv4.New(all...)
	if err != nil {
		t.Fatal(err)
	}
	// Over the wire, as a client sees it.
	m, err = dhcpv4.FromBytes(m.ToBytes())
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func plain() Lease {
	return Lease{
		Address: netip.MustParsePrefix("192.0.2.7/24"), Server: netip.MustParseAddr("192.0.2.1"), Obtained: now,
		Renew: 30 * time.Minute, Rebind: 52*time.Minute + 30*time.Second, Expire: time.Hour,
	}
}

func TestParse(t *testing.T) {
	router := dhcpv4.WithRouter(net.IPv4(192, 0, 2, 1), net.IPv4(192, 0, 2, 2))
	for _, tt := range []struct {
		name      string
		modifiers []dhcpv4.Modifier
		want      func(l *Lease)
	}{
		{"plain", nil, func(*Lease) {}},
		{"all", []dhcpv4.Modifier{
			router, dhcpv4.WithDNS(net.IPv4(10, 0, 0, 2), net.IPv4(0, 0, 0, 0), net.IPv4bcast),
			dhcpv4.WithOption(dhcpv4.OptNTPServers(net.IPv4(10, 0, 0, 3))),
			dhcpv4.WithGeneric(dhcpv4.OptionInterfaceMTU, []byte{0x05, 0x78}),
			dhcpv4.WithOption(dhcpv4.OptDomainSearch(&rfc1035label.Labels{Labels: []string{"a.example", "b.example"}})),
			dhcpv4.WithOption(dhcpv4.OptDomainName("c.example")),
			dhcpv4.WithOption(dhcpv4.OptRenewTimeValue(10 * time.Second)), dhcpv4.WithOption(dhcpv4.OptRebindingTimeValue(20 * time.Second)),
		}, func(l *Lease) {
			l.Routes = []Route{{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParseAddr("192.0.2.1")}}
			l.DNS, l.NTP = []netip.Addr{netip.MustParseAddr("10.0.0.2")}, []netip.Addr{netip.MustParseAddr("10.0.0.3")}
			l.MTU, l.Search, l.Renew, l.Rebind = 1400, []string{"a.example", "b.example"}, 10*time.Second, 20*time.Second
		}},
		{"option 121 voids the router", []dhcpv4.Modifier{router, dhcpv4.WithOption(dhcpv4.OptClasslessStaticRoute(
			&dhcpv4.Route{Dest: &net.IPNet{IP: net.IPv4(10, 0, 0, 0), Mask: net.CIDRMask(8, 32)}, Router: net.IPv4(192, 0, 2, 3)},
			&dhcpv4.Route{Dest: &net.IPNet{IP: net.IPv4(10, 9, 0, 0), Mask: net.CIDRMask(16, 32)}, Router: net.IPv4zero},
			&dhcpv4.Route{Dest: &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}, Router: net.IPv4(192, 0, 2, 4)},
		))}, func(l *Lease) {
			l.Routes = []Route{
				{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParseAddr("192.0.2.3")},
				{To: netip.MustParsePrefix("10.9.0.0/16")},
				{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParseAddr("192.0.2.4")},
			}
		}},
		{"domain", []dhcpv4.Modifier{dhcpv4.WithOption(dhcpv4.OptDomainName("store.example"))}, func(l *Lease) { l.Search = []string{"store.example"} }},
		{"injected domain", []dhcpv4.Modifier{dhcpv4.WithOption(dhcpv4.OptDomainName("a.example\nnameserver;x 6.6.6.6"))}, func(l *Lease) {
			l.Search = []string{"a.example", "6.6.6.6"}
		}},
		{"tiny MTU", []dhcpv4.Modifier{dhcpv4.WithGeneric(dhcpv4.OptionInterfaceMTU, []byte{0, 68})}, func(*Lease) {}},
		{"no lease time", []dhcpv4.Modifier{dhcpv4.WithLeaseTime(0)}, func(l *Lease) {
			l.Renew, l.Rebind, l.Expire = time.Second, 1750*time.Millisecond, 2*time.Second
		}},
		{"T1 after T2", []dhcpv4.Modifier{
			dhcpv4.WithOption(dhcpv4.OptRenewTimeValue(30 * time.Second)), dhcpv4.WithOption(dhcpv4.OptRebindingTimeValue(20 * time.Second)),
		}, func(*Lease) {}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			want := plain()
			tt.want(&want)
			got, err := parse(ack(t, tt.modifiers...), now)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, *got, cmpopts.IgnoreUnexported(Lease{}), cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestParseRefuses(t *testing.T) {
	for want, m := range map[string]dhcpv4.Modifier{
		"address 0.0.0.0 is none for a host":   dhcpv4.WithYourIP(net.IPv4zero),
		"address 224.0.0.1 is none for a host": dhcpv4.WithYourIP(net.IPv4(224, 0, 0, 1)),
		"address 127.0.0.1 is none for a host": dhcpv4.WithYourIP(net.IPv4(127, 0, 0, 1)),
		"no usable subnet mask":                dhcpv4.WithGeneric(dhcpv4.OptionSubnetMask, []byte{255, 0, 255, 0}),
	} {
		if l, err := parse(ack(t, m), now); err == nil || err.Error() != want || l != nil {
			t.Errorf("parse = %v, %v; want %s", l, err, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(ack(f).ToBytes())
	f.Add(ack(f, dhcpv4.WithOption(dhcpv4.OptDomainName("x")), dhcpv4.WithRouter(net.IPv4(1, 2, 3, 4))).ToBytes())
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := dhcpv4.FromBytes(data)
		if err != nil {
			return
		}
		l, err := parse(m, now)
		if err != nil {
			return
		}
		if !l.Address.IsValid() || l.Renew <= 0 || l.Rebind <= l.Renew || l.Expire <= l.Rebind {
			t.Errorf("lease %+v", l)
		}
		if s := strings.Join(l.Search, " "); strings.ContainsAny(s, "\n\x00#;") {
			t.Errorf("search %q", s)
		}
	})
}
