package main

import (
	"encoding/json"
	"net"
	"os"
	"slices"

	"github.com/cairn-os/cairn/pkg/membership"
)

// candidates are the addresses at which members of the store of m's cluster may be: those that it joined by, and the
// store's port on every server that the machine has heard of since, its own addresses left out. Whoever answers there
// has to show a certificate of the store's authority.
func (f files) candidates(m *membership.Membership) []string {
	all := slices.Clone(m.StorePeers)
	for _, server := range slices.Concat(m.Servers, []string{f.server}, f.balanced()) {
		if host, _, err := net.SplitHostPort(server); err == nil && host != "" {
			all = append(all, net.JoinHostPort(host, peerPort))
		}
	}
	return others(all, f.own())
}

// others are the addresses without those of this machine and without repetitions, in their order.
func others(all, own []string) []string {
	var kept []string
	for _, address := range all {
		host, port, err := net.SplitHostPort(address)
		if err != nil || port == peerPort && slices.Contains(own, host) || slices.Contains(kept, address) {
			continue
		}
		kept = append(kept, address)
	}
	return kept
}

// ownHosts are the addresses of the machine's interfaces.
func ownHosts() []string {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil // Then the store refuses to be called by itself.
	}
	var hosts []string
	for _, a := range all {
		if ip, ok := a.(*net.IPNet); ok {
			hosts = append(hosts, ip.IP.String())
		}
	}
	return hosts
}

// balanced are the servers in the list that the node keeps of them (pkg/balancer). It is the newest there is, and another
// process's: one that is missing or damaged is nobody's trouble here.
func (f files) balanced() []string {
	data, err := os.ReadFile(f.servers())
	if err != nil {
		return nil
	}
	var list struct {
		Servers []string `json:"servers"`
	}
	if err := json.Unmarshal(data, &list); err != nil {
		return nil
	}
	return list.Servers
}
