package pki

import (
	"crypto/x509"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/cairn-os/cairn/pkg/store/peer"
)

// leaf describes a certificate of a component.
type leaf struct {
	name      string
	authority string
	Request
}

// leaves lists what Ensure keeps. Users and groups are those that Kubernetes' own RBAC rules know.
func leaves(o Options) []leaf {
	server := apiserverRequest(o)
	kubelet := Request{
		User: NodeUser(o.Node), Groups: []string{NodeGroup}, Usages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames: []string{o.Node}, Addresses: o.Addresses,
	}
	all := []leaf{
		{APIServer, ServerCA, server},
		{KubeletServer, KubeletCA, kubelet},
		{KubeletClient, ClientCA, ClientRequest(NodeUser(o.Node), NodeGroup)},
		{APIServerKubeletClient, ClientCA, ClientRequest(APIServerUser)},
		{ControllerManager, ClientCA, ClientRequest("system:kube-controller-manager")},
		{Scheduler, ClientCA, ClientRequest("system:kube-scheduler")},
		{Admin, ClientCA, ClientRequest("system:admin", "system:masters")},
		{FrontProxy, RequestHeaderCA, ClientRequest(FrontProxyUser)},
		{Store, StoreCA, StoreRequest(o.Node)},
	}
	for i := range all {
		l := &all[i]
		l.Life, l.Now, l.Floor = o.Life, o.Now, o.Floor
		// The apiserver ends the streams of exec and watch that go through it when these change, and the machine that has
		// them holds their authority's key anyway.
		if l.name == APIServerKubeletClient || l.name == FrontProxy {
			l.Life = lasting
		}
	}
	return all
}

func findLeaf(o Options, name string) (leaf, error) {
	for _, l := range leaves(o) {
		if l.name == name {
			return l, nil
		}
	}
	return leaf{}, fmt.Errorf("certificate %s: no component has one of that name", name)
}

// ClientRequest is what the certificate of a client of the apiserver says.
func ClientRequest(user string, groups ...string) Request {
	return Request{User: user, Groups: groups, Usages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
}

// StoreRequest is what the certificate of the store's member on a node says.
func StoreRequest(node string) Request {
	return Request{
		User: node, DNSNames: []string{peer.ServerName},
		Usages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
}

// StoreWitnessRequest is what the certificate of the store's member on a witness says: the same, and that it is no more than a
// witness, which servers do not let write or administer (peer.WitnessOrganization).
func StoreWitnessRequest(node string) Request {
	r := StoreRequest(node)
	r.Groups = []string{peer.WitnessOrganization}
	return r
}

// forWitness is the store's certificate l as a witness has it.
func (l leaf) forWitness() leaf {
	l.Groups = StoreWitnessRequest(l.User).Groups
	return l
}

// apiserverRequest holds under what the apiserver is reached.
func apiserverRequest(o Options) Request {
	const service = "kubernetes.default.svc"
	r := Request{
		User: "kube-apiserver", Usages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames:  []string{"localhost", o.Node, "kubernetes", "kubernetes.default", service, service + "." + o.ClusterDomain},
		Addresses: []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()},
	}
	if o.ServiceIP.IsValid() {
		r.Addresses = append(r.Addresses, o.ServiceIP)
	}
	r.Addresses = append(r.Addresses, o.Addresses...)
	for _, san := range o.SANs {
		if a, err := netip.ParseAddr(san); err == nil {
			r.Addresses = append(r.Addresses, a)
		} else {
			r.DNSNames = append(r.DNSNames, san)
		}
	}
	return r
}

// leaf renews the certificate l unless the one there still serves.
func (e *ensurer) leaf(l leaf) error {
	issuer := e.authorities[l.authority]
	if have, err := load(PairFile(e.Dir, l.name)); err == nil && have.follows(issuer.chain) && l.serves(have.cert, issuer.cert, e.clock()) {
		return nil
	}
	_, err := e.create(l.name, l.template(issuer.cert), &issuer)
	return err
}

// follows reports whether that is what comes after the pair's certificate in its file.
func (p pair) follows(chain []*x509.Certificate) bool {
	return slices.EqualFunc(p.chain, chain, (*x509.Certificate).Equal)
}

// serves reports whether have is what l asks for, signed by issuer, with a third of its life left or as long as the issuer.
func (l leaf) serves(have, issuer *x509.Certificate, c clock) bool {
	want := l.template(issuer)
	if have.CheckSignatureFrom(issuer) != nil || have.Subject.String() != want.Subject.String() {
		return false
	}
	if !slices.Equal(have.ExtKeyUsage, want.ExtKeyUsage) || !slices.Equal(have.DNSNames, want.DNSNames) ||
		!slices.EqualFunc(have.IPAddresses, want.IPAddresses, net.IP.Equal) {
		return false
	}
	now := c.now()
	if now.Before(have.NotBefore) || !now.Before(have.NotAfter) {
		return false
	}
	// One with far more life left than it should have at all is from before the configured life was cut. The factor is
	// for a clock that went back, which makes the rest longer as well.
	left := have.NotAfter.Sub(now)
	return left <= 2*l.Life && (left >= l.Life/3 || !have.NotAfter.Before(issuer.NotAfter))
}
