// Package network keeps the machine's interfaces, addresses, routes and resolv.conf as its configuration says, through
// netlink and DHCP.
//
// It manages the interfaces that the configuration names, or every wired one when it names none, and touches no other:
// the links of Kubernetes are not its business. IPv6 autoconfiguration is left to the kernel.
//
// A machine whose router or cable is gone must still run its pods, and those need an address. So the last lease of each
// interface is kept across reboots, and is used again for as long as no DHCP server answers; see fallback.go.
package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"runtime/debug"
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
	// LeaseDir keeps the last lease of each interface, as <interface>.json, for boots at which no DHCP server answers; "":
	// nothing is kept.
	LeaseDir string
	// FallbackAfter is how long a boot waits for anything better than a kept lease; 0: 10 s.
	FallbackAfter time.Duration
}

// Network is the machine's network. One goroutine, that of Run, owns the ports; the rest is guarded by mu.
type Network struct {
	cfg     config.Network
	options Options
	plans   []plan
	ports   map[int]*port // by link index; owned by Run
	leases  chan leaseEvent
	clients sync.WaitGroup

	overdue <-chan time.Time // tells when FallbackAfter is over
	late    bool             // that it is; owned by Run

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
	lost    error // why there is no lease
	expired bool  // from the port's timer instead of its client
}

// New prepares the network of cfg; Run brings it up.
func New(cfg config.Network, o Options) (*Network, error) {
	if o.ResolvConf == "" {
		o.ResolvConf = "/etc/resolv.conf"
	}
	if o.FallbackAfter == 0 {
		o.FallbackAfter = fallbackAfter
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

// Run keeps the network until ctx ends, and then leaves all addresses and routes in place. Whatever fails is tried again:
// nobody is there who could start it anew.
func (n *Network) Run(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer n.clients.Wait()
	defer cancel()
	late := time.NewTimer(n.options.FallbackAfter)
	defer late.Stop()
	n.overdue = late.C
	said := ""
	for {
		err := recovered(func() error { return n.watch(ctx) })
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			err = errors.New("lost the kernel's events")
		}
		if err.Error() != said { // once, and not in each second
			said = err.Error()
			n.options.Logger.Warn("asking the kernel for the network again", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Second): // not in a tight loop
		}
	}
}

// recovered makes a panic an error: this runs in PID 1, and some of what is parsed comes from the network.
func recovered(do func() error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("a bug: %v\n%s", v, debug.Stack())
		}
	}()
	return do()
}

// watch follows the kernel until ctx ends or events are lost.
func (n *Network) watch(ctx context.Context) error {
	if err := loopbackUp(); err != nil {
		return err
	}
	n.writeResolvConf()
	done := make(chan struct{})
	defer close(done)
	links, addrs, routes := make(chan netlink.LinkUpdate, 64), make(chan netlink.AddrUpdate, 64), make(chan netlink.RouteUpdate, 64)
	const buffer = 1 << 20 // Kubernetes makes and removes links in bursts
	// The library's goroutines may hang in a send when this returns; each closes its channel when it ends.
	if err := netlink.AddrSubscribeWithOptions(addrs, done, netlink.AddrSubscribeOptions{ReceiveBufferSize: buffer}); err != nil {
		return fmt.Errorf("subscribe to addresses: %w", err)
	}
	defer func() { go drain(addrs) }()
	if err := netlink.RouteSubscribeWithOptions(routes, done, netlink.RouteSubscribeOptions{ReceiveBufferSize: buffer}); err != nil {
		return fmt.Errorf("subscribe to routes: %w", err)
	}
	defer func() { go drain(routes) }()
	if err := netlink.LinkSubscribeWithOptions(links, done, netlink.LinkSubscribeOptions{ReceiveBufferSize: buffer, ListExisting: true}); err != nil {
		return fmt.Errorf("subscribe to links: %w", err)
	}
	defer func() { go drain(links) }()
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
		case <-n.overdue:
			n.late = true
			n.checkReady()
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
		n.loadLease(p)
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
	switch {
	case p.lease != nil:
		client.Want = p.lease.Address.Addr()
	case p.kept != nil:
		client.Want = p.kept.Address.Addr()
	}
	event := leaseEvent{index: p.index, session: p.session}
	n.clients.Go(func() {
		for {
			err := recovered(func() error {
				return client.Run(ctx, func(l *dhcp.Lease, lost error) {
					event.lease, event.lost = l, lost
					n.send(ctx, event)
				})
			})
			if ctx.Err() != nil {
				return
			}
			n.options.Logger.Error("DHCP client ended; starting it again", "interface", client.Interface, "error", err)
			select {
			case <-ctx.Done():
				return
			case <-time.After(time.Minute):
			}
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
		if p.lease == nil || p.fallback || time.Since(p.lease.Obtained) < p.lease.Expire {
			return // renewed meanwhile, or kept
		}
		event.lost = dhcp.ErrExpired
	case event.session != p.session:
		return // from a client that was stopped
	}
	if event.lease == nil && errors.Is(event.lost, dhcp.ErrExpired) && n.keepExpired(p) {
		return
	}
	old := p.lease
	p.lease, p.fallback = event.lease, false
	n.apply(p, old, p.lease)
	if p.expiry != nil {
		p.expiry.Stop()
	}
	switch {
	case p.lease != nil:
		index := p.index
		p.expiry = time.AfterFunc(p.lease.Expire-time.Since(p.lease.Obtained), func() {
			n.send(ctx, leaseEvent{index: index, expired: true})
		})
		n.endFallback()
		n.saveLease(p)
	case !errors.Is(event.lost, dhcp.ErrExpired):
		n.forgetLease(p) // a server said that it is not ours
	}
	n.publish()
	n.writeResolvConf()
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

// checkReady closes ready once one interface has its static configuration, a lease, or an IPv6 address with a route, or,
// when that takes too long, the address of a kept lease.
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
	if n.late && n.fallBack() {
		n.isReady = true
		close(n.ready)
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
