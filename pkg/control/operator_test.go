package control

import (
	"errors"
	"log/slog"
	"net/http"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/cairn-os/cairn/pkg/control/admin"
	"github.com/cairn-os/cairn/pkg/pki"
)

func TestAccessRefused(t *testing.T) {
	op := &operator{options: authorities(t), log: slog.New(slog.DiscardHandler)}
	good := admin.KubeconfigRequest{User: "ann", Groups: []string{"auditors"}, TTL: time.Hour}
	for _, tt := range []struct {
		name   string
		change func(*admin.KubeconfigRequest)
		ok     bool
	}{
		{"good", func(*admin.KubeconfigRequest) {}, true},
		{"masters, asked for", func(r *admin.KubeconfigRequest) { r.Groups = []string{mastersGroup} }, true},
		{"a year", func(r *admin.KubeconfigRequest) { r.TTL = longestAccess }, true},
		{"own server", func(r *admin.KubeconfigRequest) { r.Server = "https://shop.example:443" }, true},
		{"no user", func(r *admin.KubeconfigRequest) { r.User = "" }, false},
		{"a node", func(r *admin.KubeconfigRequest) { r.User = "system:node:shop-1" }, false},
		{"nodes", func(r *admin.KubeconfigRequest) { r.Groups = []string{pki.NodeGroup} }, false},
		{"more than a year", func(r *admin.KubeconfigRequest) { r.TTL = longestAccess + time.Second }, false},
		{"for ever", func(r *admin.KubeconfigRequest) { r.TTL = 0 }, false},
		{"unencrypted", func(r *admin.KubeconfigRequest) { r.Server = "http://shop.example" }, false},
		{"no URL", func(r *admin.KubeconfigRequest) { r.Server = "shop.example" }, false},
	} {
		r := good
		tt.change(&r)
		text, err := op.kubeconfig(r)
		var refused refusal
		if (err == nil) != tt.ok || tt.ok && len(text) == 0 || err != nil && (!errors.As(err, &refused) || refused.status != http.StatusBadRequest) {
			t.Errorf("%s: %d bytes, %v; want it taken: %v", tt.name, len(text), err, tt.ok)
		}
	}
}

func TestCandidates(t *testing.T) {
	nodes := []admin.Node{
		{Name: "shop-1", Roles: []string{"control-plane"}, Addresses: []string{"192.0.2.1", "2001:db8::1"}},
		{Name: "shop-2", Roles: []string{"control-plane"}, Addresses: []string{"192.0.2.2"}},
		{Name: "shop-3", Roles: []string{"control-plane"}},
		{Name: "till-1", Addresses: []string{"192.0.2.9"}},
	}
	got := candidates(nodes, []string{"192.0.2.1:6443", "192.0.2.7:6443"}, 6443)
	want := []admin.Server{{Address: "192.0.2.7:6443"}, {Name: "shop-1", Address: "192.0.2.1:6443"}, {Name: "shop-2", Address: "192.0.2.2:6443"}}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

// TestExpiryWarns makes the Events of certificates that nobody renewed, once an hour.
func TestExpiryWarns(t *testing.T) {
	o := authorities(t)
	client := fake.NewClientset()
	now := time.Now()
	e := newExpiry(o, client, slog.New(slog.DiscardHandler))
	e.now = func() time.Time { return now }
	count := func() map[string]int {
		e.look(t.Context())
		all, err := client.CoreV1().Events("default").List(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		reasons := make(map[string]int)
		for _, event := range all.Items {
			reasons[event.Reason+" "+event.InvolvedObject.Name]++
		}
		return reasons
	}
	if got := count(); len(got) != 0 {
		t.Errorf("events of fresh certificates: %v", got)
	}
	now = now.Add(335 * 24 * time.Hour) // of leaves that live for a year, 30 days are left
	first := count()
	if n := first["CertificateExpiring shop-1"]; len(first) != 1 || n < 1 {
		t.Errorf("events = %v; want some, all of the own node", first)
	}
	now = now.Add(time.Minute)
	if d := cmp.Diff(first, count()); d != "" {
		t.Errorf("a minute later: %s", d)
	}
}

func TestOwnAddresses(t *testing.T) {
	found, err := pki.Addresses()
	if err != nil {
		t.Skipf("this machine has no address: %v", err)
	}
	o := testOptions()
	o.addresses = nil
	if !found[0].Is4() {
		t.Skip("this machine's first address is of IPv6")
	}
	got, err := o.ownAddresses()
	if err != nil || got[0] != found[0] {
		t.Errorf("ownAddresses = %v, %v; want %v first", got, err, found[0])
	}
	o.NodeIPs = []netip.Addr{netip.MustParseAddr("198.51.100.250")}
	if _, err := o.ownAddresses(); err == nil {
		t.Error("takes an address that no interface has")
	}
	o.NodeIPs, o.listen = nil, netip.MustParseAddr("127.0.0.1")
	o.Settings.ServiceCIDRs = parsePrefixes("fd43::/112")
	o.NodeIPs = []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::7")}
	if got, err := o.ownAddresses(); err != nil || got[0].String() != "2001:db8::7" {
		t.Errorf("ownAddresses = %v, %v; want the address of the Service network's family first", got, err)
	}
}

func TestListenUnix(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	for range 2 { // the second finds what a killed process left
		l, err := listenUnix(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
}
