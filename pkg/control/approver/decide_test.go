package approver

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"net"
	"net/netip"
	"net/url"
	"strings"
	"testing"

	certificatesv1 "k8s.io/api/certificates/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	capi "k8s.io/kubernetes/pkg/apis/certificates"
)

// asking is a request as a test varies it.
type asking struct {
	user   string
	groups []string
	signer string
	usages []certificatesv1.KeyUsage
	csr    x509.CertificateRequest
	data   []byte // instead of csr
}

func (a asking) request(t testing.TB) *certificatesv1.CertificateSigningRequest {
	t.Helper()
	data := a.data
	if data == nil {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		der, err := x509.CreateCertificateRequest(rand.Reader, &a.csr, key)
		if err != nil {
			t.Fatal(err)
		}
		data = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
	}
	return &certificatesv1.CertificateSigningRequest{Spec: certificatesv1.CertificateSigningRequestSpec{
		Username: a.user, Groups: a.groups, SignerName: a.signer, Usages: a.usages, Request: data,
	}}
}

func subject(node string) pkix.Name {
	return pkix.Name{CommonName: "system:node:" + node, Organization: []string{"system:nodes"}}
}

// client and serving are what a node named shop-4 rightly asks for.
func client() asking {
	return asking{
		user: "cairn:join:shop-4", groups: []string{"cairn:joining", "system:authenticated"},
		signer: certificatesv1.KubeAPIServerClientKubeletSignerName,
		usages: []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, certificatesv1.UsageClientAuth},
		csr:    x509.CertificateRequest{Subject: subject("shop-4")},
	}
}

func serving(addresses ...string) asking {
	a := asking{
		user: "system:node:shop-4", groups: []string{"system:nodes", "system:authenticated"},
		signer: certificatesv1.KubeletServingSignerName,
		usages: []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, certificatesv1.UsageServerAuth},
		csr:    x509.CertificateRequest{Subject: subject("shop-4"), DNSNames: []string{"shop-4"}},
	}
	for _, x := range addresses {
		a.csr.IPAddresses = append(a.csr.IPAddresses, net.ParseIP(x))
	}
	return a
}

func TestJudge(t *testing.T) {
	const good = "192.0.2.4"
	for _, tt := range []struct {
		name   string
		base   asking
		change func(*asking)
		want   verdict
		reason string
	}{
		{"joins", client(), func(*asking) {}, approve, ""},
		{"renews", client(), func(a *asking) { a.user, a.groups = "system:node:shop-4", []string{"system:nodes"} }, approve, ""},
		{"RSA key", client(), func(a *asking) { a.usages = append(a.usages, certificatesv1.UsageKeyEncipherment) }, approve, ""},
		{"serves", serving(good, "2001:db8::4"), func(*asking) {}, approve, ""},
		{"serves, joining", serving(good), func(a *asking) { a.user, a.groups = "cairn:join:shop-4", []string{"cairn:joining"} }, approve, ""},
		{"serves without a name", serving(good), func(a *asking) { a.csr.DNSNames = nil }, approve, ""},

		{"another signer", client(), func(a *asking) { a.signer = certificatesv1.KubeAPIServerClientSignerName }, leave, ""},
		{"a person asks", client(), func(a *asking) { a.user, a.groups = "admin", []string{"system:masters"} }, leave, ""},
		{"joins without the group", client(), func(a *asking) { a.groups = []string{"system:nodes"} }, leave, ""},
		{"renews without the group", serving(good), func(a *asking) { a.groups = []string{"cairn:joining"} }, leave, ""},
		{"a node without a name", client(), func(a *asking) { a.user = "cairn:join:"; a.csr.Subject = subject("") }, leave, ""},

		{"another's name", client(), func(a *asking) { a.csr.Subject = subject("shop-1") }, deny, "a node may ask for its own"},
		{"another's name to serve", serving(good), func(a *asking) { a.csr.Subject = subject("shop-1") }, deny, "a node may ask for its own"},
		{"administrators' group", client(), func(a *asking) { a.csr.Subject.Organization = []string{"system:nodes", "system:masters"} }, deny, "the subject is"},
		{"no group", client(), func(a *asking) { a.csr.Subject.Organization = nil }, deny, "the subject is"},
		{"more of a subject", client(), func(a *asking) { a.csr.Subject.OrganizationalUnit = []string{"x"} }, deny, "the subject is"},
		{"a client with a name", client(), func(a *asking) { a.csr.DNSNames = []string{"shop-4"} }, deny, "has no names or addresses"},
		{"a client with an address", client(), func(a *asking) { a.csr.IPAddresses = []net.IP{{192, 0, 2, 4}} }, deny, "has no names or addresses"},
		{"a client with an e-mail address", client(), func(a *asking) { a.csr.EmailAddresses = []string{"a@b.c"} }, deny, "e-mail addresses"},
		{"a client with a URI", client(), func(a *asking) { a.csr.URIs = []*url.URL{{Scheme: "spiffe", Host: "x"}} }, deny, "e-mail addresses and URIs"},
		{"a client to serve", client(), func(a *asking) { a.usages = append(a.usages, certificatesv1.UsageServerAuth) }, deny, `"server auth" is not given`},
		{"a client for nothing", client(), func(a *asking) { a.usages = a.usages[:1] }, deny, `"client auth" is missing`},
		{"an authority", client(), func(a *asking) { a.usages = append(a.usages, certificatesv1.UsageCertSign) }, deny, `"cert sign" is not given`},
		{"serves as a client", serving(good), func(a *asking) { a.usages = append(a.usages, certificatesv1.UsageClientAuth) }, deny, `"client auth" is not given`},
		{"serves as another", serving(good), func(a *asking) { a.csr.DNSNames = []string{"shop-4", "kubernetes"} }, deny, `"kubernetes" is not the node's name`},
		{"serves without an address", serving(), func(*asking) {}, deny, "there is no address"},
		{"more addresses than a node has", serving(good, "2001:db8::4", "192.0.2.5"), func(*asking) {}, deny, "192.0.2.5 and another address of its family"},
		{"two of IPv6", serving("2001:db8::4", "2001:db8::5"), func(*asking) {}, deny, "2001:db8::5 and another address of its family"},
		{"one twice, in two forms", serving(good, "::ffff:"+good), func(*asking) {}, deny, "another address of its family"},
		{"loopback", serving(good, "127.0.0.9"), func(*asking) {}, deny, "the address of every machine itself"},
		{"loopback of IPv6", serving("::1"), func(*asking) {}, deny, "the address of every machine itself"},
		{"unspecified", serving("0.0.0.0"), func(*asking) {}, deny, "not the address of a machine"},
		{"unspecified of IPv6", serving("::"), func(*asking) {}, deny, "not the address of a machine"},
		{"multicast", serving("224.0.0.1"), func(*asking) {}, deny, "not the address of a machine"},
		{"no PEM", client(), func(a *asking) { a.data = []byte("x") }, deny, "not one PEM block"},
		{"no request", client(), func(a *asking) {
			a.data = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: []byte("x")})
		}, deny, "read the request"},
		{"a forged signature", client(), func(a *asking) {
			block, _ := pem.Decode(a.request(t).Spec.Request)
			block.Bytes[len(block.Bytes)-1] ^= 1
			a.data = pem.EncodeToMemory(block)
		}, deny, "not signed by its key"},
	} {
		tt.change(&tt.base)
		r := tt.base.request(t)
		got, node, _, reason := judge(r)
		text := ""
		if reason != nil {
			text = reason.Error()
		}
		if got != tt.want || !strings.Contains(text, tt.reason) || (tt.reason == "") != (reason == nil) {
			t.Errorf("%s: judge = %d, %q; want %d, %q", tt.name, got, text, tt.want, tt.reason)
		}
		if got == approve {
			if node != "shop-4" {
				t.Errorf("%s: judged for node %q; want shop-4", tt.name, node)
			}
			signed(t, tt.name, r)
		}
	}
}

// signed wants upstream's signer to take what is approved.
func signed(t *testing.T, name string, r *certificatesv1.CertificateSigningRequest) {
	t.Helper()
	csr, err := capi.ParseCSR(r.Spec.Request)
	if err != nil {
		t.Fatal(err)
	}
	usages := sets.NewString()
	for _, u := range r.Spec.Usages {
		usages.Insert(string(u))
	}
	err = capi.ValidateKubeletClientCSR(csr, usages)
	if r.Spec.SignerName == certificatesv1.KubeletServingSignerName {
		err = capi.ValidateKubeletServingCSR(csr, usages)
	}
	if err != nil {
		t.Errorf("%s: approved, but the signer refuses: %v", name, err)
	}
}

func TestCheckAddresses(t *testing.T) {
	cluster := []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16"), netip.MustParsePrefix("10.43.0.0/16"), netip.MustParsePrefix("fd42::/48")}
	others := []taken{{netip.MustParseAddr("192.0.2.1"), "the address of a server"}}
	for _, tt := range []struct{ address, want string }{
		{"192.0.2.4", ""},
		{"10.42.3.7", "10.42.3.7 is in 10.42.0.0/16, which is for pods or Services"},
		{"10.43.0.1", "10.43.0.1 is in 10.43.0.0/16, which is for pods or Services"},
		{"fd42::1", "fd42::1 is in fd42::/48, which is for pods or Services"},
		{"192.0.2.1", "192.0.2.1 is the address of a server"},
	} {
		got := ""
		if err := checkAddresses([]netip.Addr{netip.MustParseAddr("192.0.2.99"), netip.MustParseAddr(tt.address)}, cluster, others); err != nil {
			got = err.Error()
		}
		if got != tt.want {
			t.Errorf("checkAddresses(%s) = %q; want %q", tt.address, got, tt.want)
		}
	}
}

// TestMappedAddress has an IPv4 address written as an IPv6 one be what it is.
func TestMappedAddress(t *testing.T) {
	_, _, addresses, reason := judge(serving("::ffff:10.43.0.1").request(t))
	if reason != nil || len(addresses) != 1 || !addresses[0].Is4() {
		t.Errorf("judge = %v, %v; want one IPv4 address", addresses, reason)
	}
}
