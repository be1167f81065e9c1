package podnet

import (
	"encoding/json"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/flannel-io/flannel/pkg/lease"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/knftables"

	"github.com/cairn-os/cairn/pkg/membership"
)

var update = flag.Bool("update", false, "write the golden files")

func list(texts ...string) []netip.Prefix {
	var all []netip.Prefix
	for _, t := range texts {
		all = append(all, netip.MustParsePrefix(t))
	}
	return all
}

func pair(t *testing.T, texts ...string) prefixes {
	t.Helper()
	p, err := splitPrefixes(list(texts...))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

var byValue = cmp.Options{
	cmpopts.EquateComparable(netip.Prefix{}, netip.Addr{}, netip.AddrPort{}),
	cmp.AllowUnexported(peer{}, route{}, neighbour{}, external{}),
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s (-want +got):\n%s", name, diff)
	}
}

func TestCNIConfig(t *testing.T) {
	for name, m := range map[string]memory{
		"ipv4": {Networks: list("10.42.0.0/16"), Shares: list("10.42.3.0/24"), MTU: 1450},
		"ipv6": {Networks: list("fd42::/48"), Shares: list("fd42:0:0:3::/64"), MTU: 1430},
		"dual": {Networks: list("10.42.0.0/16", "fd42::/48"), Shares: list("10.42.3.0/24", "fd42:0:0:3::/64"), MTU: 1430},
	} {
		got, err := cniConfig(m)
		if err != nil {
			t.Fatal(err)
		}
		golden(t, name+".conflist", append(got, '\n'))
	}
}

func TestMasqueradeRules(t *testing.T) {
	for name, c := range map[string]struct{ share, networks prefixes }{
		"ipv4": {pair(t, "10.42.3.0/24"), pair(t, "10.42.0.0/16")},
		"dual": {pair(t, "10.42.3.0/24", "fd42:0:0:3::/64"), pair(t, "10.42.0.0/16", "fd42::/48")},
	} {
		nft := knftables.NewFake(knftables.InetFamily, nftTable)
		for range 2 { // the second time replaces
			if err := nft.Run(t.Context(), masqueradeRules(nft.NewTransaction(), c.share, c.networks)); err != nil {
				t.Fatal(err)
			}
		}
		golden(t, name+".nft", []byte(nft.Dump()))
	}
}

func TestMTU(t *testing.T) {
	v4, v6, dual := pair(t, "10.42.0.0/16"), pair(t, "fd42::/48"), pair(t, "10.42.0.0/16", "fd42::/48")
	for _, c := range []struct {
		backend  string
		networks prefixes
		want     int
		flannel  int // what flannel is told
	}{
		{"vxlan", v4, 1450, 1500}, {"vxlan", v6, 1430, 1480}, {"vxlan", dual, 1430, 1480},
		{"wireguard", v4, 1440, 1520}, {"wireguard", v6, 1420, 1500}, {"wireguard", dual, 1420, 1500},
		{"host-gw", v4, 1500, 1500}, {"host-gw", dual, 1500, 1500},
	} {
		b, err := newBackend(c.backend, t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		got := podMTU(b, 1500, c.networks)
		if got != c.want {
			t.Errorf("podMTU(%s, 1500, %v) = %d; want %d", c.backend, c.networks.list(), got, c.want)
		}
		config, err := flannelConfig(c.backend, c.networks, got, b.flannelOverhead())
		if err != nil {
			t.Fatal(err)
		}
		var told struct{ MTU int }
		if err := json.Unmarshal(config.Backend, &told); err != nil || told.MTU != c.flannel {
			t.Errorf("%s %v: flannel is told MTU %d, %v; want %d", c.backend, c.networks.list(), told.MTU, err, c.flannel)
		}
	}
}

func TestFlannelConfig(t *testing.T) {
	for _, c := range []struct {
		networks []string
		want     string
	}{
		{[]string{"10.42.0.0/16"}, `{"EnableIPv4":true,"EnableIPv6":false,"Network":"10.42.0.0/16","IPv6Network":"::/0"}`},
		{[]string{"fd42::/48"}, `{"EnableIPv4":false,"EnableIPv6":true,"Network":"0.0.0.0/0","IPv6Network":"fd42::/48"}`},
		{[]string{"fd42::/48", "10.42.0.0/16"}, `{"EnableIPv4":true,"EnableIPv6":true,"Network":"10.42.0.0/16","IPv6Network":"fd42::/48"}`},
	} {
		config, err := flannelConfig("vxlan", pair(t, c.networks...), 1450, 50)
		if err != nil {
			t.Fatal(err)
		}
		v6 := "::/0"
		if !config.IPv6Network.Empty() {
			v6 = config.IPv6Network.String()
		}
		got, err := json.Marshal(struct {
			EnableIPv4, EnableIPv6 bool
			Network, IPv6Network   string
		}{config.EnableIPv4, config.EnableIPv6, config.Network.String(), v6})
		if err != nil {
			t.Fatal(err)
		}
		if string(got) != c.want || config.BackendType != "vxlan" {
			t.Errorf("flannelConfig(%v) = %s (%s); want %s", c.networks, got, config.BackendType, c.want)
		}
	}
}

// testNode is a Node as another one announced itself.
func testNode(name string, age time.Duration, cidrs []string, annotations map[string]string) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{
		Name: name, CreationTimestamp: metav1.NewTime(time.Unix(1e9, 0).Add(-age)), Annotations: map[string]string{managedAnnotation: "true"},
	}}
	n.Spec.PodCIDRs = cidrs
	for key, value := range annotations {
		n.Annotations[annotationPrefix+key] = value
	}
	return n
}

func TestPeers(t *testing.T) {
	networks := pair(t, "10.42.0.0/16", "fd42::/48")
	v4 := map[string]string{"backend-type": "vxlan", "public-ip": "192.0.2.2", "backend-data": `{"VNI":1}`}
	dual := map[string]string{
		"backend-type": "vxlan", "public-ip": "192.0.2.2", "public-ipv6": "2001:db8::2", "backend-data": "4", "backend-v6-data": "6",
	}
	with := func(m map[string]string, key, value string) map[string]string {
		c := map[string]string{}
		for k, v := range m {
			c[k] = v
		}
		c[key] = value
		return c
	}
	one := peer{node: "b", backend: "vxlan", share: pair(t, "10.42.2.0/24"), data: [2]string{`{"VNI":1}`, ""}}
	one.public[ipv4] = netip.MustParseAddr("192.0.2.2")
	both := peer{
		node: "b", backend: "vxlan", share: pair(t, "10.42.2.0/24", "fd42:0:0:2::/64"), data: [2]string{"4", "6"},
		public: addresses{netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8::2")},
	}
	for name, c := range map[string]struct {
		nodes   []*corev1.Node
		want    []peer
		problem string
	}{
		"one family":        {[]*corev1.Node{testNode("b", 0, []string{"10.42.2.0/24"}, v4)}, []peer{one}, ""},
		"both families":     {[]*corev1.Node{testNode("b", 0, []string{"10.42.2.0/24", "fd42:0:0:2::/64"}, dual)}, []peer{both}, ""},
		"no share yet":      {[]*corev1.Node{testNode("b", 0, nil, v4)}, nil, ""},
		"own node":          {[]*corev1.Node{testNode("a", 0, []string{"10.42.2.0/24"}, v4)}, nil, ""},
		"own share":         {[]*corev1.Node{testNode("b", 0, []string{"10.42.1.0/24"}, v4)}, nil, "10.42.1.0/24 of node b: it overlaps 10.42.1.0/24"},
		"part of the own":   {[]*corev1.Node{testNode("b", 0, []string{"10.42.1.128/25"}, v4)}, nil, "the cluster gives nodes a /24"},
		"all of them":       {[]*corev1.Node{testNode("b", 0, []string{"10.42.0.0/16"}, v4)}, nil, "the cluster gives nodes a /24"},
		"another's, silent": {[]*corev1.Node{testNode("b", time.Hour, []string{"10.42.2.0/24"}, nil), testNode("c", 0, []string{"10.42.2.0/24"}, v4)}, nil, "of node c: it overlaps"},
		"address of IPv6":   {[]*corev1.Node{testNode("b", 0, []string{"10.42.2.0/24"}, with(v4, "public-ip", "::1"))}, nil, `"::1"`},
		"garbage":           {[]*corev1.Node{testNode("b", 0, []string{"10.42.2.0/24"}, with(v4, "public-ip", "x"))}, nil, `node b says that its IPv4 address is "x"`},
		"outside":           {[]*corev1.Node{testNode("b", 0, []string{"10.99.2.0/24"}, v4)}, nil, "not within"},
		"a thief":           {[]*corev1.Node{testNode("b", time.Hour, []string{"10.42.2.0/24"}, v4), testNode("c", 0, []string{"10.42.2.0/24"}, v4)}, []peer{one}, "10.42.2.0/24 of node c: it overlaps"},
		"good beside wrong": {[]*corev1.Node{testNode("x", 0, []string{"nonsense"}, v4), testNode("b", 0, []string{"10.42.2.0/24"}, v4)}, []peer{one}, "pod CIDR of node x"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := peersOf(c.nodes, "a", pair(t, "10.42.1.0/24"), networks)
			if diff := cmp.Diff(c.want, got, byValue); diff != "" {
				t.Errorf("peersOf (-want +got):\n%s", diff)
			}
			if (err == nil) != (c.problem == "") || err != nil && !strings.Contains(err.Error(), c.problem) {
				t.Errorf("peersOf: %v; want an error with %q", err, c.problem)
			}
		})
	}
}

func TestAnnouncement(t *testing.T) {
	networks := pair(t, "10.42.0.0/16")
	public := addresses{netip.MustParseAddr("192.0.2.1")}
	a := newAnnouncement(lease.LeaseAttrs{BackendType: "host-gw"}, networks, public)
	right := map[string]string{"backend-type": "host-gw", "backend-data": "null", "public-ip": "192.0.2.1"}
	for name, c := range map[string]struct {
		annotations map[string]string
		want        string
	}{
		"new":   {nil, `{"metadata":{"annotations":{"flannel.alpha.coreos.com/backend-data":"null","flannel.alpha.coreos.com/backend-type":"host-gw","flannel.alpha.coreos.com/public-ip":"192.0.2.1"}}}`},
		"right": {right, ""},
		"moved": {map[string]string{"backend-type": "host-gw", "backend-data": "null", "public-ip": "192.0.2.9"}, `{"metadata":{"annotations":{"flannel.alpha.coreos.com/public-ip":"192.0.2.1"}}}`},
		"family gone": {map[string]string{"backend-type": "host-gw", "backend-data": "null", "public-ip": "192.0.2.1", "public-ipv6": "::2"},
			`{"metadata":{"annotations":{"flannel.alpha.coreos.com/public-ipv6":null}}}`},
		"owner's address": {map[string]string{"backend-type": "host-gw", "backend-data": "null", "public-ip": "192.0.2.1", "public-ip-overwrite": "198.51.100.7"},
			`{"metadata":{"annotations":{"flannel.alpha.coreos.com/public-ip":"198.51.100.7"}}}`},
		"owner's nonsense": {map[string]string{"backend-type": "host-gw", "backend-data": "null", "public-ip": "192.0.2.1", "public-ip-overwrite": "::7"}, ""},
	} {
		if got := string(a.patch(testNode("a", 0, nil, c.annotations))); got != c.want {
			t.Errorf("%s: patch = %s; want %s", name, got, c.want)
		}
	}
}

func TestOwnShare(t *testing.T) {
	networks := pair(t, "10.42.0.0/16", "fd42::/48")
	if got, err := ownShare(testNode("a", 0, []string{"10.42.1.0/24"}, nil), networks); err == nil {
		t.Errorf("ownShare with one family of two = %v; want an error", got)
	}
	got, err := ownShare(testNode("a", 0, []string{"fd42:0:0:1::/64", "10.42.1.0/24"}, nil), networks)
	if want := pair(t, "10.42.1.0/24", "fd42:0:0:1::/64"); err != nil || got != want {
		t.Errorf("ownShare = %v, %v; want %v", got, err, want)
	}
}

func TestPlanRoutes(t *testing.T) {
	r := func(dst, via string, link int) route {
		return route{dst: netip.MustParsePrefix(dst), via: netip.MustParseAddr(via), link: link}
	}
	right, moved, gone, added := r("10.42.1.0/24", "192.0.2.1", 2), r("10.42.2.0/24", "192.0.2.2", 2), r("10.42.3.0/24", "192.0.2.3", 2), r("10.42.4.0/24", "192.0.2.4", 2)
	movedTo := r("10.42.2.0/24", "192.0.2.22", 2)
	set, del := planRoutes([]route{right, moved, gone}, []route{added, movedTo, right})
	if diff := cmp.Diff([]route{movedTo, added}, set, byValue); diff != "" {
		t.Errorf("set (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]route{moved, gone}, del, byValue); diff != "" {
		t.Errorf("delete (-want +got):\n%s", diff)
	}
}

func TestPlanNeighbours(t *testing.T) {
	n := func(mac, address string) neighbour { return neighbour{mac, netip.MustParseAddr(address)} }
	byMAC := func(n neighbour) any { return n.mac }
	have := []neighbour{n("a", "192.0.2.1"), n("b", "192.0.2.2"), n("c", "192.0.2.3")}
	want := []neighbour{n("a", "192.0.2.1"), n("b", "192.0.2.22"), n("d", "192.0.2.4")}
	set, del := planNeighbours(have, want, byMAC)
	if diff := cmp.Diff(want[1:], set, byValue); diff != "" {
		t.Errorf("set (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(have[2:], del, byValue); diff != "" {
		t.Errorf("delete (-want +got):\n%s", diff)
	}
}

func TestChooseExternal(t *testing.T) {
	c := func(name string, index int, has ...string) candidate {
		one := candidate{name: name, index: index, mtu: 1500}
		for _, h := range has {
			one.has = append(one.has, netip.MustParseAddr(h))
		}
		return one
	}
	all := []candidate{c("lo", 1, "127.0.0.1", "::1"), c("eth0", 2, "192.0.2.1", "2001:db8::1"), c("eth1", 3, "198.51.100.1", "2001:db8:1::1")}
	for _, test := range []struct {
		want          []string
		name, problem string
	}{
		{[]string{"192.0.2.1"}, "eth0", ""},
		{[]string{"198.51.100.1", "2001:db8:1::1"}, "eth1", ""},
		{[]string{"192.0.2.1", "2001:db8:1::1"}, "", "are on different interfaces (eth0, eth1)"},
		{[]string{"192.0.2.7"}, "", "not on any interface"},
	} {
		var want addresses
		for _, text := range test.want {
			a := netip.MustParseAddr(text)
			want[familyOf(a)] = a
		}
		got, err := chooseExternal(all, want)
		if got.name != test.name || (err == nil) != (test.problem == "") || err != nil && !strings.Contains(err.Error(), test.problem) {
			t.Errorf("chooseExternal(%v) = %q, %v; want %q and an error with %q", test.want, got.name, err, test.name, test.problem)
		}
	}
}

func TestStaleLinks(t *testing.T) {
	for _, c := range []struct {
		backend string
		pods    []string
		want    []string
	}{
		{"vxlan", []string{"10.42.0.0/16"}, []string{"flannel-v6.1", "flannel-wg", "flannel-wg-v6"}},
		{"vxlan", []string{"10.42.0.0/16", "fd42::/48"}, []string{"flannel-wg", "flannel-wg-v6"}},
		{"wireguard", []string{"fd42::/48"}, []string{"flannel.1", "flannel-v6.1", "flannel-wg"}},
		{"host-gw", []string{"10.42.0.0/16"}, []string{"flannel.1", "flannel-v6.1", "flannel-wg", "flannel-wg-v6"}},
	} {
		b, err := newBackend(c.backend, t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(c.want, staleLinks(b, pair(t, c.pods...))); diff != "" {
			t.Errorf("staleLinks(%s, %v) (-want +got):\n%s", c.backend, c.pods, diff)
		}
	}
}

func TestOptionsRefused(t *testing.T) {
	for _, c := range []struct {
		pods, ips []string
		backend   string
		want      string
	}{
		{[]string{"10.42.0.0/16"}, []string{"192.0.2.1"}, "udp", `unknown back-end "udp"`},
		{[]string{"10.42.0.0/16", "fd42::/48"}, []string{"192.0.2.1"}, "vxlan", "the node has no IPv6 address"},
		{[]string{"10.42.0.0/16", "10.43.0.0/16"}, []string{"192.0.2.1"}, "vxlan", "two IPv4 ranges"},
		{nil, []string{"192.0.2.1"}, "vxlan", "no address range"},
	} {
		o := Options{Settings: membership.Settings{PodCIDRs: list(c.pods...), Flannel: c.backend}, StateDir: t.TempDir()}
		for _, text := range c.ips {
			o.NodeIPs = append(o.NodeIPs, netip.MustParseAddr(text))
		}
		if err := Run(t.Context(), o); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("Run(%+v) = %v; want an error with %q", c, err, c.want)
		}
	}
}

func TestWireguardKey(t *testing.T) {
	file := filepath.Join(t.TempDir(), "node", wireguardKey)
	first, err := ensureWireguardKey(file)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := ensureWireguardKey(file); err != nil || again != first {
		t.Errorf("the key did not last: %v", err)
	}
	if st, err := os.Stat(file); err != nil || st.Mode() != 0o600 {
		t.Errorf("mode of %s = %v, %v; want 0600", file, st.Mode(), err)
	}
	if err := os.WriteFile(file, nil, 0o600); err != nil { // as flannel leaves it after a power cut
		t.Fatal(err)
	}
	if again, err := ensureWireguardKey(file); err != nil || again == first {
		t.Errorf("an empty key file: %v", err)
	}
}

func TestStrip(t *testing.T) {
	n := testNode("b", 0, []string{"10.42.2.0/24"}, map[string]string{"backend-type": "vxlan"})
	n.Annotations["other"] = "x"
	n.Labels = map[string]string{"a": "b"}
	n.Status.Images = []corev1.ContainerImage{{SizeBytes: 1}}
	got, err := strip(n)
	if err != nil {
		t.Fatal(err)
	}
	want := testNode("b", 0, []string{"10.42.2.0/24"}, map[string]string{"backend-type": "vxlan"})
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("strip (-want +got):\n%s", diff)
	}
	if !same(want, got) {
		t.Error("same = false for what differs in nothing of interest")
	}
	moved := want.DeepCopy()
	moved.Annotations[publicAnnotation(ipv4)] = "192.0.2.1"
	if same(want, moved) {
		t.Error("same = true for a node that moved")
	}
}

func TestRestoreNothing(t *testing.T) {
	dir := t.TempDir()
	o := Options{Settings: membership.DefaultSettings(), StateDir: dir, CNIConfDir: filepath.Join(dir, "cni")}
	if err := Restore(o); err != nil {
		t.Errorf("Restore without a memory = %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, memoryFile), []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := Restore(o); err == nil || !strings.Contains(err.Error(), memoryFile) {
		t.Errorf("Restore with a torn memory = %v; want an error that names the file", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "cni", cniFile)); err == nil {
		t.Error("Restore wrote a configuration out of nothing")
	}
}
