package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"net"
	"net/netip"
	"slices"
)

// leaf describes a certificate of a component.
type leaf struct {
	name      string
	authority string
	user      string
	group     string
	usage     x509.ExtKeyUsage
	dnsNames  []string
	addresses []netip.Addr
}

// leaves lists what Ensure keeps. Users and groups are those that Kubernetes' own RBAC rules know.
func leaves(o Options) []leaf {
	client, server := x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth
	node := "system:node:" + o.Node
	names, addresses := apiserverNames(o)
	return []leaf{
		{name: APIServer, authority: ServerCA, user: "kube-apiserver", usage: server, dnsNames: names, addresses: addresses},
		{name: KubeletServer, authority: ServerCA, user: node, group: "system:nodes", usage: server, dnsNames: []string{o.Node}, addresses: o.Addresses},
		{name: KubeletClient, authority: ClientCA, user: node, group: "system:nodes", usage: client},
		{name: APIServerKubeletClient, authority: ClientCA, user: APIServerUser, usage: client},
		{name: ControllerManager, authority: ClientCA, user: "system:kube-controller-manager", usage: client},
		{name: Scheduler, authority: ClientCA, user: "system:kube-scheduler", usage: client},
		{name: KubeProxy, authority: ClientCA, user: "system:kube-proxy", usage: client},
		{name: Admin, authority: ClientCA, user: "system:admin", group: "system:masters", usage: client},
		{name: FrontProxy, authority: RequestHeaderCA, user: FrontProxyUser, usage: client},
	}
}

// apiserverNames returns under what the apiserver is reached.
func apiserverNames(o Options) (names []string, addresses []netip.Addr) {
	const service = "kubernetes.default.svc"
	names = []string{"localhost", o.Node, "kubernetes", "kubernetes.default", service, service + ".cluster.local"}
	addresses = []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()}
	if o.ServiceIP.IsValid() {
		addresses = append(addresses, o.ServiceIP)
	}
	addresses = append(addresses, o.Addresses...)
	for _, san := range o.SANs {
		if a, err := netip.ParseAddr(san); err == nil {
			addresses = append(addresses, a)
		} else {
			names = append(names, san)
		}
	}
	return names, addresses
}

// leaf renews the certificate l unless the one there still serves.
func (e *ensurer) leaf(l leaf) error {
	issuer := e.authorities[l.authority]
	if have, err := load(PairFile(e.Dir, l.name)); err == nil && e.serves(have.cert, l, issuer.cert) {
		return nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	_, err = e.create(l.name, e.template(l, issuer.cert), issuer, key)
	return err
}

func (e *ensurer) template(l leaf, issuer *x509.Certificate) *x509.Certificate {
	subject := pkix.Name{CommonName: l.user}
	if l.group != "" {
		subject.Organization = []string{l.group}
	}
	end := e.now().Add(leafLife)
	if end.After(issuer.NotAfter) {
		end = issuer.NotAfter
	}
	return &x509.Certificate{
		Subject:     subject,
		NotBefore:   e.notBefore(),
		NotAfter:    end,
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{l.usage},
		DNSNames:    unique(l.dnsNames),
		IPAddresses: netIPs(l.addresses),
	}
}

// serves reports whether have is what l asks for, signed by issuer, with a third of its life left or as long as the issuer.
func (e *ensurer) serves(have *x509.Certificate, l leaf, issuer *x509.Certificate) bool {
	want := e.template(l, issuer)
	if have.CheckSignatureFrom(issuer) != nil || have.Subject.String() != want.Subject.String() {
		return false
	}
	if !slices.Equal(have.ExtKeyUsage, want.ExtKeyUsage) || !slices.Equal(have.DNSNames, want.DNSNames) ||
		!slices.EqualFunc(have.IPAddresses, want.IPAddresses, net.IP.Equal) {
		return false
	}
	now := e.now()
	if now.Before(have.NotBefore) || !now.Before(have.NotAfter) {
		return false
	}
	return have.NotAfter.Sub(now) >= leafLife/3 || !have.NotAfter.Before(issuer.NotAfter)
}

// unique returns names sorted, each once.
func unique(names []string) []string {
	names = slices.Clone(names)
	slices.Sort(names)
	return slices.Compact(names)
}

func netIPs(addresses []netip.Addr) []net.IP {
	addresses = slices.Clone(addresses)
	slices.SortFunc(addresses, netip.Addr.Compare)
	var ips []net.IP
	for _, a := range slices.Compact(addresses) {
		ips = append(ips, a.Unmap().AsSlice())
	}
	return ips
}
