package dhcp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
)

// Client asks for a lease on one interface, which must be up and have carrier.
type Client struct {
	Interface string
	Hostname  string // told to the server; "": nothing
	// Want is an address that the machine had before and would like again; the zero Addr for none.
	Want   netip.Addr
	Logger *slog.Logger
}

// Timing of messages. RFC 2131 section 4.1 wants 4 s at first; LANs answer within milliseconds, and switches that start
// to forward late make the first message be lost, so start lower.
const (
	firstTimeout = time.Second // doubles with every try
	tries        = 4           // 1 + 2 + 4 + 8 = 15 s a round
	maxPause     = 5 * time.Second
	minRetry     = 60 * time.Second // between two renewals, RFC 2131 section 4.4.5
)

// Run keeps a lease until ctx ends. It calls changed with each lease it gets or has renewed, and with nil and the reason
// when the lease is lost: ErrExpired when no server answered in time, another error when one took it away. When ctx ends the lease stays what it is; nothing is sent, for a machine that comes back
// shall find its address.
//
//	discover ──ack──> bound ──T1──> renewing ──T2──> rebinding
//	   ^                ^───────ack───────┴──────────────┤
//	   └──────────────────────nak, expiry────────────────┘
func (c *Client) Run(ctx context.Context, changed func(*Lease, error)) error {
	for {
		lease, err := c.obtain(ctx)
		if err != nil {
			return err
		}
		c.Want = lease.Address.Addr()
		changed(lease, nil)
		lost := c.keep(ctx, lease, changed)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		changed(nil, lost)
	}
}

// obtain discovers until there is a lease; its only error is ctx's.
func (c *Client) obtain(ctx context.Context) (*Lease, error) {
	for round := 0; ; round++ {
		lease, err := c.discover(ctx)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err == nil {
			return lease, nil
		}
		if c.refused(err) {
			c.Want = netip.Addr{}
		}
		if round == 0 || round%20 == 0 { // a machine without a server would fill its log
			c.Logger.Warn("no DHCP lease yet", "interface", c.Interface, "error", err)
		}
		// Random, so that the machines of a shop do not ask in step after a power cut.
		if err := sleep(ctx, time.Second+rand.N(maxPause-time.Second)); err != nil {
			return nil, err
		}
	}
}

func (c *Client) discover(ctx context.Context) (*Lease, error) {
	client, err := nclient4.New(c.Interface, nclient4.WithTimeout(firstTimeout), nclient4.WithRetry(tries))
	if err != nil {
		return nil, fmt.Errorf("dhcp on %s: %w", c.Interface, err)
	}
	defer client.Close() // a socket: nothing to lose
	modifiers := c.modifiers()
	discover := modifiers
	if c.Want.IsValid() {
		discover = append(discover[:len(discover):len(discover)], dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(c.Want.AsSlice())))
	}
	offer, err := client.DiscoverOffer(ctx, discover...)
	if err != nil {
		return nil, fmt.Errorf("dhcp discover on %s: %w", c.Interface, err)
	}
	got, err := client.RequestFromOffer(ctx, offer, modifiers...)
	if err != nil {
		return nil, fmt.Errorf("dhcp request on %s: %w", c.Interface, err)
	}
	lease, err := parse(got.ACK, time.Now())
	if err != nil {
		return nil, fmt.Errorf("dhcp lease on %s: %w", c.Interface, err)
	}
	return lease, nil
}

// keep holds the lease and returns, with the reason, when it is lost or ctx ends.
func (c *Client) keep(ctx context.Context, lease *Lease, changed func(*Lease, error)) error {
	for {
		next, err := c.extend(ctx, lease)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			c.Logger.Warn("DHCP lease lost", "interface", c.Interface, "address", lease.Address, "error", err)
			return err
		}
		lease = next
		changed(lease, nil)
	}
}

// ErrExpired says that a lease ended because no server extended it.
var ErrExpired = errors.New("expired before a server extended it")

// extend waits for T1 and then asks until a server answers or the lease ends.
func (c *Client) extend(ctx context.Context, lease *Lease) (*Lease, error) {
	age := func() time.Duration { return time.Since(lease.Obtained) }
	if lease.Expire >= forever {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if err := sleep(ctx, lease.Renew-age()); err != nil {
		return nil, err
	}
	for {
		end, server := lease.Rebind, lease.Server
		if age() >= lease.Rebind {
			end, server = lease.Expire, netip.Addr{}
		}
		if age() >= lease.Expire {
			return nil, ErrExpired
		}
		start := age()
		next, err := c.request(ctx, lease, server, end-start)
		if err == nil || ctx.Err() != nil || c.refused(err) {
			return next, err
		}
		c.Logger.Info("DHCP lease not extended yet", "interface", c.Interface, "left", (lease.Expire - age()).Round(time.Second), "error", err)
		// Half of what remains of this state, but at least a minute, RFC 2131 section 4.4.5.
		left := end - age()
		if err := sleep(ctx, min(left, max(left/2, minRetry))); err != nil {
			return nil, err
		}
	}
}

// request asks server, or any when it is the zero Addr, to extend the lease; it takes at most limit.
func (c *Client) request(ctx context.Context, lease *Lease, server netip.Addr, limit time.Duration) (*Lease, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	to, match := *nclient4.DefaultServers, nclient4.IsMessageType(dhcpv4.MessageTypeAck, dhcpv4.MessageTypeNak)
	options := []nclient4.ClientOpt{nclient4.WithTimeout(firstTimeout), nclient4.WithRetry(tries)}
	if server.IsValid() {
		// An ordinary socket: the server may be behind a router, and from 0.0.0.0 its kernel would not take the message.
		to.IP = server.AsSlice()
		match = nclient4.IsAll(match, nclient4.IsCorrectServer(to.IP))
		me := &net.UDPAddr{IP: lease.Address.Addr().AsSlice(), Port: nclient4.ClientPort}
		options = append(options, nclient4.WithUnicast(me))
	}
	client, err := nclient4.New(c.Interface, options...)
	if err != nil {
		return nil, err
	}
	defer client.Close() // a socket: nothing to lose
	id, err := dhcpv4.GenerateTransactionID()
	if err != nil {
		return nil, err
	}
	msg, err := dhcpv4.NewRenewFromAck(lease.ack, append(c.modifiers(), dhcpv4.WithTransactionID(id))...)
	if err != nil {
		return nil, err
	}
	answer, err := client.SendAndRead(ctx, &to, msg, match)
	if err != nil {
		return nil, err
	}
	if answer.MessageType() == dhcpv4.MessageTypeNak {
		return nil, &nclient4.ErrNak{Nak: answer}
	}
	return parse(answer, time.Now())
}

func (c *Client) refused(err error) bool {
	var nak *nclient4.ErrNak
	return errors.As(err, &nak)
}

func (c *Client) modifiers() []dhcpv4.Modifier {
	all := []dhcpv4.Modifier{dhcpv4.WithRequestedOptions(
		dhcpv4.OptionSubnetMask, dhcpv4.OptionClasslessStaticRoute, dhcpv4.OptionRouter, dhcpv4.OptionDomainNameServer,
		dhcpv4.OptionDomainName, dhcpv4.OptionDNSDomainSearchList, dhcpv4.OptionInterfaceMTU, dhcpv4.OptionNTPServers,
		dhcpv4.OptionRenewTimeValue, dhcpv4.OptionRebindingTimeValue,
	)}
	if c.Hostname != "" {
		all = append(all, dhcpv4.WithOption(dhcpv4.OptHostName(c.Hostname)))
	}
	return all
}

// sleep waits for d or for the end of ctx, whose error it returns.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(max(d, 0))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
