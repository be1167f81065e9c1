//go:build cgo

package main

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-os/cairn/pkg/config"
	"github.com/cairn-os/cairn/pkg/membership"
	"github.com/cairn-os/cairn/pkg/pki"
	"github.com/cairn-os/cairn/pkg/store/cluster"
)

// TestCandidates: members are looked for wherever the machine has heard of servers, and not on the machine itself.
func TestCandidates(t *testing.T) {
	joined := membership.Membership{Servers: []string{"192.0.2.2:6443"}, StorePeers: []string{"192.0.2.2:2380", "192.0.2.3:2380"}}
	for _, tt := range []struct {
		name, server, list string
		m                  membership.Membership
		want               []string
	}{
		{"nothing known", "", "", membership.Membership{}, nil},
		{"as it joined", "", "", joined, []string{"192.0.2.2:2380", "192.0.2.3:2380"}},
		{"server_url was corrected", "[2001:db8::9]:6443", "", joined, []string{"192.0.2.2:2380", "192.0.2.3:2380", "[2001:db8::9]:2380"}},
		{"the founder's list", "", `{"servers": ["192.0.2.8:6443", "127.0.0.1:6443", "vip.example:443"]}`, membership.Membership{},
			[]string{"192.0.2.8:2380", "vip.example:2380"}},
		{"a damaged list", "", `{"servers": ["10.0`, joined, []string{"192.0.2.2:2380", "192.0.2.3:2380"}},
		{"nonsense in the list", "", `{"servers": ["", ":6443", "192.0.2.8"]}`, joined, []string{"192.0.2.2:2380", "192.0.2.3:2380"}},
	} {
		f := files{membership: filepath.Join(t.TempDir(), "membership.json"), server: tt.server, own: loopback}
		if tt.list != "" {
			if err := os.WriteFile(f.servers(), []byte(tt.list), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if diff := cmp.Diff(tt.want, f.candidates(&tt.m)); diff != "" {
			t.Errorf("%s:\n%s", tt.name, diff)
		}
		if data, err := os.ReadFile(f.servers()); string(data) != tt.list || tt.list != "" && err != nil {
			t.Errorf("%s: the list is %q, %v afterwards; it is another process's", tt.name, data, err)
		}
	}
}

// TestConnectAsks: the list is read whenever the store looks for others, and nobody who joined is left without a place to join.
func TestConnectAsks(t *testing.T) {
	ca := newCA(t)
	f := joined(t, ca, t.TempDir(), membership.Membership{Role: membership.Server, Node: "a", Founded: true})
	c := cluster.Config{Name: "host"}
	if err := f.connect(&c, config.Cluster{}); err != nil || len(c.Join) > 0 || len(c.Peers()) > 0 {
		t.Fatalf("founder: %v, joins %v, looks at %v; want neither", err, c.Join, c.Peers())
	}
	if err := os.WriteFile(f.servers(), []byte(`{"servers": ["192.0.2.8:6443"]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"192.0.2.8:2380"}, c.Peers()); diff != "" {
		t.Error(diff)
	}
	own := "127.0.0.1:2380"
	f = joined(t, ca, t.TempDir(), membership.Membership{Role: membership.Server, Node: "b", Servers: []string{own}, StorePeers: []string{own}})
	if err := f.connect(&c, config.Cluster{}); err != nil || len(c.Join) != 1 {
		t.Errorf("with no address but its own: %v, joins %v; want it never to begin a store", err, c.Join)
	}
}

func TestAdvertised(t *testing.T) {
	if !slices.Contains(ownHosts(), "127.0.0.1") {
		t.Errorf("own addresses %v; want the loopback one among them", ownHosts())
	}
	got, err := advertised([]netip.Addr{netip.MustParseAddr("127.0.0.1")})
	if diff := cmp.Diff([]string{"127.0.0.1:2380"}, got); diff != "" || err != nil {
		t.Errorf("the configured address: %v\n%s", err, diff)
	}
	all, err := pki.Addresses()
	if err != nil {
		t.Skip("this machine: ", err)
	}
	if got, err = advertised(nil); err != nil || len(got) != min(len(all), maxAddresses) {
		t.Errorf("advertised %v, %v; want all of %v", got, err, all)
	}
	for _, address := range got {
		if _, port, err := net.SplitHostPort(address); err != nil || port != peerPort {
			t.Errorf("%s: %v; want port %s", address, err, peerPort)
		}
	}
}
