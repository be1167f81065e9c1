package node

import (
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/cairn-os/cairn/pkg/pki"
)

func TestServersOf(t *testing.T) {
	slice := func(port int32, ready bool, addresses ...string) *discoveryv1.EndpointSlice {
		name := "https"
		s := &discoveryv1.EndpointSlice{Ports: []discoveryv1.EndpointPort{{Name: &name, Port: &port}}}
		for _, a := range addresses {
			s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{a}, Conditions: discoveryv1.EndpointConditions{Ready: &ready}})
		}
		return s
	}
	for _, tt := range []struct {
		name string
		all  []*discoveryv1.EndpointSlice
		want []string
	}{
		{"none", nil, nil},
		{"three", []*discoveryv1.EndpointSlice{slice(6443, true, "10.0.0.3", "10.0.0.1", "10.0.0.2")}, []string{"10.0.0.1:6443", "10.0.0.2:6443", "10.0.0.3:6443"}},
		{"both families", []*discoveryv1.EndpointSlice{slice(6443, true, "10.0.0.1"), slice(6443, true, "fd00::1")}, []string{"10.0.0.1:6443", "[fd00::1]:6443"}},
		{"one that is not ready", []*discoveryv1.EndpointSlice{slice(6443, false, "10.0.0.1"), slice(6443, true, "10.0.0.2", "10.0.0.2")}, []string{"10.0.0.2:6443"}},
		{"no port", []*discoveryv1.EndpointSlice{{Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"10.0.0.1"}}}}}, nil},
	} {
		if diff := cmp.Diff(tt.want, serversOf(tt.all)); diff != "" {
			t.Errorf("%s: serversOf (-want +got):\n%s", tt.name, diff)
		}
	}
}

// TestWithJoined keeps the address by which the machine joined in the list, once.
func TestWithJoined(t *testing.T) {
	n := &node{Options: Options{Server: "shop.example.com:6443"}}
	want := []string{"10.0.0.1:6443", "shop.example.com:6443"}
	for _, all := range [][]string{{"10.0.0.1:6443"}, want} {
		if diff := cmp.Diff(want, n.withJoined(all)); diff != "" {
			t.Errorf("withJoined(%v) (-want +got):\n%s", all, diff)
		}
	}
	if got := (&node{}).withJoined(want); len(got) != 2 {
		t.Errorf("withJoined on the first server = %v; want what the cluster says", got)
	}
}

// TestServerTLS wants servers judged by their authority alone: a client certificate that is missing or damaged is the
// node's own affair.
func TestServerTLS(t *testing.T) {
	n := &node{Options: Options{TLSDir: t.TempDir()}}
	if _, err := n.serverTLS(); err == nil {
		t.Error("serverTLS without an authority = nil; want an error")
	}
	if _, err := pki.EnsureAuthorities(pki.Options{Dir: n.TLSDir, Node: "a"}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(pki.PairFile(n.TLSDir, pki.KubeletClient), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := n.serverTLS()
	if err != nil || cfg.RootCAs == nil || cfg.ServerName != apiserverName || len(cfg.Certificates) > 0 {
		t.Errorf("serverTLS with a damaged client certificate = %+v, %v; want the authority", cfg, err)
	}
	if _, err := n.clientTLS(); err == nil {
		t.Error("clientTLS with a damaged client certificate = nil; want an error")
	}
}
