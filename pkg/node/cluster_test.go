package node

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	discoveryv1 "k8s.io/api/discovery/v1"
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
