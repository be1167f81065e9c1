package pki

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
)

// link is a network interface and what it has.
type link struct {
	name      string
	up        bool
	loopback  bool
	addresses []address
}

// address is one of a link's. A fading one is to be used for nothing new: the network withdrew it, it changes every day
// for privacy, or another machine has it.
type address struct {
	netip.Addr
	fading bool
}

func (l link) has(a netip.Addr) bool {
	return l.up && slices.ContainsFunc(l.addresses, func(b address) bool { return b.Addr == a })
}

// podLink reports whether the interface is one that the pod network makes, or a tunnel: what is behind a tunnel may reach
// the machine, but not everybody may. An operator who wants a tunnel's address to be the node's names it.
func podLink(name string) bool {
	for _, prefix := range []string{"cni", "veth", "flannel", "kube-", "wg"} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}

// readLinks asks the kernel.
func readLinks() ([]link, error) {
	interfaces, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	// Without IPv6 the file lacks and nothing fades.
	data, _ := os.ReadFile("/proc/net/if_inet6")
	fading := fadingAddresses(data)
	var links []link
	for _, i := range interfaces {
		l := link{name: i.Name, up: i.Flags&net.FlagUp != 0, loopback: i.Flags&net.FlagLoopback != 0}
		addrs, err := i.Addrs()
		if err != nil {
			return nil, fmt.Errorf("of %s: %w", i.Name, err)
		}
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil {
				ip := p.Addr().Unmap()
				l.addresses = append(l.addresses, address{ip, fading[ip]})
			}
		}
		links = append(links, l)
	}
	return links, nil
}

// Flags of addresses in linux/if_addr.h.
const (
	flagTemporary  = 0x01
	flagDADFailed  = 0x08
	flagDeprecated = 0x20
)

// fadingAddresses returns the fading addresses in the text of /proc/net/if_inet6, whose lines are: address, index, prefix
// length, scope and flags in hexadecimal, and the interface's name.
func fadingAddresses(text []byte) map[netip.Addr]bool {
	all := make(map[netip.Addr]bool)
	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) != 6 {
			continue
		}
		raw, err := hex.DecodeString(fields[0])
		if err != nil {
			continue
		}
		a, ok := netip.AddrFromSlice(raw)
		flags, err := strconv.ParseUint(fields[4], 16, 32)
		if ok && err == nil && flags&(flagTemporary|flagDADFailed|flagDeprecated) != 0 {
			all[a] = true
		}
	}
	return all
}
