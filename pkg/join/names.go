package join

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/cairn-os/cairn/pkg/membership"
	"github.com/cairn-os/cairn/pkg/pki"
)

// maxName leaves room for NodePrefix.
const maxName = 240

// checkNodeName refuses names that no node can have, or that others would take for something else: the apiserver and the
// tunnels reach a node by its name as well as by its addresses, and certificates hold it.
func checkNodeName(name string) error {
	if problems := validation.IsDNS1123Subdomain(name); len(problems) > 0 || len(name) > maxName {
		return refuse(CodeName, "%q cannot be the name of a node: choose a hostname of at most 63 of a-z, 0-9 and dashes", logged(name))
	}
	if _, err := netip.ParseAddr(name); err == nil {
		return refuse(CodeName, "%q cannot be the name of a node, for it is an address: choose a hostname with a letter in it", name)
	}
	own := func(n string) bool { return name == n || strings.HasPrefix(name, n+".") }
	if own("localhost") || own(serverName) || strings.HasSuffix(name, ".localhost") || strings.HasSuffix(name, ".svc") || strings.Contains(name, ".svc.") {
		return refuse(CodeName, "%q cannot be the name of a node, for it is that of the machine itself or of a Service: choose another hostname", logged(name))
	}
	return nil
}

// claim is a machine's wish for a name.
type claim struct {
	record
	tokenRole string
	now       time.Time
}

// decide returns a Refusal when the claim cannot have its name. have is who has it, nil for nobody.
func (c claim) decide(have *record, h heard) error {
	if have != nil && have.Role != membership.Agent {
		if c.tokenRole != string(membership.Server) {
			return refuse(CodeRole, "%s is the name of a %s, which a token for agents cannot take: "+
				"choose another hostname, or use a token for servers", c.Name, have.Role)
		}
		if have.Role != c.Role {
			return refuse(CodeRole, "%s is a %s of this cluster and cannot join as %s: remove it first (%s), or choose another hostname",
				c.Name, have.Role, c.Role, removal(have.NodeRecord))
		}
	}
	if have != nil && have.Identity == c.Identity {
		return nil
	}
	switch h.state(have, c.now) {
	case alive:
		return refuse(CodeName, "two nodes with one name: %s is alive in this cluster on another machine. "+
			"Choose another hostname; if this machine was wiped, it gets the name when nothing was heard of its last run for a minute", c.Name)
	case starting:
		return refuse(CodeName, "two nodes with one name: another machine joined as %s at %s and may still be starting. "+
			"Choose another hostname; if it was this machine, it gets the name within %v", c.Name, stamp(have.Joined), settling)
	}
	return nil
}

// removal is the command that removes a node.
func removal(r NodeRecord) string {
	if r.Role == membership.Witness {
		return "cairnctl store remove " + r.Name
	}
	return "kubectl delete node " + r.Name
}

// take gives the name to the machine, unless another has it or gets it at the same moment.
func (s *Server) take(ctx context.Context, c claim) error {
	return change(ctx, s.Client, NodePrefix+c.Name, func(old *corev1.Secret) (*corev1.Secret, error) {
		have, err := recordIn(old)
		if err != nil {
			return nil, err
		}
		h, err := s.hear(ctx, c.Name, have)
		if err != nil {
			return nil, err
		}
		if err := c.decide(have, h); err != nil {
			return nil, err
		}
		r := c.keep(have)
		r.heard = h.lease
		return r.fill(old), nil
	})
}

// may is take without writing.
func (s *Server) may(ctx context.Context, c claim) error {
	have, err := getRecord(ctx, s.Client, c.Name)
	if err != nil {
		return err
	}
	h, err := s.hear(ctx, c.Name, have)
	if err != nil {
		return err
	}
	return c.decide(have, h)
}

// checkAddresses refuses an address that a node which is not dead has: the pod network could not tell them apart. Machines
// behind different NATs can share one only where Cairn makes no pod network, and then it is not called. Only addresses
// count that a server found to be a node's, for an agent could say of itself that it has any. A machine that got another
// name may have its own address.
func (s *Server) checkAddresses(ctx context.Context, c claim, own []netip.Addr) error {
	if len(own) == 0 {
		return nil
	}
	records, err := listRecords(ctx, s.Client)
	if err != nil {
		return err
	}
	for i := range records {
		have := &records[i]
		at := slices.IndexFunc(have.Addresses, func(a netip.Addr) bool { return slices.Contains(own, a.Unmap()) })
		if have.Name == c.Name || have.Identity == c.Identity || at < 0 {
			continue
		}
		h, err := s.hear(ctx, have.Name, have)
		if err != nil {
			return err
		}
		if h.state(have, c.now) != dead {
			return refuse(CodeAddress, "the address %v is already taken: node %s has it. Give one of the two another address, or delete that node if its machine is gone for good",
				have.Addresses[at], have.Name)
		}
	}
	return nil
}

// nodeAddresses returns those addresses of a machine that its node will have in the cluster: the first of each family that
// the pod network has. A machine that lacks one says so itself.
func nodeAddresses(all []netip.Addr, s membership.Settings) []netip.Addr {
	var plain, own []netip.Addr
	for _, a := range all {
		plain = append(plain, a.Unmap().WithZone(""))
	}
	for _, p := range s.PodCIDRs {
		if found, err := pki.NodeAddresses(plain, []netip.Prefix{p}); err == nil {
			own = append(own, found...)
		}
	}
	return own
}
