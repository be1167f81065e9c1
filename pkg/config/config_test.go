package config

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/cairn-os/cairn/pkg/cmdline"
)

const key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ5ZHTmHtSYkLbEHXXFXZUQhzzMS8jOtBJTVdRV/Zc6t till@store"

const full = `# cloud-config
hostname: till-07
ssh_authorized_keys:
- ` + key + `
write_files:
- path: /etc/motd
  content: |
    hello
      world
  owner: root:root
  permissions: 0600
- {path: /etc/packed, content: H4sIAAAAAAAAA8tIzcnJBwCGphA2BQAAAA==, encoding: gz+b64}
run_cmd: ["echo a: b"]
cairn:
  role: server
  server_url: https://[2001:db8::2]
  token: 0421
  cluster:
    pod_cidr: [10.64.0.0/16, "fd00:64::/56"]
    service_cidr: [10.65.0.0/16, "fd00:65::/112"]
    flannel: host-gw
    tls_sans: [till.example.com, 192.0.2.100]
    node_ip: 192.0.2.7
    zone: backroom
    disable: [coredns, traefik]
    certificate_life: 10m
    audit: true
    kube_apiserver_args: [v=2, profiling]
    kube_controller_manager_args: "node-monitor-period=5s"
    kube_scheduler_args: [v=3]
    kubelet_args: ["eviction-hard=memory.available<50Mi,nodefs.available<5%"]
    kube_proxy_args: [v=4]
  labels: {store: 0421, open: true, example.com/x: ""}
  taints: [role=till:NoSchedule, "gpu:NoExecute"]
  sysctls:
    net.ipv4.ip_forward: 1
  modules: [wireguard, loop max_loop=16]
  dns_nameservers: [10.0.0.2, "2001:db8::1"]
  ntp_servers: [pool.ntp.org]
  environment: {HTTPS_PROXY: "http://10.0.0.9:3128"}
  network:
    nameservers: [9.9.9.9]
    search: [store.example.com]
    interfaces:
      eth0:
        addresses: [192.0.2.7/24]
        gateway: 192.0.2.1
        mtu: 1400
        routes: [{to: 10.0.0.0/8, via: 192.0.2.2, metric: 5}]
      uplink: {mac: "52:54:00:12:34:56", dhcp: true}
  datastore:
    endpoint: mysql://shop:p@ss(word)@tcp(10.0.0.3:3306)/shop
    ca_file: /var/lib/db/ca.pem
    cert_file: /var/lib/db/cert.pem
    key_file: /var/lib/db/key.pem
  upgrade:
    source: https://till:hunter2@updates.example.com/cairn
    channel: edge
    auto: true
    interval: 12h
    window: {days: [mon, thu], start: 22:30, duration: 3h}
    rate_limit: 1.5Mbit
  health:
    deadline: 15m
    settle: 1m
    critical_pods:
    - {namespace: shop, selector: "app=till,tier in (front, back)"}
    - {namespace: kube-system}
    probes:
    - {name: till, http: {url: "https://127.0.0.1/healthz", status: 204, host: till.example.com, insecure: true}, timeout: 10s}
    - {name: printer, tcp: "192.0.2.20:9100"}
    - {name: disk, exec: [/usr/bin/test, -d, /var/lib/shop]}
`

var wantFull = Config{
	Hostname:          "till-07",
	SSHAuthorizedKeys: []string{key},
	WriteFiles: []File{
		{Path: "/etc/motd", Content: "hello\n  world\n", Owner: "root:root", Permissions: "0600"},
		{Path: "/etc/packed", Content: "H4sIAAAAAAAAA8tIzcnJBwCGphA2BQAAAA==", Encoding: "gz+b64"},
	},
	RunCmd: []string{"echo a: b"},
	Cairn: Cairn{
		Role: "server", ServerURL: "https://[2001:db8::2]", Token: "0421",
		Cluster: Cluster{
			PodCIDR: []string{"10.64.0.0/16", "fd00:64::/56"}, ServiceCIDR: []string{"10.65.0.0/16", "fd00:65::/112"}, Flannel: "host-gw",
			TLSSANs: []string{"till.example.com", "192.0.2.100"}, NodeIP: []string{"192.0.2.7"}, Zone: "backroom",
			Disable: []string{"coredns", "traefik"}, CertificateLife: "10m", Audit: true,
			KubeAPIServerArgs: []string{"v=2", "profiling"}, KubeControllerManagerArgs: []string{"node-monitor-period=5s"},
			KubeSchedulerArgs: []string{"v=3"}, KubeProxyArgs: []string{"v=4"},
			KubeletArgs: []string{"eviction-hard=memory.available<50Mi,nodefs.available<5%"},
		},
		Labels:         map[string]string{"store": "0421", "open": "true", "example.com/x": ""},
		Taints:         []string{"role=till:NoSchedule", "gpu:NoExecute"},
		Sysctls:        map[string]string{"net.ipv4.ip_forward": "1"},
		Modules:        []string{"wireguard", "loop max_loop=16"},
		DNSNameservers: []string{"10.0.0.2", "2001:db8::1"},
		NTPServers:     []string{"pool.ntp.org"},
		Environment:    map[string]string{"HTTPS_PROXY": "http://10.0.0.9:3128"},
		Network: Network{
			Nameservers: []string{"9.9.9.9"},
			Search:      []string{"store.example.com"},
			Interfaces: map[string]Interface{
				"eth0": {
					Addresses: []string{"192.0.2.7/24"}, Gateway: "192.0.2.1", MTU: 1400,
					Routes: []Route{{To: "10.0.0.0/8", Via: "192.0.2.2", Metric: 5}},
				},
				"uplink": {MAC: "52:54:00:12:34:56", DHCP: true},
			},
		},
		Datastore: Datastore{
			Endpoint: "mysql://shop:p@ss(word)@tcp(10.0.0.3:3306)/shop",
			CAFile:   "/var/lib/db/ca.pem", CertFile: "/var/lib/db/cert.pem", KeyFile: "/var/lib/db/key.pem",
		},
		Upgrade: Upgrade{
			Source: "https://till:hunter2@updates.example.com/cairn", Channel: "edge", Auto: true, IntervalText: "12h",
			Window: Window{Days: []string{"mon", "thu"}, Start: "22:30", DurationText: "3h"}, RateLimitText: "1.5Mbit",
		},
		Health: Health{
			DeadlineText: "15m", SettleText: "1m",
			CriticalPods: []CriticalPods{{Namespace: "shop", Selector: "app=till,tier in (front, back)"}, {Namespace: "kube-system"}},
			Probes: []Probe{
				{Name: "till", HTTP: HTTPProbe{URL: "https://127.0.0.1/healthz", Status: 204, Host: "till.example.com", Insecure: true}, TimeoutText: "10s"},
				{Name: "printer", TCP: "192.0.2.20:9100"},
				{Name: "disk", Exec: []string{"/usr/bin/test", "-d", "/var/lib/shop"}},
			},
		},
	},
}

func TestParse(t *testing.T) {
	for _, text := range []string{full, "\ufeff" + full, strings.ReplaceAll(full, "\ncairn:", "\nk3os:"), strings.ReplaceAll(full, "\n", "\r\n"), "---\n" + full + "...\n"} {
		c, err := Parse("f", []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(&wantFull, c); diff != "" {
			t.Error(diff)
		}
		round(t, c)
	}
}

// round checks that the written form of c reads as c.
func round(t *testing.T, c *Config) {
	t.Helper()
	text, err := c.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	again, err := Parse("marshalled", text)
	if err != nil {
		t.Fatalf("%v of\n%s", err, text)
	}
	if diff := cmp.Diff(c, again, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("%s\nof\n%s", diff, text)
	}
}

// TestK3OSSpellings reads what k3OS accepts: singular, camelCase lowered, scalars for lists.
func TestK3OSSpellings(t *testing.T) {
	text := `
sshAuthorizedKey: ` + key + `
writefile: [{path: /etc/x, permission: "0600"}]
runcmd: true && false
k3os:
  dnsNameserver: 10.0.0.2
  ntp_server: 10.0.0.3
  sysctl: {kernel.printk: 4 4 1 7}
  label: {a: 1.50}
  module: loop
  env: {}
`
	_, err := Parse("f", []byte(text))
	if want := "f:11: cairn.env: unknown key; known here: role, server_url, token, k3s_args, cluster, labels, taints, sysctls, modules, dns_nameservers, ntp_servers, environment, network, datastore, upgrade, health"; err == nil || err.Error() != want {
		t.Errorf("error = %v; want %s", err, want)
	}
	c, err := Parse("f", []byte(strings.Replace(text, "  env: {}\n", "", 1)))
	want := &Config{
		SSHAuthorizedKeys: []string{key},
		WriteFiles:        []File{{Path: "/etc/x", Permissions: "0600"}},
		RunCmd:            []string{"true && false"},
		Cairn: Cairn{
			DNSNameservers: []string{"10.0.0.2"}, NTPServers: []string{"10.0.0.3"}, Sysctls: map[string]string{"kernel.printk": "4 4 1 7"},
			Labels: map[string]string{"a": "1.50"}, Modules: []string{"loop"},
		},
	}
	if diff := cmp.Diff(want, c); diff != "" || err != nil {
		t.Error(err, diff)
	}
}

func TestNoConfig(t *testing.T) {
	for _, text := range []string{"", "\n", "# only\n# comments\n", "---\n", "--- # x\n...\n", "null\n", "\ufeff"} {
		if _, err := Parse("f", []byte(text)); !errors.Is(err, ErrNoConfig) {
			t.Errorf("Parse(%q) error = %v; want ErrNoConfig", text, err)
		}
	}
	c, err := Parse("f", []byte("{}"))
	if diff := cmp.Diff(&Config{}, c); diff != "" || err != nil {
		t.Error(err, diff)
	}
	// A section with all below it commented out says nothing.
	c, err = Parse("f", []byte("cairn:\nrun_cmd:\n"))
	if diff := cmp.Diff(&Config{}, c); diff != "" || err != nil {
		t.Error(err, diff)
	}
}

func TestLoad(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.yaml")
	if _, err := Load(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Load of a missing file: %v", err)
	}
	text, err := wantFull.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := Load(path)
	if diff := cmp.Diff(&wantFull, c); diff != "" || err != nil {
		t.Error(err, diff)
	}
}

func TestMerge(t *testing.T) {
	line := cmdline.Parse(`cairn.slot=a hostname=till-08 k3os.dns_nameserver=10.0.0.2 k3os.dns_nameserver=1.1.1.1 ` +
		`k3os.sysctl.net.ipv4.ip_forward=1 k3os.label.example.com/x=y k3os.network.interfaces.eth0.7.addresses=192.0.2.7/24 k3os.network.interfaces.eth0.7.mtu=1400`)
	c, text, err := Merge([]Source{
		{Name: "seed.yaml", Data: []byte("hostname: a\nrun_cmd: [one, two]\ncairn:\n  labels: {a: x, b: x}\n  network: {interfaces: {eth0: {dhcp: true}, eth1: {dhcp: true, mtu: 1400}}}\n")},
		CommandLine(line),
		{Name: "empty.yaml", Data: []byte("# nothing\n")},
		{Name: "config.yaml", Data: []byte("run_cmd: three\nk3os:\n  labels:\n    b: z\n  network: {interfaces: {eth1: {addresses: [192.0.2.9/24]}}}\n")},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := &Config{
		Hostname: "till-08",
		RunCmd:   []string{"three"},
		Cairn: Cairn{
			Labels:         map[string]string{"a": "x", "b": "z", "example.com/x": "y"},
			Sysctls:        map[string]string{"net.ipv4.ip_forward": "1"},
			DNSNameservers: []string{"10.0.0.2", "1.1.1.1"},
			Network: Network{Interfaces: map[string]Interface{
				"eth0":   {DHCP: true},
				"eth1":   {Addresses: []string{"192.0.2.9/24"}},
				"eth0.7": {Addresses: []string{"192.0.2.7/24"}, MTU: 1400},
			}},
		},
	}
	if diff := cmp.Diff(want, c); diff != "" {
		t.Error(diff)
	}
	again, err := Parse("merged", text)
	if diff := cmp.Diff(want, again); diff != "" || err != nil {
		t.Errorf("%v %s of\n%s", err, diff, text)
	}
	for _, want := range []string{"# kernel command line\nhostname: till-08\n", "# config.yaml:1\nrun_cmd:\n", "    # seed.yaml:4\n    a: x\n", "    # config.yaml:4\n    b: z\n", "# config.yaml:5\n      eth1:\n"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
}

func TestMergeNothing(t *testing.T) {
	c, text, err := Merge([]Source{{Name: "a", Data: []byte("#\n")}, CommandLine(cmdline.Parse("quiet"))})
	if diff := cmp.Diff(&Config{}, c); diff != "" || err != nil {
		t.Error(err, diff)
	}
	if _, err := Parse("merged", text); err != nil {
		t.Errorf("Parse(%q): %v", text, err)
	}
}

// TestMergeBad wants the problems of all sources and nothing of the good ones.
func TestMergeBad(t *testing.T) {
	c, text, err := Merge([]Source{
		{Name: "good", Data: []byte("hostname: a\n")},
		{Name: "bad", Data: []byte("hostnme: a\n")},
		CommandLine(cmdline.Parse("hostname=_ cairn.tokn=secret cairn.labels=x cairn.network.interfaces.eth0=dhcp cairn.token=a k3os.token=b")),
	})
	if c != nil || text != nil {
		t.Errorf("Merge = %v, %q beside an error", c, text)
	}
	want := `bad:1: hostnme: unknown key; did you mean hostname?
kernel command line: hostname: want at most 63 lower-case letters, digits and - . (RFC 1123), got "_"
kernel command line: cairn.tokn: unknown key; did you mean token?
kernel command line: cairn.labels: want keys and values, got text
kernel command line: cairn.network.interfaces.eth0: want keys and values, got text
kernel command line: cairn: given twice, as cairn and as k3os`
	if diff := cmp.Diff(want, err.Error()); diff != "" {
		t.Error(diff)
	}
}

// TestTypesAreValues keeps handlers, channels and clients out of the configuration.
func TestTypesAreValues(t *testing.T) {
	var walk func(t2 reflect.Type, at string)
	walk = func(typ reflect.Type, at string) {
		switch typ.Kind() {
		case reflect.Func, reflect.Chan, reflect.Interface, reflect.Pointer:
			t.Errorf("%s is a %s", at, typ.Kind())
		case reflect.Slice, reflect.Map:
			walk(typ.Elem(), at+"[]")
		case reflect.Struct:
			if typ.NumField() > 25 {
				t.Errorf("%s has %d fields; at most 25", at, typ.NumField())
			}
			for _, f := range fields(typ) {
				for _, name := range []string{f.check, f.keys} {
					if checks[name] == nil {
						t.Errorf("%s.%s names the check %q, which does not exist", at, f.name, name)
					}
				}
				if f.name == "" || f.name == "-" {
					t.Errorf("%s has a field without a key", at)
				}
				walk(f.typ, at+"."+f.name)
			}
		}
	}
	walk(reflect.TypeFor[Config](), "Config")
}

func TestData(t *testing.T) {
	for _, tt := range []struct {
		f    File
		want string
	}{
		{File{Content: "a"}, "a"},
		{File{Content: "aGVs\n bG8=\n", Encoding: "b64"}, "hello"},
		{File{Content: "aGVsbG8=", Encoding: "base64"}, "hello"},
		{File{Content: "H4sIAAAAAAAAA8tIzcnJBwCGphA2BQAAAA==", Encoding: "gzip+b64"}, "hello"},
		{File{Content: "\x1f\x8b\b\x00\x00\x00\x00\x00\x00\x03\xcbH\xcd\xc9\xc9\a\x00\x86\xa6\x106\x05\x00\x00\x00", Encoding: "gz"}, "hello"},
	} {
		got, err := tt.f.Data()
		if string(got) != tt.want || err != nil {
			t.Errorf("Data(%v) = %q, %v; want %q", tt.f, got, err, tt.want)
		}
	}
}
