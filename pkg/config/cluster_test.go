package config

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-os/cairn/pkg/cmdline"
)

const pin = "K1000112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"

// badCluster are bad documents about the cluster, in the form of bad.
var badCluster = []struct{ name, text, want string }{
	{"role", "cairn: {role: master}\n", `1: cairn.role: want server, agent or witness, got "master"`},
	{"role without server", "cairn:\n  token: hunter2\n  role: witness\n", "3: cairn.role: a machine of this role needs cairn.server_url as well, the https://HOST:6443 of a server"},
	{"server without token", "cairn:\n  server_url: https://a\n", "2: cairn.server_url: joining a server needs cairn.token as well; `cairnctl token` prints it there"},
	{"server_url", "cairn: {token: hunter2, server_url: 'http://a:6443'}\n", `1: cairn.server_url: want https://HOST or https://HOST:6443 of a server that is up, and nothing after it, got "http://a:6443"`},
	{"server_url path", "cairn: {token: hunter2, server_url: 'https://a:6443/'}\n", `1: cairn.server_url: want https://HOST or https://HOST:6443 of a server that is up, and nothing after it, got "https://a:6443/"`},
	{"token of half a pin", "cairn:\n  token: K10abc::server:hunter2\n", "2: cairn.token: the token's CA hash has 3 characters or others than 0-9a-f; want 64: copy it again, whole; want K10<64 hexadecimal digits>::ID:SECRET, as `cairnctl token` prints it, or a secret that does not begin with K10"},
	{"token without id", "cairn:\n  token: " + pin + "hunter2\n", "2: cairn.token: the token begins with K10 but has no \"::\" after the CA's hash: copy it again, whole; want K10<64 hexadecimal digits>::ID:SECRET, as `cairnctl token` prints it, or a secret that does not begin with K10"},
	{"pod_cidr", "cairn:\n  cluster:\n    pod_cidr: [10.0.0.1/16, 10.0.0.0/25, 'fd00::/40', '::ffff:10.0.0.0/112']\n",
		strings.Join(each("3: cairn.cluster.pod_cidr[%d]: want a network such as 10.42.0.0/16, of /24 or larger, or an IPv6 one of /48 to /64, got %q",
			"10.0.0.1/16", "10.0.0.0/25", "fd00::/40", "::ffff:10.0.0.0/112"), "\n")},
	{"service_cidr", "cairn:\n  cluster:\n    service_cidr: [10.0.0.0/11, 10.0.0.0/29, 'fd00::/64']\n",
		strings.Join(each("3: cairn.cluster.service_cidr[%d]: want a network such as 10.43.0.0/16, of /12 to /28, or an IPv6 one of /108 to /124, got %q",
			"10.0.0.0/11", "10.0.0.0/29", "fd00::/64"), "\n")},
	{"two of a family", "cairn:\n  cluster:\n    pod_cidr:\n    - 10.0.0.0/16\n    - 10.1.0.0/16\n    node_ip: ['fd00::1', 'fd00::2']\n",
		"5: cairn.cluster.pod_cidr[1]: a second IPv4 one; want one of each family\n6: cairn.cluster.node_ip[1]: a second IPv6 one; want one of each family"},
	{"families", "cairn:\n  cluster:\n    pod_cidr: 'fd00::/56'\n", "3: cairn.cluster.pod_cidr: want pod_cidr and service_cidr of the same address families in the same order; they are fd00::/56 and 10.43.0.0/16"},
	{"family order", "cairn:\n  cluster:\n    pod_cidr: ['fd00::/56', 10.42.0.0/16]\n    service_cidr: [10.43.0.0/16, 'fd01::/112']\n",
		"4: cairn.cluster.service_cidr: want pod_cidr and service_cidr of the same address families in the same order; they are fd00::/56, 10.42.0.0/16 and 10.43.0.0/16, fd01::/112"},
	{"overlap", "cairn:\n  cluster:\n    pod_cidr: 10.0.0.0/8\n", "3: cairn.cluster.pod_cidr: want a pod network and a service network that do not overlap; they are 10.0.0.0/8 and 10.43.0.0/16"},
	{"node_ip", "cairn:\n  cluster:\n    node_ip: [127.0.0.1, eth0, 'fe80::1']\n",
		strings.Join(each("3: cairn.cluster.node_ip[%d]: want an IP address by which others reach this machine, got %q", "127.0.0.1", "eth0", "fe80::1"), "\n")},
	{"node_ip of a pod", "cairn:\n  cluster:\n    node_ip: 10.42.0.7\n", "3: cairn.cluster.node_ip: is inside of the pod network or the service network, got 10.42.0.7"},
	{"flannel", "cairn: {cluster: {flannel: wireguard-native}}\n", `1: cairn.cluster.flannel: want vxlan, host-gw, wireguard or none, got "wireguard-native"`},
	{"flannel and not", "cairn:\n  cluster:\n    flannel: vxlan\n    disable: flannel\n", "3: cairn.cluster.flannel: flannel is among cairn.cluster.disable as well; want one of the two"},
	{"tls_sans", "cairn: {cluster: {tls_sans: ['https://a']}}\n", `1: cairn.cluster.tls_sans[0]: want an IP address or a host name, got "https://a"`},
	{"zone", "cairn: {cluster: {zone: 'a b'}}\n", `1: cairn.cluster.zone: want at most 63 letters, digits and - _ . with a letter or digit at both ends, got "a b"`},
	{"two zones", "cairn:\n  labels: {topology.kubernetes.io/zone: a}\n  cluster:\n    zone: b\n", "4: cairn.cluster.zone: the label topology.kubernetes.io/zone says another zone; want it once"},
	{"battery", "cairn: {cluster: {disable: [kube-proxy]}}\n",
		`1: cairn.cluster.disable[0]: want one of dns, flannel, helm, local-storage, metrics-server, network-policy, servicelb, traefik, got "kube-proxy"`},
	{"certificate_life", "cairn: {cluster: {certificate_life: 1m}}\n", `1: cairn.cluster.certificate_life: want a time such as 8760h, at least 3m and at most 87600h, got "1m"`},
	{"component argument", "cairn: {cluster: {kubelet_args: [--max-pods=50, 'max pods']}}\n",
		strings.Join(each("1: cairn.cluster.kubelet_args[%d]: want the name of an argument and its value, name=value, without -- before it, got %q", "--max-pods=50", "max pods"), "\n")},
	{"component argument twice", "cairn:\n  cluster:\n    kube_apiserver_args:\n    - v=2\n    - v=3\n", "5: cairn.cluster.kube_apiserver_args[1]: v is given twice; want one value"},
	{"datastore of an agent", "cairn:\n  server_url: https://a\n  token: hunter2\n  datastore:\n    endpoint: postgres://u:hunter2@db/x\n",
		"5: cairn.datastore.endpoint: only servers talk to the datastore, and this machine is of the role agent"},
	// k3s_args
	{"k3s argument", "k3os:\n  k3s_args:\n  - server\n  - --snapshotter=hunter2\n", "4: cairn.k3s_args[1]: --snapshotter of k3s is not taken over; see the keys of cairn.cluster"},
	{"k3s words", "k3os: {k3s_args: server --token hunter2}\n", "1: cairn.k3s_args[0]: want server or agent first and then k3s's arguments, each an entry that begins with --"},
	{"k3s command", "k3os: {k3s_args: [etcd-snapshot]}\n", "1: cairn.k3s_args[0]: want server or agent first and then k3s's arguments, each an entry that begins with --"},
	{"k3s no value", "k3os: {k3s_args: [--token, --cluster-init]}\n", "1: cairn.k3s_args[0]: --token wants a value, after = or as the next entry"},
	{"k3s no value at the end", "k3os: {k3s_args: [server, --token]}\n", "1: cairn.k3s_args[1]: --token wants a value, after = or as the next entry"},
	{"k3s switch", "k3os: {k3s_args: [--cluster-init=yes]}\n", "1: cairn.k3s_args[0]: --cluster-init is true or false"},
	{"k3s values", "k3os:\n  k3s_args:\n  - --cluster-cidr=10.0.0.1/8\n  - --token\n  - hunter2 x\n  - --node-label=-a=b\n  - --disable=coredns,x\n  - --kubelet-arg=--v=2\n",
		`3: cairn.k3s_args[0]: --cluster-cidr: want a network such as 10.42.0.0/16, of /24 or larger, or an IPv6 one of /48 to /64, got "10.0.0.1/8"` + "\n" +
			"4: cairn.k3s_args[1]: --token: want 1 to 512 letters, digits and signs without a space\n" +
			"6: cairn.k3s_args[3]: --node-label: bad key: want at most 63 letters, digits and - _ . with a letter or digit at both ends\n" +
			`7: cairn.k3s_args[4]: --disable: want one of dns, flannel, helm, local-storage, metrics-server, network-policy, servicelb, traefik, got "x"` + "\n" +
			`8: cairn.k3s_args[5]: --kubelet-arg: want the name of an argument and its value, name=value, without -- before it, got "--v=2"`},
	{"k3s twice", "k3os: {k3s_args: [--flannel-backend=none, --flannel-backend=vxlan]}\n", "1: cairn.k3s_args[1]: --flannel-backend: given twice, with another value"},
	{"k3s and key", "k3os:\n  server_url: https://a\n  token: hunter2\n  labels: {a: b}\n  k3s_args:\n  - agent\n  - --token=hunter22\n  - --node-label=a=c\n",
		"7: cairn.k3s_args: cairn.token is given as well, with another value; want it once\n8: cairn.k3s_args: cairn.labels.a is given as well, with another value; want it once"},
	{"k3s and key of one decision", "cairn:\n  cluster: {pod_cidr: 10.1.0.0/16}\n  k3s_args:\n  - --cluster-cidr\n  - 10.2.0.0/16\n",
		"4: cairn.k3s_args: cairn.cluster.pod_cidr is given as well, with another value; want it once"},
	{"k3s and component argument", "cairn:\n  cluster: {kubelet_args: [v=1]}\n  k3s_args:\n  - --kubelet-arg=v=2\n", "4: cairn.cluster.kubelet_args[1]: v is given twice; want one value"},
	{"k3s agent without server", "k3os:\n  k3s_args:\n  - agent\n", "3: cairn.role: a machine of this role needs cairn.server_url as well, the https://HOST:6443 of a server"},
	{"k3s datastore", "k3os:\n  k3s_args:\n  - --datastore-certfile=/a\n", "3: cairn.datastore.cert_file: want key_file as well, the key of the certificate"},
}

const k3sDocument = `hostname: till-07
k3os:
  token: s3cret
  labels: {store: "0421"}
  taints: ["a=b:NoSchedule"]
  k3s_args:
  - server
  - --cluster-init
  - --server
  - https://10.0.0.2:6443
  - --token=s3cret
  - "--disable=coredns,traefik"
  - --disable-network-policy
  - -disable=servicelb
  - --node-name
  - Till-07
  - --node-ip=10.0.0.7,fd00::7
  - --cluster-cidr=10.64.0.0/16
  - --cluster-cidr=fd00:64::/56
  - --service-cidr=10.65.0.0/16,fd00:65::/112
  - --tls-san=a.example.com
  - --tls-san=b.example.com
  - --node-label=role=till
  - --node-label
  - example.com/x=y
  - --node-taint=till=yes:NoExecute
  - --flannel-backend=wireguard-native
  - --kubelet-arg=eviction-hard=memory.available<50Mi,nodefs.available<5%
  - --kubelet-arg=max-pods=50
  - --kube-proxy-arg=v=2
  - --kube-apiserver-arg=v=3
  - --kube-controller-manager-arg=v=4
  - --kube-scheduler-arg=v=5
  - --write-kubeconfig-mode
  - "0644"
  - --datastore-endpoint=postgres://u:p@db/x
`

var wantK3s = Config{
	Hostname: "till-07",
	Cairn: Cairn{
		Role: "server", ServerURL: "https://10.0.0.2:6443", Token: "s3cret",
		Labels: map[string]string{"store": "0421", "role": "till", "example.com/x": "y"},
		Taints: []string{"a=b:NoSchedule", "till=yes:NoExecute"},
		Cluster: Cluster{
			PodCIDR: []string{"10.64.0.0/16", "fd00:64::/56"}, ServiceCIDR: []string{"10.65.0.0/16", "fd00:65::/112"}, Flannel: "wireguard",
			TLSSANs: []string{"a.example.com", "b.example.com"}, NodeIP: []string{"10.0.0.7", "fd00::7"},
			Disable:     []string{"coredns", "traefik", "network-policy", "servicelb"},
			KubeletArgs: []string{"eviction-hard=memory.available<50Mi,nodefs.available<5%", "max-pods=50"}, KubeProxyArgs: []string{"v=2"},
			KubeAPIServerArgs: []string{"v=3"}, KubeControllerManagerArgs: []string{"v=4"}, KubeSchedulerArgs: []string{"v=5"},
		},
		Datastore: Datastore{Endpoint: "postgres://u:p@db/x"},
	},
}

func TestK3sArgs(t *testing.T) {
	c, err := Parse("f", []byte(k3sDocument))
	if diff := cmp.Diff(&wantK3s, c); diff != "" || err != nil {
		t.Error(err, diff)
	}
	_, text, err := Merge([]Source{{Name: "seed.yaml", Data: []byte(k3sDocument)}})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"    # seed.yaml:6, k3s_args\n    flannel: wireguard\n", "  # seed.yaml:3\n  token: s3cret\n"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	if strings.Contains(string(text), "k3s_args:") {
		t.Errorf("k3s_args are left in\n%s", text)
	}
	again, err := Parse("merged", text)
	if diff := cmp.Diff(&wantK3s, again); diff != "" || err != nil {
		t.Error(err, diff)
	}
}

// TestK3sArgsMerge: the arguments are one list, which a later source replaces.
func TestK3sArgsMerge(t *testing.T) {
	c, _, err := Merge([]Source{
		{Name: "a", Data: []byte("k3os:\n  k3s_args: [server, --disable=traefik, --tls-san=a]\n")},
		{Name: "b", Data: []byte("k3os:\n  k3s_args: [server, --tls-san=b]\n")},
		CommandLine(cmdline.Parse("cairn.cluster.tls_sans=c cairn.cluster.flannel=none")),
	})
	want := &Config{Cairn: Cairn{Role: "server", Cluster: Cluster{Flannel: "none", TLSSANs: []string{"c", "b"}}}}
	if diff := cmp.Diff(want, c); diff != "" || err != nil {
		t.Error(err, diff)
	}
}

// TestWhole: what is wrong only with several sources together names the file and the line to change.
func TestWhole(t *testing.T) {
	for _, tt := range []struct {
		name, first, second, line, want string
	}{
		{"good in two", "cairn: {server_url: 'https://a'}\n", "cairn: {token: x}\n", "", ""},
		{"good by line", "cairn: {server_url: 'https://a'}\n", "#\n", "cairn.token=x", ""},
		{"no token", "hostname: a\n", "cairn:\n  server_url: https://a\n", "", "b.yaml:2: cairn.server_url: joining a server needs cairn.token as well; `cairnctl token` prints it there"},
		{"an address that is a pod's elsewhere", "cairn: {server_url: 'https://a', token: x}\n", "cairn: {cluster: {node_ip: 10.42.0.7, pod_cidr: 'fd00::/56'}}\n", "", ""},
		{"by line", "#\n", "#\n", "cairn.server_url=https://a", "kernel command line: cairn.server_url: joining a server needs cairn.token as well; `cairnctl token` prints it there"},
		{"overlap", "cairn:\n  cluster:\n    pod_cidr: 10.0.0.0/9\n", "cairn: {cluster: {service_cidr: 10.1.0.0/16}}\n", "",
			"b.yaml:1: cairn.cluster.service_cidr: want a pod network and a service network that do not overlap; they are 10.0.0.0/9 and 10.1.0.0/16"},
		{"datastore", "cairn:\n  datastore:\n    endpoint: postgres://u:p@h/x\n", "cairn: {server_url: 'https://a', token: x}\n", "",
			"a.yaml:3: cairn.datastore.endpoint: only servers talk to the datastore, and this machine is of the role agent"},
		{"k3s_args and key", "k3os:\n  k3s_args:\n  - --flannel-backend=none\n", "cairn: {cluster: {flannel: vxlan}}\n", "",
			"a.yaml:3: cairn.k3s_args: cairn.cluster.flannel is given as well, with another value; want it once"},
		{"role of k3s_args", "k3os:\n  k3s_args:\n  - agent\n", "cairn: {token: x}\n", "",
			"a.yaml:3: cairn.role: a machine of this role needs cairn.server_url as well, the https://HOST:6443 of a server"},
	} {
		_, text, err := Merge([]Source{
			{Name: "a.yaml", Data: []byte(tt.first)}, CommandLine(cmdline.Parse(tt.line)), {Name: "b.yaml", Data: []byte(tt.second)},
		})
		got := ""
		if err != nil {
			got = err.Error()
		}
		if got != tt.want || err != nil && text != nil {
			t.Errorf("%s: Merge = %q, %v; want %q", tt.name, text, err, tt.want)
		}
	}
}

// TestCommandLineCluster: the kernel command line can carry every key.
func TestCommandLineCluster(t *testing.T) {
	c, _, err := Merge([]Source{CommandLine(cmdline.Parse(`cairn.role=server cairn.server_url=https://10.0.0.2 cairn.token=` + pin + `::server:secret
		cairn.cluster.pod_cidr=10.64.0.0/16 cairn.cluster.pod_cidr=fd00:64::/56 cairn.cluster.service_cidr=10.65.0.0/16 cairn.cluster.service_cidr=fd00:65::/112
		cairn.cluster.flannel=none cairn.cluster.tls_sans=a cairn.cluster.node_ip=10.0.0.7 cairn.cluster.zone=z cairn.cluster.disable=helm
		cairn.cluster.certificate_life=24h cairn.cluster.audit cairn.cluster.kube_apiserver_args=v=2 cairn.cluster.kube_controller_manager_args=v=2
		cairn.cluster.kube_scheduler_args=v=2 cairn.cluster.kubelet_args="a=b c" cairn.cluster.kube_proxy_args=v=2`))})
	want := &Config{Cairn: Cairn{
		Role: "server", ServerURL: "https://10.0.0.2", Token: pin + "::server:secret", Cluster: Cluster{
			PodCIDR: []string{"10.64.0.0/16", "fd00:64::/56"}, ServiceCIDR: []string{"10.65.0.0/16", "fd00:65::/112"}, Flannel: "none", TLSSANs: []string{"a"},
			NodeIP: []string{"10.0.0.7"}, Zone: "z", Disable: []string{"helm"}, CertificateLife: "24h", Audit: true,
			KubeAPIServerArgs: []string{"v=2"}, KubeControllerManagerArgs: []string{"v=2"}, KubeSchedulerArgs: []string{"v=2"}, KubeletArgs: []string{"a=b c"}, KubeProxyArgs: []string{"v=2"},
		},
	}}
	if diff := cmp.Diff(want, c); diff != "" || err != nil {
		t.Error(err, diff)
	}
	c, _, err = Merge([]Source{CommandLine(cmdline.Parse("k3os.server_url=https://a:7 k3os.token=x k3os.k3s_args=agent k3os.k3s_args=--node-label k3os.k3s_args=a.b/c=d"))})
	want = &Config{Cairn: Cairn{Role: "agent", ServerURL: "https://a:7", Token: "x", Labels: map[string]string{"a.b/c": "d"}}}
	if diff := cmp.Diff(want, c); diff != "" || err != nil {
		t.Error(err, diff)
	}
}

func TestEffective(t *testing.T) {
	for _, tt := range []struct {
		c            Cairn
		role, server string
	}{
		{Cairn{}, RoleServer, ""},
		{Cairn{ServerURL: "https://a"}, RoleAgent, "a:6443"},
		{Cairn{ServerURL: "https://[fd00::1]", Role: RoleServer}, RoleServer, "[fd00::1]:6443"},
		{Cairn{ServerURL: "https://10.0.0.2:443", Role: RoleWitness}, RoleWitness, "10.0.0.2:443"},
	} {
		if c := (&Config{Cairn: tt.c}); c.EffectiveRole() != tt.role || tt.c.Server() != tt.server {
			t.Errorf("%+v: role %s, server %s; want %s, %s", tt.c, c.EffectiveRole(), tt.c.Server(), tt.role, tt.server)
		}
	}
	c := wantFull.Cairn.Cluster
	if got, want := c.PodCIDRs(), []netip.Prefix{netip.MustParsePrefix("10.64.0.0/16"), netip.MustParsePrefix("fd00:64::/56")}; !cmp.Equal(want, got, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })) {
		t.Errorf("PodCIDRs() = %v; want %v", got, want)
	}
	if got := c.ServiceCIDRs(); len(got) != 2 || got[0].String() != "10.65.0.0/16" {
		t.Errorf("ServiceCIDRs() = %v", got)
	}
	if got := c.NodeIPs(); len(got) != 1 || got[0].String() != "192.0.2.7" {
		t.Errorf("NodeIPs() = %v", got)
	}
	if c.Life() != 10*time.Minute || (Cluster{}).Life() != 0 {
		t.Errorf("Life() = %v and %v; want 10m and 0", c.Life(), (Cluster{}).Life())
	}
	if !c.Disabled("dns") || c.Disabled("helm") || c.FlannelBackend() != "host-gw" || (Cluster{Disable: []string{"flannel"}}).FlannelBackend() != "none" {
		t.Errorf("disabled: %v; want dns and traefik", c.Disable)
	}
}

func TestServerURL(t *testing.T) {
	for v, good := range map[string]bool{
		"https://a": true, "https://a.example.com:6443": true, "https://10.0.0.2:1": true, "https://[fd00::1]:6443": true,
		"": false, "a": false, "https://": false, "https://a:": false, "https://a:0": false, "https://a:65536": false, "https://a:x": false, "https://u@a": false,
		"https://a?b": false, "https://a?": false, "https://a#": false, "https://a/b": false, "https://[fe80::1%25eth0]": false, "https://a_b": false, "https://0.0.0.0": false,
		"HTTPS://a": true,
	} {
		if message := serverURL(v); (message == "") != good {
			t.Errorf("serverURL(%q) = %q; want it good: %v", v, message, good)
		}
	}
}

// FuzzCommandLine: whatever the kernel is told, the configuration is whole or there is none.
func FuzzCommandLine(f *testing.F) {
	f.Add("cairn.role=server k3os.k3s_args=server k3os.k3s_args=--node-label k3os.k3s_args=a=b cairn.labels.a=b")
	f.Add("k3os.k3s_args=--cluster-cidr=10.1.0.0/16,fd00::/56 k3os.k3s_args=--service-cidr=10.2.0.0/16,fd01::/112")
	f.Add("cairn.cluster=x cairn.cluster.pod_cidr.x=y cairn.network.interfaces.eth0.dhcp hostname")
	f.Fuzz(func(t *testing.T, text string) {
		c, document, err := Merge([]Source{CommandLine(cmdline.Parse(text))})
		if err != nil {
			if c != nil || document != nil {
				t.Fatalf("%v and %q beside %v", c, document, err)
			}
			return
		}
		again, err := Parse("merged", document)
		if diff := cmp.Diff(c, again); diff != "" || err != nil {
			t.Fatalf("%v %s of\n%s", err, diff, document)
		}
	})
}
