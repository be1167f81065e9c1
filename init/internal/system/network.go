package system

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"

	"github.com/cairn-os/cairn/init/internal/guard"
	"github.com/cairn-os/cairn/pkg/network"
	"github.com/cairn-os/cairn/pkg/status"
)

// leaseDir keeps the last DHCP leases for a boot at which no server answers.
const leaseDir = "/var/lib/cairn/network"

// keeper is the running network and how to end it. A nil *keeper is one that was never started.
type keeper struct {
	network *network.Network
	end     func()
}

// addresses are the node's addresses with the links that have them.
func (k *keeper) addresses() []status.Address {
	if k == nil {
		return nil
	}
	links := linkNames()
	var all []status.Address
	for _, p := range k.network.Addresses() {
		all = append(all, status.Address{Link: links[p.Addr()], Prefix: p.String()})
	}
	return all
}

// linkNames maps the machine's addresses to the names of their links.
func linkNames() map[netip.Addr]string {
	names := map[netip.Addr]string{}
	links, err := net.Interfaces()
	if err != nil {
		return names // the addresses stay without a link
	}
	for _, link := range links {
		addrs, err := link.Addrs()
		if err != nil {
			continue
		}
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil {
				names[p.Addr()] = link.Name
			}
		}
	}
	return names
}

func (k *keeper) stop() {
	if k != nil {
		k.end()
	}
}

// startNetwork starts the network, which keeps itself from then on, and waits for the first address. Without one the
// boot goes on after a while: pods that are on the disk start without a network, and it may come later.
func (m *machine) startNetwork(ctx context.Context) error {
	n, err := network.New(m.config.Cairn.Network, network.Options{
		Logger: consoleLogger(m.log.Printf), Hostname: m.hostname, FallbackDNS: m.config.Cairn.DNSNameservers,
		LeaseDir: leaseDir,
	})
	if err != nil {
		return err
	}
	// Not the phase's context: links are kept until shutdown.
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	done := m.background("network", func() error { n.Run(running); return nil })
	k := &keeper{network: n, end: func() { stop(); <-done }}
	m.mu.Lock()
	m.network = k
	m.mu.Unlock()
	waiting, cancel := context.WithTimeout(ctx, networkTimeout)
	defer cancel()
	if err := n.Wait(waiting); err != nil {
		if errors.Is(err, context.DeadlineExceeded) {
			return fmt.Errorf("no network after %v, going on without: %w", networkTimeout, err)
		}
		return err
	}
	return nil
}

// consoleLogger prints the records of a package that logs through slog as lines of the boot.
func consoleLogger(logf guard.Logf) *slog.Logger {
	drop := func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey || a.Key == slog.LevelKey {
			return slog.Attr{}
		}
		return a
	}
	return slog.New(slog.NewTextHandler(lineWriter(logf), &slog.HandlerOptions{ReplaceAttr: drop}))
}

// lineWriter is a Logf that takes what a slog handler writes: one line per call.
type lineWriter guard.Logf

func (w lineWriter) Write(p []byte) (int, error) {
	w("network: %s", trimLine(p))
	return len(p), nil
}

func trimLine(p []byte) []byte {
	if n := len(p); n > 0 && p[n-1] == '\n' {
		return p[:n-1]
	}
	return p
}
