package tunnel

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"sync"
	"time"

	"sigs.k8s.io/apiserver-network-proxy/proto/header"
)

const (
	// serversInterval is how often the list of servers is read: a call and a comparison.
	serversInterval = 2 * time.Second
	// A tunnel that cannot be made is tried again after firstRetry, then ever later, up to recentRetry while it was there a
	// moment ago, as when a server starts anew, and up to lastRetry from then on.
	firstRetry  = time.Second
	recentRetry = 5 * time.Second
	recently    = 2 * time.Minute
	lastRetry   = 30 * time.Second
)

// AgentOptions say what RunAgent needs.
type AgentOptions struct {
	// Node is the name in the client certificate.
	Node string
	// Addresses are those of this machine by which apiservers know its kubelet.
	Addresses []netip.Addr
	// Servers lists the apiservers as host:port. It is asked every 2 s; a server that went loses its tunnel.
	Servers func() []string
	// TLS is asked for each new connection, so that renewed certificates are used; connections that exist stay.
	TLS func() (*tls.Config, error)
	Log *slog.Logger
}

// RunAgent keeps a tunnel to each of the servers until ctx ends, and dials for them from this machine. It returns nil when
// all that it started has ended.
func RunAgent(ctx context.Context, o AgentOptions) error {
	if o.Node == "" || o.Servers == nil || o.TLS == nil {
		return errors.New("tunnel: a node's name, servers and certificates are needed")
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	links := map[string]context.CancelFunc{}
	var running sync.WaitGroup
	defer running.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	tick := time.NewTicker(serversInterval)
	defer tick.Stop()
	for {
		want := o.Servers()
		for address, stop := range links {
			if !slices.Contains(want, address) {
				stop()
				delete(links, address)
			}
		}
		for _, address := range want {
			if links[address] != nil {
				continue
			}
			linkCtx, stop := context.WithCancel(ctx)
			links[address] = stop
			running.Go(func() { keepLink(linkCtx, o, address) })
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// keepLink keeps the tunnel to one server until ctx ends.
func keepLink(ctx context.Context, o AgentOptions, address string) {
	log := o.Log.With("server", address)
	wait := retry{}
	said := ""
	for ctx.Err() == nil {
		begin := time.Now()
		up := false
		err := runSession(ctx, o, address, func() {
			up, said = true, ""
			log.Info("tunnel is up")
		})
		if ctx.Err() != nil {
			break
		}
		if up {
			wait.succeeded(time.Now())
			log.Warn("tunnel lost", "after", time.Since(begin).Round(time.Second), "error", err)
		} else if err.Error() != said {
			said = err.Error()
			log.Warn("tunnel not made, trying again", "error", err)
		}
		timer := time.NewTimer(wait.next(time.Now()))
		select {
		case <-ctx.Done():
			timer.Stop()
		case <-timer.C:
		}
	}
}

// retry decides how long to wait before the next attempt. Its zero value is for a server never reached.
type retry struct {
	step time.Duration
	last time.Time // of success
}

func (r *retry) succeeded(now time.Time) { r.step, r.last = 0, now }

// next is between half and all of the current step, so that nodes that lost a server together do not come back together.
func (r *retry) next(now time.Time) time.Duration {
	limit := lastRetry
	if now.Sub(r.last) < recently {
		limit = recentRetry
	}
	r.step = min(max(firstRetry, 2*r.step), limit)
	return r.step/2 + rand.N(r.step/2)
}

// identifiers is what a node says of itself, in Konnectivity's encoding.
func identifiers(node string, addresses []netip.Addr) string {
	v := url.Values{string(header.Host): {node}}
	for _, a := range addresses {
		if a = a.Unmap(); a.Is4() {
			v.Add(string(header.IPv4), a.String())
		} else {
			v.Add(string(header.IPv6), a.String())
		}
	}
	return v.Encode()
}

// dialTarget connects to what the apiserver asked for.
func dialTarget(ctx context.Context, o AgentOptions, network, address string) (net.Conn, error) {
	if network != "tcp" {
		return nil, errors.New("only tcp is dialled, not " + network)
	}
	// The machine may have no way to look up its own name.
	if host, port, err := net.SplitHostPort(address); err == nil && host == o.Node && len(o.Addresses) > 0 {
		address = net.JoinHostPort(o.Addresses[0].String(), port)
	}
	d := net.Dialer{Timeout: dialTimeout}
	return d.DialContext(ctx, network, address)
}
