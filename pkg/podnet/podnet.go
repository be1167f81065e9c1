// Package podnet connects the pods of a node: with each other, with those of other nodes, and with the world.
//
// Each node has a share of the cluster's pod network for each family of addresses, given to its Node object by the
// control plane. flannel's back-ends (vxlan, host-gw, wireguard) make the node's device and settle how the nodes tell
// each other about it: by annotations on their own Nodes, the ones that flannel itself writes and reads. A bridge
// connects the node's own pods, an nftables table hides them behind the node's address where they leave the cluster.
//
// Following the other nodes is done here and not by flannel's own loops, which add and remove one by one as told by
// events: see DESIGN.md. Here everything is compared with what should be, whenever a Node changes and every ten seconds.
package podnet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/knftables"

	"github.com/cairn-os/cairn/pkg/membership"
)

// Options say what the node is and where its files are.
type Options struct {
	Node     string              // its name
	Settings membership.Settings // PodCIDRs and Flannel are of interest
	Client   kubernetes.Interface
	NodeIPs  []netip.Addr // by which other nodes reach this one: one of each family that pods have

	StateDir   string // what is remembered across reboots: the share, the WireGuard key
	CNIConfDir string // where containerd finds the pod network

	Log *slog.Logger
}

// The back-ends, as cairn.cluster.flannel names them.
const (
	vxlanBackend     = "vxlan"
	hostgwBackend    = "host-gw"
	wireguardBackend = "wireguard"
	noBackend        = "none" // the owner installs a network
)

// interval is how often everything is compared with what should be when nothing calls for it earlier.
const interval = 10 * time.Second

// retryInterval is how long after a failure the next try comes.
const retryInterval = 3 * time.Second

// patience is how long a node waits for its share without a word: a new one does so for a moment.
const patience = 2 * time.Second

// interfaceGrace is how long an interface with the node's address is waited for before Run gives up: then the
// address may be another by now, which only the caller can find out.
const interfaceGrace = time.Minute

// errAgain ends a session whose foundations changed; the next one builds on the new ones.
var errAgain = errors.New("set up again")

// Run keeps the node's pod network as it should be until ctx ends, and returns nil then; the network stays. It waits
// for the cluster as long as it takes. An error means that something must be set right or found out anew by the
// caller: a node address that is on no interface, or one that lacks for a family that pods have.
//
// Run writes the CNI configuration once pods would be connected. Only one Run at a time may work in a network namespace.
func Run(ctx context.Context, o Options) error {
	if o.Settings.Flannel == noBackend {
		if err := leave(o); err != nil {
			return err
		}
		<-ctx.Done()
		return nil
	}
	n, err := newNetwork(o)
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	wg.Go(func() { n.nodes.run(ctx) })
	for {
		err := n.session(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, errAgain):
			n.log.Info("pod network is set up again", "reason", err)
		default:
			return err
		}
	}
}

// network is the running pod network of a node.
type network struct {
	Options
	log      *slog.Logger
	nodes    *nodes
	networks prefixes  // of the cluster's pods
	public   addresses // of this node
	end      backEnd
	nft      knftables.Interface // opened when first needed

	troubles map[string]string // what was last said about each step, so that it is said once
}

func newNetwork(o Options) (*network, error) {
	n := &network{Options: o, log: o.Log, nodes: newNodes(o.Client), troubles: make(map[string]string)}
	var err error
	if n.networks, err = splitPrefixes(o.Settings.PodCIDRs); err != nil {
		return nil, fmt.Errorf("pod network: %w", err)
	}
	for _, a := range o.NodeIPs {
		a = a.Unmap()
		if f := familyOf(a); !n.public[f].IsValid() {
			n.public[f] = a
		}
	}
	if n.end, err = newBackend(o.Settings.Flannel, o.StateDir); err != nil {
		return nil, err
	}
	for f, p := range n.networks {
		if p.IsValid() && !n.public[f].IsValid() {
			return nil, fmt.Errorf("pod network: pods have %v addresses of %v, but the node has no %v address: "+
				"give it one (cairn.cluster.node_ip) or leave that network out of cairn.cluster.pod_cidr", family(f), p, family(f))
		}
	}
	return n, nil
}

// session sets the network up and keeps it until ctx ends, or until the node's share or its interface is another.
func (n *network) session(ctx context.Context) error {
	share, err := n.awaitShare(ctx)
	if err != nil {
		return err
	}
	ext, err := n.awaitInterface(ctx)
	if err != nil {
		return err
	}
	s := &session{network: n, share: share, ext: ext}
	if err := s.until(ctx, "set up back-end", s.setUp); err != nil {
		return err
	}
	return s.keep(ctx)
}

// until tries do until it succeeds.
func (n *network) until(ctx context.Context, step string, do func(context.Context) error) error {
	for {
		err := do(ctx)
		n.say(step, err)
		if err == nil {
			return nil
		}
		if err := pause(ctx, retryInterval); err != nil {
			return err
		}
	}
}

// say logs how a step went, when that differs from the last time.
func (n *network) say(step string, err error) {
	was, failed := n.troubles[step]
	switch {
	case err == nil && failed:
		delete(n.troubles, step)
		n.log.Info("pod network recovered", "step", step)
	case err != nil && was != err.Error():
		n.troubles[step] = err.Error()
		n.log.Warn("pod network", "step", step, "error", err)
	}
}

// awaitShare waits until the cluster gave the node its share in each family.
func (n *network) awaitShare(ctx context.Context) (prefixes, error) {
	begin := time.Now()
	for {
		own, known := n.nodes.own(n.Node)
		var err error
		switch {
		case !n.nodes.synced():
			err = errors.New("waiting for the cluster")
		case !known:
			err = errors.New("waiting for the node to be registered")
		default:
			var share prefixes
			if share, err = ownShare(own, n.networks); err == nil {
				n.say("find share", nil)
				return share, nil
			}
		}
		if time.Since(begin) >= patience {
			n.say("find share", err)
		}
		select {
		case <-ctx.Done():
			return prefixes{}, ctx.Err()
		case <-n.nodes.changed:
		case <-time.After(time.Second): // the first list may hold no node: nothing changes then
		}
	}
}

// awaitInterface waits until the node's addresses are on an interface.
func (n *network) awaitInterface(ctx context.Context) (external, error) {
	deadline := time.Now().Add(interfaceGrace)
	for {
		ext, err := findExternal(n.wantedPublic())
		n.say("find interface", err)
		if err == nil {
			return ext, nil
		}
		if time.Now().After(deadline) {
			return external{}, err
		}
		if err := pause(ctx, time.Second); err != nil {
			return external{}, err
		}
	}
}

// wantedPublic are the node's addresses of the families that pods have.
func (n *network) wantedPublic() addresses {
	var want addresses
	for f, p := range n.networks {
		if p.IsValid() {
			want[f] = n.public[f]
		}
	}
	return want
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
