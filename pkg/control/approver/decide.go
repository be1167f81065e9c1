package approver

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	certificatesv1 "k8s.io/api/certificates/v1"

	"github.com/cairn-os/cairn/pkg/join"
	"github.com/cairn-os/cairn/pkg/membership"
	"github.com/cairn-os/cairn/pkg/pki"
)

// verdict is what is done with a request.
type verdict int

const (
	leave   verdict = iota // it is not ours to judge
	approve                // the machine may have it
	deny                   // it may not; the reason is told
)

// requester returns the name of the node that asks, with its own certificate or with the one that it joins by.
func requester(s certificatesv1.CertificateSigningRequestSpec) (node string, ok bool) {
	for _, who := range []struct{ prefix, group string }{
		{pki.NodeUser(""), pki.NodeGroup}, {join.BootstrapUserPrefix, join.BootstrapGroup},
	} {
		name, has := strings.CutPrefix(s.Username, who.prefix)
		if has && name != "" && slices.Contains(s.Groups, who.group) {
			return name, true
		}
	}
	return "", false
}

// Signers that this package judges for.
var signers = []string{certificatesv1.KubeAPIServerClientKubeletSignerName, certificatesv1.KubeletServingSignerName}

// judge decides on a request by what is in it. Of one for a serving certificate it returns the addresses, which the
// cluster must not know as somebody else's.
func judge(r *certificatesv1.CertificateSigningRequest) (v verdict, node string, addresses []netip.Addr, reason error) {
	if !slices.Contains(signers, r.Spec.SignerName) {
		return leave, "", nil, nil
	}
	node, ok := requester(r.Spec)
	if !ok {
		return leave, "", nil, nil // a person's, for a person to judge
	}
	csr, err := parse(r.Spec.Request)
	if err == nil {
		err = checkSubject(csr, node)
	}
	if err == nil && r.Spec.SignerName == certificatesv1.KubeletServingSignerName {
		addresses, err = checkServing(csr, r.Spec.Usages, node)
	} else if err == nil {
		err = checkClient(csr, r.Spec.Usages)
	}
	if err != nil {
		return deny, node, nil, err
	}
	return approve, node, addresses, nil
}

func parse(data []byte) (*x509.CertificateRequest, error) {
	block, rest := pem.Decode(data)
	if block == nil || block.Type != "CERTIFICATE REQUEST" || strings.TrimSpace(string(rest)) != "" {
		return nil, errors.New("the request is not one PEM block of type CERTIFICATE REQUEST")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("read the request: %w", err)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("the request is not signed by its key: %w", err)
	}
	return csr, nil
}

// checkSubject wants the node's name and group, and nothing else.
func checkSubject(csr *x509.CertificateRequest, node string) error {
	s := csr.Subject
	if s.CommonName != pki.NodeUser(node) || !slices.Equal(s.Organization, []string{pki.NodeGroup}) || len(s.Names) != 2 {
		return fmt.Errorf("the subject is %q; a node may ask for its own, which is %q", s, "O="+pki.NodeGroup+",CN="+pki.NodeUser(node))
	}
	if len(csr.EmailAddresses) > 0 || len(csr.URIs) > 0 {
		return errors.New("e-mail addresses and URIs are not given to nodes")
	}
	return nil
}

// checkUsages wants the purpose and, beside it, what a TLS key of its kind does.
func checkUsages(usages []certificatesv1.KeyUsage, purpose certificatesv1.KeyUsage) error {
	for _, u := range usages {
		if u != purpose && u != certificatesv1.UsageDigitalSignature && u != certificatesv1.UsageKeyEncipherment {
			return fmt.Errorf("the usage %q is not given for this purpose", u)
		}
	}
	if !slices.Contains(usages, purpose) {
		return fmt.Errorf("the usage %q is missing", purpose)
	}
	return nil
}

func checkClient(csr *x509.CertificateRequest, usages []certificatesv1.KeyUsage) error {
	if len(csr.DNSNames) > 0 || len(csr.IPAddresses) > 0 {
		return errors.New("a client's certificate has no names or addresses")
	}
	return checkUsages(usages, certificatesv1.UsageClientAuth)
}

func checkServing(csr *x509.CertificateRequest, usages []certificatesv1.KeyUsage, node string) ([]netip.Addr, error) {
	for _, name := range csr.DNSNames {
		if name != node {
			return nil, fmt.Errorf("%q is not the node's name", name)
		}
	}
	if len(csr.IPAddresses) == 0 {
		return nil, errors.New("there is no address; the cluster reaches a kubelet by its address")
	}
	var addresses []netip.Addr
	for _, ip := range csr.IPAddresses {
		a, err := address(ip)
		if err != nil {
			return nil, err
		}
		// A node asks for what pki.NodeAddresses returns. With more it could keep the addresses of a whole network from others.
		if slices.ContainsFunc(addresses, func(have netip.Addr) bool { return have.Is4() == a.Is4() }) {
			return nil, fmt.Errorf("%v and another address of its family; a node has one of each", a)
		}
		addresses = append(addresses, a)
	}
	return addresses, checkUsages(usages, certificatesv1.UsageServerAuth)
}

// checkRecord wants the machine that asks to be an agent of the cluster still.
func checkRecord(records []join.NodeRecord, node string) error {
	i := slices.IndexFunc(records, func(r join.NodeRecord) bool { return r.Name == node })
	switch {
	case i < 0:
		return fmt.Errorf("%s was removed from the cluster: \"cairnctl reset\" makes its machine join again, with a token", node)
	case records[i].Role != membership.Agent:
		return fmt.Errorf("%s is a %s of the cluster, which signs its certificates itself", node, records[i].Role)
	}
	return nil
}

// address refuses what cannot be one machine's alone.
func address(ip net.IP) (netip.Addr, error) {
	a, ok := netip.AddrFromSlice(ip)
	a = a.Unmap()
	switch {
	case !ok || a.IsUnspecified() || a.IsMulticast() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return a, fmt.Errorf("%v is not the address of a machine", ip)
	case a.IsLoopback():
		return a, fmt.Errorf("%v is the address of every machine itself", a)
	}
	return a, nil
}

// taken is an address that a node must not have, with the reason.
type taken struct {
	address netip.Addr
	why     string
}

// checkAddresses refuses what belongs to pods, to Services or to somebody else.
func checkAddresses(all []netip.Addr, cluster []netip.Prefix, others []taken) error {
	for _, a := range all {
		for _, p := range cluster {
			if p.Contains(a) {
				return fmt.Errorf("%v is in %v, which is for pods or Services", a, p)
			}
		}
		if i := slices.IndexFunc(others, func(t taken) bool { return t.address == a }); i >= 0 {
			return fmt.Errorf("%v is %s", a, others[i].why)
		}
	}
	return nil
}
