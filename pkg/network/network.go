// Package network keeps the machine's interfaces, addresses, routes and resolv.conf as its configuration says, through
// netlink and DHCP.
//
// It manages the interfaces that the configuration names, or every wired one when it names none, and touches no other:
// the links of Kubernetes are not its business. IPv6 autoconfiguration is left to the kernel.
package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/cairn-os/cairn/pkg/config"
	"github.com/cairn-os/cairn/pkg/dhcp"
)

// Options are what the configuration of the network itself does not say.
type Options struct {
	Logger *slog.Logger
	// Hostname is told to DHCP servers.
	Hostname string
	// FallbackDNS are used where neither the configuration nor DHCP names a server.
	FallbackDNS []string
	// ResolvConf is the file to write; "": /etc/resolv.conf.
	ResolvConf string
	// LeaseDir holds <interface>.json for diagnosis; "": nothing is written.
	LeaseDir string
}

// Network is the machine's network. One goroutine, that of Run, owns the ports; the rest is guarded by mu.
type Network struct {
	cfg     config.Network
	options Options
	plans   []plan
	ports   map[int]*port // by link index; owned by Run
	leases  chan leaseEvent
	clients sync.WaitGroup

	isReady bool          // owned by Run
	ready   chan struct{} // closed when the machine can be reached

	mu      sync.Mutex
	managed []managed // what the ports are, for other goroutines
}

// managed is what other goroutines may know of a port.
type managed struct {
	index       int
	name, state string
	lease       *dhcp.Lease
}

// leaseEvent tells that session's client of a port got, renewed or lost (nil) its lease.
type leaseEvent struct {
	index   int
	session int
	lease   *dhcp.Lease
	expired bool // from the port's timer instead of its client
}

// New prepares the network of cfg; Run brings it up.
func New(cfg config.Network, o Options) (*Network, error) {
	if o.ResolvConf == "" {
		o.ResolvConf = "/etc/resolv.conf"
	}
	plans, err := newPlans(cfg.Interfaces)
	if err != nil {
		return nil, err
	}
	return &Network{
		cfg: cfg, options: o, plans: plans, ports: map[int]*port{},
		leases: make(chan leaseEvent), ready: make(chan struct{}),
	}, nil
}

// Run keeps the network until ctx ends, and then leaves all addresses and routes in place. It returns an error only
// when the kernel cannot be asked at all.
func (n *Network) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer n.clients.Wait()
	defer cancel()
	if err := loopbackUp(); err != nil {
		return err
	}
	n.writeResolvConf()
	for {
		if err := n.watch(ctx); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(time.Second): // events were lost: start over, but not in a tight loop
			n.options.Logger.Warn("lost the kernel's network events; asking again")
		}
	}
}

// watch follows the kernel until ctx ends or events are lost.
func (n *Network) watch(ctx context.Context) error {
	done := make(chan struct{})
	links, addrs, routes := make(chan netlink.LinkUpdate, 64), make(chan netlink.AddrUpdate, 64), make(chan netlink.RouteUpdate, 64)
	const buffer = 1 << 20 // Kubernetes makes and removes links in bursts
	err := errors.Join(
		netlink.AddrSubscribeWithOptions(addrs, done, netlink.AddrSubscribeOptions{ReceiveBufferSize: buffer}),
		netlink.RouteSubscribeWithOptions(routes, done, netlink.RouteSubscribeOptions{ReceiveBufferSize: buffer}),
		netlink.LinkSubscribeWithOptions(links, done, netlink.LinkSubscribeOptions{ReceiveBufferSize: buffer, ListExisting: true}),
	)
	defer func() {
		close(done)
		// The library's goroutines may hang in a send; each closes its channel when it ends.
		go drain(links)
		go drain(addrs)
		go drain(routes)
	}()
	if err != nil {
		return fmt.Errorf("subscribe to network events: %w", err)
	}
	n.forgetGone()
	for {
		ok := true
		select {
		case <-ctx.Done():
			return nil
		case update, open := <-links:
			if ok = open; ok {
				n.linkChanged(ctx, update)
			}
		case _, ok = <-addrs:
			n.checkReady()
		case _, ok = <-routes:
			n.checkReady()
		case event := <-n.leases:
			n.leaseChanged(ctx, event)
		}
		if !ok {
			return nil
		}
	}
}

func drain[T any](c <-chan T) {
	for range c {
	}
}

// forgetGone drops the ports whose links went away while nobody listened.
func (n *Network) forgetGone() {
	for index, p := range n.ports {
		if _, err := netlink.LinkByIndex(index); errors.As(err, &netlink.LinkNotFoundError{}) {
			n.drop(p)
		}
	}
}

func (n *Network) drop(p *port) {
	p.stop()
	delete(n.ports, p.index)
	n.forgetLease(p)
	n.publish()
	n.writeResolvConf()
	n.options.Logger.Info("interface is gone", "interface", p.name)
}

func (n *Network) linkChanged(ctx context.Context, update netlink.LinkUpdate) {
	if update.IfInfomsg.Family != unix.AF_UNSPEC {
		return // a bridge speaks of its ports
	}
	attrs := update.Link.Attrs()
	p := n.ports[attrs.Index]
	if update.Header.Type == unix.RTM_DELLINK {
		if p != nil {
			n.drop(p)
		}
		return
	}
	if p == nil {
		plan, ok := n.planFor(update.Link)
		if !ok {
			return
		}
		p = &port{index: attrs.Index, name: attrs.Name, plan: plan}
		n.ports[p.index] = p
		n.options.Logger.Info("managing interface", "interface", p.name, "plan", plan.String())
	}
	n.linkState(ctx, p, attrs)
	n.publish()
	n.checkReady()
}

// linkState brings p up and starts or stops what depends on its carrier.
func (n *Network) linkState(ctx context.Context, p *port, attrs *netlink.LinkAttrs) {
	up := attrs.RawFlags&unix.IFF_UP != 0
	if !up {
		p.configured = false // the kernel drops routes with the link
		if err := bringUp(p); errors.Is(err, unix.ENODEV) {
			return // pulled out; the kernel's word on it is on its way
		} else if err != nil {
			n.options.Logger.Error("cannot bring up interface", "interface", p.name, "error", err)
			return
		}
	}
	if !p.configured {
		if err := p.applyStatic(); err != nil {
			n.options.Logger.Error("cannot configure interface", "interface", p.name, "error", err)
		}
		p.configured = true
		if p.lease != nil {
			n.apply(p, nil, p.lease)
		}
	}
	// IFF_RUNNING lags behind IFF_LOWER_UP until packets really go out; without it the first question is lost, and with it
	// a second of the boot.
	const both = unix.IFF_LOWER_UP | unix.IFF_RUNNING
	carrier := up && attrs.RawFlags&both == both
	if carrier == p.carrier {
		return
	}
	p.carrier = carrier
	n.options.Logger.Info("carrier", "interface", p.name, "present", carrier)
	switch {
	case !p.plan.dhcp:
	case carrier:
		n.startClient(ctx, p)
	default:
		p.stop() // the lease stays: a cable that is out for a moment must not cost the address
	}
}

// startClient asks for a lease anew: behind a cable that was plugged in there may be another network.
func (n *Network) startClient(ctx context.Context, p *port) {
	p.stop()
	ctx, p.cancel = context.WithCancel(ctx)
	p.session++
	client := &dhcp.Client{Interface: p.name, Hostname: n.options.Hostname, Logger: n.options.Logger}
	if p.lease != nil {
		client.Want = p.lease.Address.Addr()
	}
	event := leaseEvent{index: p.index, session: p.session}
	n.clients.Go(func() {
		err := client.Run(ctx, func(l *dhcp.Lease) {
			event.lease = l
			n.send(ctx, event)
		})
		if ctx.Err() == nil {
			n.options.Logger.Error("DHCP client ended", "interface", client.Interface, "error", err)
		}
	})
}

func (n *Network) send(ctx context.Context, event leaseEvent) {
	select {
	case n.leases <- event:
	case <-ctx.Done():
	}
}

func (n *Network) leaseChanged(ctx context.Context, event leaseEvent) {
	p := n.ports[event.index]
	switch {
	case p == nil:
		return
	case event.expired:
		if p.lease == nil || time.Since(p.lease.Obtained) < p.lease.Expire {
			return // renewed meanwhile
		}
	case event.session != p.session:
		return // from a client that was stopped
	}
	old := p.lease
	p.lease = event.lease
	n.apply(p, old, p.lease)
	if p.expiry != nil {
		p.expiry.Stop()
	}
	if p.lease != nil {
		index := p.index
		p.expiry = time.AfterFunc(p.lease.Expire-time.Since(p.lease.Obtained), func() {
			n.send(ctx, leaseEvent{index: index, expired: true})
		})
	}
	n.publish()
	n.writeResolvConf()
	n.saveLease(p)
	n.checkReady()
}

// apply makes the kernel follow from lease old to lease now; either may be nil.
func (n *Network) apply(p *port, old, now *dhcp.Lease) {
	if now == nil && old == nil {
		return
	}
	if err := p.applyLease(old, now); err != nil {
		n.options.Logger.Error("cannot apply DHCP lease", "interface", p.name, "error", err)
	}
	switch {
	case now == nil:
		n.options.Logger.Warn("address withdrawn", "interface", p.name, "address", old.Address)
	case old == nil || old.Address != now.Address:
		n.options.Logger.Info("address", "interface", p.name, "address", now.Address, "server", now.Server, "lease", now.Expire)
	}
}

// publish copies what other goroutines may see.
func (n *Network) publish() {
	var all []managed
	for _, p := range n.ports {
		all = append(all, managed{p.index, p.name, p.String(), p.lease})
	}
	slices.SortFunc(all, func(a, b managed) int { return a.index - b.index })
	n.mu.Lock()
	defer n.mu.Unlock()
	n.managed = all
}

func (n *Network) snapshot() []managed {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.managed
}

// checkReady closes ready once one interface has its static configuration, a lease, or an IPv6 address with a route.
func (n *Network) checkReady() {
	if n.isReady {
		return
	}
	for _, p := range n.ports {
		// A static address is there without a cable, too: the machine must start in a shop whose switch is off.
		if p.lease != nil || p.configured && len(p.plan.addresses) > 0 || p.carrier && hasIPv6(p.index) {
			n.isReady = true
			close(n.ready)
			return
		}
	}
}

// Wait returns when the machine can be reached through at least one interface, or with ctx's error and what it waited
// for. Once that was the case it returns at once, whatever happened since.
func (n *Network) Wait(ctx context.Context) error {
	select {
	case <-n.ready:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("no network yet (%s): %w", n, ctx.Err())
	}
}

// String says what each managed interface is doing.
func (n *Network) String() string {
	var all []string
	for _, m := range n.snapshot() {
		all = append(all, m.name+": "+m.state)
	}
	if len(all) == 0 {
		return "no interface found"
	}
	return strings.Join(all, ", ")
}

// Addresses returns the global addresses of the managed interfaces, in the order of the interfaces.
func (n *Network) Addresses() []netip.Prefix {
	var all []netip.Prefix
	for _, m := range n.snapshot() {
		all = append(all, globalAddresses(m.index)...)
	}
	return all
}

// NTPServers returns the time servers that DHCP named.
func (n *Network) NTPServers() []netip.Addr {
	var all []netip.Addr
	for _, m := range n.snapshot() {
		if m.lease != nil {
			all = append(all, m.lease.NTP...)
		}
	}
	return all
}
