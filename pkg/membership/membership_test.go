package membership

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func prefixes(texts ...string) []netip.Prefix {
	var all []netip.Prefix
	for _, t := range texts {
		all = append(all, netip.MustParsePrefix(t))
	}
	return all
}

func agent() *Membership {
	return &Membership{Role: Agent, Node: "shop-2", Servers: []string{"10.0.0.2:6443", "[fd00::2]:6443"}, Settings: DefaultSettings()}
}

func TestSaveAndLoad(t *testing.T) {
	path := filepath.Join(t.TempDir(), "node", "membership.json")
	if _, err := Load(path); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("Load of nothing = %v; want fs.ErrNotExist", err)
	}
	founded := &Membership{Role: Server, Node: "shop-1", Founded: true, Settings: Settings{
		PodCIDRs: prefixes("10.42.0.0/16", "fd42::/56"), ServiceCIDRs: prefixes("10.43.0.0/16", "fd43::/112"),
		Flannel: "wireguard", ClusterDomain: "shop.example", Datastore: Postgres,
	}, Identity: "00ff"}
	for _, want := range []*Membership{agent(), founded} {
		if err := want.Save(path); err != nil {
			t.Fatal(err)
		}
		got, err := Load(path)
		if err != nil {
			t.Fatal(err)
		}
		same := cmp.Options{cmpopts.EquateComparable(netip.Prefix{}), cmpopts.EquateEmpty()}
		if diff := cmp.Diff(want, got, same); diff != "" {
			t.Error(diff)
		}
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v; want 0600", info.Mode())
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(data), "null") {
		t.Errorf("the file holds null:\n%s", data)
	}
}

func TestLoadNewer(t *testing.T) {
	path := filepath.Join(t.TempDir(), "m.json")
	data, err := agent().Encode()
	if err != nil {
		t.Fatal(err)
	}
	newer := strings.Replace(string(data), "{", `{"later":{"a":1},`, 1)
	if err := os.WriteFile(path, []byte(newer), 0o600); err != nil {
		t.Fatal(err)
	}
	if m, err := Load(path); err != nil || m.Node != "shop-2" {
		t.Errorf("Load = %v, %v; want the unknown field passed over", m, err)
	}
}

func TestValidate(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*Membership)
		want   string
	}{
		{"good", func(*Membership) {}, ""},
		{"role", func(m *Membership) { m.Role = "boss" }, "boss"},
		{"no name", func(m *Membership) { m.Node = "" }, "no name"},
		{"agent that founded", func(m *Membership) { m.Founded = true }, "begins"},
		{"no servers", func(m *Membership) { m.Servers = nil }, "no servers"},
		{"no port", func(m *Membership) { m.Servers = []string{"10.0.0.2"} }, "port"},
		{"named port", func(m *Membership) { m.StorePeers = []string{"a:http"} }, "HOST:PORT"},
		{"no host", func(m *Membership) { m.StorePeers = []string{":1"} }, "HOST:PORT"},
		{"no pods", func(m *Membership) { m.Settings.PodCIDRs = nil }, keyPods},
		{"two of a family", func(m *Membership) { m.Settings.ServiceCIDRs = prefixes("10.1.0.0/16", "10.2.0.0/16") }, keyServices},
		{"bits beyond", func(m *Membership) { m.Settings.PodCIDRs = prefixes("10.42.1.0/16") }, "10.42.0.0/16"},
		{"tiny", func(m *Membership) { m.Settings.ServiceCIDRs = prefixes("10.43.0.0/30") }, "too small"},
		{"overlap", func(m *Membership) { m.Settings.ServiceCIDRs = prefixes("10.42.128.0/20") }, "overlap"},
		{"flannel", func(m *Membership) { m.Settings.Flannel = "udp" }, keyFlannel},
		{"domain", func(m *Membership) { m.Settings.ClusterDomain = "a b" }, keyDomain},
		{"datastore", func(m *Membership) { m.Settings.Datastore = "paper" }, KeyDatastore},
		{"datastore not known", func(m *Membership) { m.Settings.Datastore = "" }, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := agent()
			tt.change(m)
			err := m.Validate()
			if (err == nil) != (tt.want == "") || (err != nil && !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("Validate = %v; want %q", err, tt.want)
			}
			if _, encoded := m.Encode(); (encoded == nil) != (err == nil) {
				t.Errorf("Encode = %v; Validate = %v", encoded, err)
			}
		})
	}
}

func TestSettings(t *testing.T) {
	s := DefaultSettings()
	if err := s.Validate(); err != nil {
		t.Fatal(err)
	}
	if got := s.ServiceIP(); got != netip.MustParseAddr("10.43.0.1") {
		t.Errorf("ServiceIP = %v", got)
	}
	if got := (Settings{}).ServiceIP(); got.IsValid() {
		t.Errorf("ServiceIP of nothing = %v", got)
	}
	own := Settings{PodCIDRs: prefixes("10.50.0.0/16"), Flannel: "vxlan"}
	want := []Conflict{{"cairn.cluster.pod_cidr", "10.50.0.0/16", "10.42.0.0/16"}}
	if diff := cmp.Diff(want, s.Conflicts(own)); diff != "" {
		t.Error(diff)
	}
	if got := s.Conflicts(Settings{}); got != nil {
		t.Errorf("Conflicts of an empty configuration = %v", got)
	}
	for _, tt := range []struct {
		own, cluster Datastore
		want         string
	}{
		{OwnStore, OwnStore, ""},
		{MySQL, MySQL, ""},
		{"", Etcd, ""},     // an agent
		{OwnStore, "", ""}, // not known
		{OwnStore, Etcd, "cairn.datastore is the servers' own store here and an etcd cluster in the cluster"},
		{Postgres, MySQL, "cairn.datastore is PostgreSQL here and MySQL or MariaDB in the cluster"},
	} {
		got := ""
		for _, c := range (Settings{Datastore: tt.cluster}).Conflicts(Settings{Datastore: tt.own}) {
			got += c.String()
		}
		if got != tt.want {
			t.Errorf("conflict of %q with %q = %q; want %q", tt.own, tt.cluster, got, tt.want)
		}
	}
	if got := (Settings{}).Or(Settings{Datastore: Etcd}).Datastore; got != Etcd {
		t.Errorf("Or gives the datastore %q", got)
	}
	filled := own.Or(s)
	if filled.Flannel != "vxlan" || list(filled.PodCIDRs) != "10.50.0.0/16" || list(filled.ServiceCIDRs) != "10.43.0.0/16" {
		t.Errorf("Or = %v", filled)
	}
}

// FuzzLoad checks that what is accepted can be written and means the same afterwards.
func FuzzLoad(f *testing.F) {
	good, err := agent().Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"role":"server","node":"x","founded":true}`))
	f.Add([]byte(`null`))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := decode(data)
		if err != nil {
			return
		}
		written, err := m.Encode()
		if err != nil {
			t.Fatalf("Encode of what was accepted: %v", err)
		}
		again, err := decode(written)
		if err != nil {
			t.Fatal(err)
		}
		same := cmp.Options{cmpopts.EquateComparable(netip.Prefix{}), cmpopts.EquateEmpty()}
		if diff := cmp.Diff(m, again, same); diff != "" {
			t.Error(diff)
		}
	})
}

func TestNodeMask(t *testing.T) {
	for prefix, want := range map[string]int{
		"10.42.0.0/16": 24, "10.0.0.0/8": 24, "10.42.0.0/21": 25, "10.42.0.0/24": 28, "10.42.0.0/27": 28, "10.42.0.0/30": 30,
		"fd42::/48": 64, "fd42::/56": 64, "fd42::/64": 68, "fd42::/40": 56, "fd42::/112": 116, "fd42::/126": 128,
	} {
		if got := NodeMask(netip.MustParsePrefix(prefix)); got != want {
			t.Errorf("NodeMask(%s) = %d; want %d", prefix, got, want)
		}
	}
}
