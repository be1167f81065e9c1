package network

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/cairn-os/cairn/pkg/atomicfile"
	"github.com/cairn-os/cairn/pkg/dhcp"
)

// maxNameservers and maxSearch are what glibc (MAXNS) and the kubelet (32 domains) look at.
const (
	maxNameservers = 3
	maxSearch      = 32
)

// resolvConf is the text of resolv.conf: the configuration's servers, else those of the leases, else the fallback.
func (n *Network) resolvConf(leases []*dhcp.Lease) string {
	servers, search := slices.Clone(n.cfg.Nameservers), slices.Clone(n.cfg.Search)
	for _, l := range leases {
		if len(n.cfg.Nameservers) == 0 {
			for _, a := range l.DNS {
				servers = append(servers, a.String())
			}
		}
		search = append(search, l.Search...)
	}
	if len(servers) == 0 {
		servers = slices.Clone(n.options.FallbackDNS)
	}
	var text strings.Builder
	text.WriteString("# Written by init from the configuration and DHCP; changes here are lost.\n")
	if search = first(search, maxSearch); len(search) > 0 {
		fmt.Fprintf(&text, "search %s\n", strings.Join(search, " "))
	}
	for _, s := range first(servers, maxNameservers) {
		fmt.Fprintf(&text, "nameserver %s\n", s)
	}
	return text.String()
}

// first returns at most limit different values in their order.
func first(values []string, limit int) []string {
	var all []string
	for _, v := range values {
		if len(all) < limit && !slices.Contains(all, v) {
			all = append(all, v)
		}
	}
	return all
}

func (n *Network) writeResolvConf() {
	var leases []*dhcp.Lease
	for _, m := range n.snapshot() {
		if m.lease != nil {
			leases = append(leases, m.lease)
		}
	}
	text := n.resolvConf(leases)
	path := n.options.ResolvConf
	if old, err := os.ReadFile(path); err == nil && string(old) == text {
		return
	}
	if err := atomicfile.Write(path, []byte(text), 0o644); err != nil {
		n.options.Logger.Error("cannot write name servers", "error", err)
	}
}
