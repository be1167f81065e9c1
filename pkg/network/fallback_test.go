package network

import (
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"github.com/cairn-os/cairn/pkg/config"
	"github.com/cairn-os/cairn/pkg/dhcp"
)

// reboot takes from the interface what a reboot takes.
func reboot(t *testing.T, name string) {
	t.Helper()
	link, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	addrs, err := netlink.AddrList(link, netlink.FAMILY_V4)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		if err := netlink.AddrDel(link, &a); err != nil {
			t.Fatal(err)
		}
	}
	if err := netlink.LinkSetDown(link); err != nil {
		t.Fatal(err)
	}
}

// TestFallback boots a machine once with a DHCP server and then without: it must have its address again, soon, and
// give it up for a new one when a server is there.
func TestFallback(t *testing.T) {
	for _, tt := range []struct {
		name    string
		missing func(f *far, s *server, missing bool)
	}{
		{"no server", func(_ *far, s *server, missing bool) { s.set(func(s *server) { s.silent = missing }) }},
		{"no cable", func(f *far, _ *server, missing bool) { f.plug("eth0", !missing) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFar(t)
			f.cable("eth0", "192.0.2.1/24")
			s := newServer()
			f.serve("eth0", s)
			o := testOptions(t)
			o.FallbackAfter = 500 * time.Millisecond
			first := newNetwork(t, dhcpOn("eth0"), o)
			stop := start(t, first)
			wait(t, first)
			stop()
			reboot(t, "eth0")
			if err := os.Remove(o.ResolvConf); err != nil {
				t.Fatal(err)
			}

			tt.missing(f, s, true)
			n := newNetwork(t, dhcpOn("eth0"), o)
			start(t, n)
			wait(t, n)
			if diff := cmp.Diff([]string{"192.0.2.7/24"}, addresses(t, "eth0")); diff != "" {
				t.Error(diff)
			}
			if diff := cmp.Diff([]string{"0.0.0.0/0 via 192.0.2.1 metric +1000"}, routes4(t, "eth0")); diff != "" {
				t.Error(diff)
			}
			if got := read(t, o.ResolvConf); !strings.HasSuffix(got, "\nnameserver 192.0.2.53\n") {
				t.Errorf("resolv.conf = %q", got)
			}
			if got, want := n.String(), "eth0: 192.0.2.7/24 of an earlier lease"; got != want {
				t.Errorf("String() = %q; want %q", got, want)
			}

			s.set(func(s *server) { s.give = net.IPv4(192, 0, 2, 8) })
			tt.missing(f, s, false)
			eventually(t, "the address of a real lease alone", func() bool { return slices.Equal(addresses(t, "eth0"), []string{"192.0.2.8/24"}) })
			// The kernel has the address before the network says so.
			eventually(t, "the real lease in String()", func() bool { return n.String() == "eth0: 192.0.2.8/24" })
		})
	}
}

// TestFallbackIsOne: of two interfaces without a server one gets its old address, and loses it when the other one gets
// a lease: both may be on one network.
func TestFallbackIsOne(t *testing.T) {
	f := newFar(t)
	f.cable("eth0", "192.0.2.1/24")
	f.cable("eth1", "192.0.2.1/24")
	s := newServer()
	s.silent = true
	f.serve("eth1", s)
	o := testOptions(t)
	o.FallbackAfter = 300 * time.Millisecond
	for i, name := range []string{"eth0", "eth1"} {
		l := leaseOf(t, "192.0.2."+[]string{"10", "11"}[i]+"/24")
		l.Obtained = time.Now().Add(-time.Duration(i) * time.Hour) // eth0 had its lease last
		newNetwork(t, config.Network{}, o).saveLease(&port{name: name, lease: l})
	}
	n := newNetwork(t, config.Network{Interfaces: map[string]config.Interface{"eth0": {DHCP: true}, "eth1": {DHCP: true}}}, o)
	start(t, n)
	wait(t, n)
	if a, b := addresses(t, "eth0"), addresses(t, "eth1"); !slices.Equal(a, []string{"192.0.2.10/24"}) || len(b) != 0 {
		t.Errorf("eth0 has %v and eth1 %v; want the newest lease's address alone", a, b)
	}
	s.set(func(s *server) { s.silent = false })
	eventually(t, "eth1's lease alone", func() bool {
		return len(addresses(t, "eth0")) == 0 && slices.Equal(addresses(t, "eth1"), []string{"192.0.2.7/24"})
	})
}

// TestLeaseEndsWithoutServer: a router that is out for longer than a lease must not take the running machine's address.
func TestLeaseEndsWithoutServer(t *testing.T) {
	f := newFar(t)
	f.cable("eth0", "192.0.2.1/24")
	s := newServer()
	s.lease = 2 * time.Second
	f.serve("eth0", s)
	n := newNetwork(t, dhcpOn("eth0"), testOptions(t))
	start(t, n)
	wait(t, n)
	s.set(func(s *server) { s.silent = true })
	eventually(t, "the end of the lease", func() bool { return n.String() == "eth0: 192.0.2.7/24 of an earlier lease" })
	time.Sleep(500 * time.Millisecond) // both the client and the timer have spoken by now
	if diff := cmp.Diff([]string{"192.0.2.7/24"}, addresses(t, "eth0")); diff != "" {
		t.Error(diff)
	}
	s.set(func(s *server) { s.silent, s.give = false, net.IPv4(192, 0, 2, 8) })
	eventually(t, "the next lease", func() bool { return slices.Equal(addresses(t, "eth0"), []string{"192.0.2.8/24"}) })
}

func leaseOf(t *testing.T, address string) *dhcp.Lease {
	t.Helper()
	var l dhcp.Lease
	if err := l.Address.UnmarshalText([]byte(address)); err != nil {
		t.Fatal(err)
	}
	l.Obtained = time.Now()
	return &l
}

// TestSaveLease: what brings nothing new is not written, for flash wears out.
func TestSaveLease(t *testing.T) {
	o := testOptions(t)
	n := newNetwork(t, config.Network{}, o)
	path := filepath.Join(o.LeaseDir, "eth0.json")
	p := &port{name: "eth0", plan: plan{dhcp: true}, lease: leaseOf(t, "192.0.2.7/24")}
	save := func() os.FileInfo {
		t.Helper()
		n.saveLease(p)
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return info
	}
	first := save()
	p.lease = leaseOf(t, "192.0.2.7/24")
	if !os.SameFile(first, save()) {
		t.Error("a renewal was written")
	}
	p.lease = leaseOf(t, "192.0.2.8/24")
	if os.SameFile(first, save()) {
		t.Error("a new address was not written")
	}
	again := &port{name: "eth0", plan: plan{dhcp: true}}
	if n.loadLease(again); again.kept == nil || again.kept.Address != p.lease.Address {
		t.Errorf("kept %+v; want %v", again.kept, p.lease.Address)
	}
	for _, bad := range []string{"", "{", "{}", `{"address":"::1/128"}`, `{"address":"192.0.2.7/24","routes":[{"to":"","via":""}]}`} {
		if err := os.WriteFile(path, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		p := &port{name: "eth0", plan: plan{dhcp: true}}
		if n.loadLease(p); p.kept != nil {
			t.Errorf("%q was taken for a lease: %+v", bad, p.kept)
		}
	}
}

func TestRecovered(t *testing.T) {
	err := recovered(func() error { panic("a strange packet") })
	if err == nil || !strings.Contains(err.Error(), "a strange packet") {
		t.Errorf("recovered() = %v; want the panic", err)
	}
}
