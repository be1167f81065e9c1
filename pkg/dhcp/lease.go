// Package dhcp keeps a DHCPv4 lease for one interface: it obtains, renews and rebinds it (RFC 2131) and says what the
// server told. It changes nothing on the machine; package network does.
package dhcp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"strings"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// Lease is what a server granted.
type Lease struct {
	Address netip.Prefix `json:"address"`
	Server  netip.Addr   `json:"server"`
	Routes  []Route      `json:"routes,omitempty"`
	DNS     []netip.Addr `json:"dns,omitempty"`
	Search  []string     `json:"search,omitempty"`
	NTP     []netip.Addr `json:"ntp,omitempty"`
	MTU     int          `json:"mtu,omitempty"` // bytes; 0: the server named none
	// Obtained is when the server acknowledged; the three durations (nanoseconds in JSON) count from it.
	Obtained time.Time     `json:"obtained"`
	Renew    time.Duration `json:"renew"`  // T1: ask this server for more time
	Rebind   time.Duration `json:"rebind"` // T2: ask any server
	Expire   time.Duration `json:"expire"` // the address is ours no more

	ack *dhcpv4.DHCPv4
}

// Route is one route of a lease.
type Route struct {
	To  netip.Prefix `json:"to"`
	Via netip.Addr   `json:"via"` // the zero Addr: on the link
}

const (
	// minMTU is the least MTU that is believed: what RFC 791 wants of every host. Smaller values are mistakes.
	minMTU = 576
	// minLease keeps a server's mistake from becoming a flood of renewals.
	minLease = 2 * time.Second
	// forever is RFC 2131's 0xffffffff seconds, 136 years.
	forever = (1<<32 - 1) * time.Second
)

// parse reads an acknowledgement that arrived at now. It believes only what is plausible: a server is a stranger.
func parse(ack *dhcpv4.DHCPv4, now time.Time) (*Lease, error) {
	address, ok := addr4(ack.YourIPAddr)
	if !ok || !address.IsGlobalUnicast() {
		return nil, fmt.Errorf("address %v is none for a host", ack.YourIPAddr)
	}
	ones, size := ack.SubnetMask().Size()
	if size != 32 || ones == 0 {
		return nil, errors.New("no usable subnet mask")
	}
	l := &Lease{Address: netip.PrefixFrom(address, ones), Obtained: now, ack: ack}
	l.Server, _ = addr4(ack.ServerIdentifier())
	l.DNS, l.NTP = hosts(ack.DNS()), hosts(ack.NTPServers())
	l.Search = domains(ack)
	l.Routes = routes(ack)
	if raw := ack.Options.Get(dhcpv4.OptionInterfaceMTU); len(raw) == 2 && binary.BigEndian.Uint16(raw) >= minMTU {
		l.MTU = int(binary.BigEndian.Uint16(raw))
	}
	l.Expire = max(ack.IPAddressLeaseTime(time.Hour), minLease)
	l.Renew, l.Rebind = ack.IPAddressRenewalTime(0), ack.IPAddressRebindingTime(0)
	if l.Renew <= 0 || l.Rebind <= l.Renew || l.Rebind >= l.Expire {
		l.Renew, l.Rebind = l.Expire/2, l.Expire/8*7 // RFC 2131 section 4.4.5
	}
	return l, nil
}

// routes prefers option 121, which makes the router option void (RFC 3442).
func routes(ack *dhcpv4.DHCPv4) []Route {
	var all []Route
	for _, r := range ack.ClasslessStaticRoute() {
		if r == nil || r.Dest == nil {
			continue
		}
		to, ok := addr4(r.Dest.IP)
		ones, size := r.Dest.Mask.Size()
		if !ok || size != 32 {
			continue
		}
		via, _ := addr4(r.Router)
		if via.IsUnspecified() {
			via = netip.Addr{}
		}
		all = append(all, Route{netip.PrefixFrom(to, ones).Masked(), via})
	}
	if len(all) > 0 {
		return all
	}
	routers := hosts(ack.Router())
	if len(routers) == 0 {
		return nil
	}
	return []Route{{netip.PrefixFrom(netip.IPv4Unspecified(), 0), routers[0]}} // the server's preference comes first
}

func addr4(ip net.IP) (netip.Addr, bool) {
	a, ok := netip.AddrFromSlice(ip.To4())
	return a, ok
}

// hosts drops what cannot be another machine.
func hosts(ips []net.IP) []netip.Addr {
	var all []netip.Addr
	for _, ip := range ips {
		if a, ok := addr4(ip); ok && (a.IsGlobalUnicast() || a.IsLinkLocalUnicast()) {
			all = append(all, a)
		}
	}
	return all
}

var domain = regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9_-]{0,62})(\.[A-Za-z0-9_]([A-Za-z0-9_-]{0,62}))*\.?$`)

// domains are option 119's, or else option 15's. What is not a name is dropped: it ends up in resolv.conf.
func domains(ack *dhcpv4.DHCPv4) []string {
	var candidates []string
	if labels := ack.DomainSearch(); labels != nil {
		candidates = labels.Labels
	}
	if len(candidates) == 0 {
		candidates = strings.Fields(strings.TrimRight(ack.DomainName(), "\x00"))
	}
	var all []string
	for _, d := range candidates {
		if len(d) <= 253 && domain.MatchString(d) {
			all = append(all, d)
		}
	}
	return all
}
