package node

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/cairn-os/cairn/pkg/membership"
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

func TestNodeAddresses(t *testing.T) {
	addresses := func(all ...string) (out []netip.Addr) {
		for _, a := range all {
			out = append(out, netip.MustParseAddr(a))
		}
		return out
	}
	settings := func(pods ...string) (s membership.Settings) {
		for _, p := range pods {
			s.PodCIDRs = append(s.PodCIDRs, netip.MustParsePrefix(p))
		}
		return s
	}
	for _, tt := range []struct {
		name     string
		have     []netip.Addr
		settings membership.Settings
		want     []netip.Addr
		problem  string
	}{
		{"one family", addresses("10.0.0.7", "fd00::7"), settings("10.42.0.0/16"), addresses("10.0.0.7"), ""},
		{"both", addresses("fd00::7", "10.0.0.7"), settings("10.42.0.0/16", "fd42::/56"), addresses("10.0.0.7", "fd00::7"), ""},
		{"IPv6 first", addresses("10.0.0.7", "fd00::7"), settings("fd42::/56", "10.42.0.0/16"), addresses("fd00::7", "10.0.0.7"), ""},
		{"a family lacks", addresses("10.0.0.7"), settings("10.42.0.0/16", "fd42::/56"), nil, "no IPv6 address"},
	} {
		got, err := nodeAddresses(tt.have, tt.settings)
		if (err != nil) != (tt.problem != "") || err != nil && !strings.Contains(err.Error(), tt.problem) {
			t.Errorf("%s: nodeAddresses = %v; want %q", tt.name, err, tt.problem)
		}
		if diff := cmp.Diff(tt.want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
			t.Errorf("%s: nodeAddresses (-want +got):\n%s", tt.name, diff)
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
