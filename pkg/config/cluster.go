package config

import (
	"net"
	"net/netip"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/cairn-os/cairn/pkg/token"
)

// The roles of a machine.
const (
	RoleServer  = "server"  // keeps state, controls, runs pods
	RoleAgent   = "agent"   // runs pods
	RoleWitness = "witness" // votes in the store, and nothing else
)

// Cluster is how the machine takes part in its cluster. Pod and service networks, Flannel and the component arguments of
// the control plane are the cluster's: the first server sets them, and others may repeat them.
type Cluster struct {
	// PodCIDR and ServiceCIDR are one network, or one per address family, the first one's family being the cluster's
	// own. Empty: DefaultPodCIDR and DefaultServiceCIDR.
	PodCIDR     []string `yaml:"pod_cidr,omitempty" check:"podCIDR"`
	ServiceCIDR []string `yaml:"service_cidr,omitempty" check:"serviceCIDR"`
	// Flannel is how pods of several machines reach each other: vxlan, host-gw, wireguard or none. Empty: vxlan.
	Flannel string `yaml:"flannel,omitempty" check:"flannel"`
	// TLSSANs are further names and addresses under which clients reach the apiserver.
	TLSSANs []string `yaml:"tls_sans,omitempty" check:"host"`
	// NodeIP are the own addresses to use, one per family. Empty: those of the default route.
	NodeIP []string `yaml:"node_ip,omitempty" check:"nodeIP"`
	// Zone is the failure domain, over which the store's voters are spread; a label's value.
	Zone string `yaml:"zone,omitempty" check:"labelValue"`
	// Disable names batteries that are not wanted, by their own names or k3s's; see Disabled.
	Disable []string `yaml:"disable,omitempty" check:"battery"`
	// CertificateLife is how long leaf certificates are valid, as in "8760h". Empty: a year.
	CertificateLife string `yaml:"certificate_life,omitempty" check:"certificateLife"`
	// Audit keeps a log of what was asked of the apiserver.
	Audit bool `yaml:"audit,omitempty"`
	// Arguments of the components, "name=value" or "name", which come after Cairn's own.
	KubeAPIServerArgs         []string `yaml:"kube_apiserver_args,omitempty" check:"componentArg"`
	KubeControllerManagerArgs []string `yaml:"kube_controller_manager_args,omitempty" check:"componentArg"`
	KubeSchedulerArgs         []string `yaml:"kube_scheduler_args,omitempty" check:"componentArg"`
	KubeletArgs               []string `yaml:"kubelet_args,omitempty" check:"componentArg"`
	KubeProxyArgs             []string `yaml:"kube_proxy_args,omitempty" check:"componentArg"`
}

// What a cluster has that does not say otherwise.
const (
	DefaultPodCIDR     = "10.42.0.0/16"
	DefaultServiceCIDR = "10.43.0.0/16"
	DefaultFlannel     = "vxlan"
)

// EffectiveRole is the role that the machine has: the one it is given, or server for the first and agent for the others.
func (c *Config) EffectiveRole() string {
	switch {
	case c.Cairn.Role != "":
		return c.Cairn.Role
	case c.Cairn.ServerURL != "":
		return RoleAgent
	}
	return RoleServer
}

// Server is the host:port of ServerURL, "" without one.
func (c Cairn) Server() string {
	if c.ServerURL == "" {
		return ""
	}
	u, err := url.Parse(c.ServerURL)
	if err != nil {
		return "" // has been checked
	}
	port := u.Port()
	if port == "" {
		port = "6443"
	}
	return net.JoinHostPort(u.Hostname(), port)
}

// PodCIDRs are the pod networks that are given.
func (c Cluster) PodCIDRs() []netip.Prefix { return prefixes(c.PodCIDR) }

// ServiceCIDRs are the service networks that are given.
func (c Cluster) ServiceCIDRs() []netip.Prefix { return prefixes(c.ServiceCIDR) }

// NodeIPs are the own addresses that are given.
func (c Cluster) NodeIPs() []netip.Addr {
	var all []netip.Addr
	for _, text := range c.NodeIP {
		if a, err := netip.ParseAddr(text); err == nil { // has been checked
			all = append(all, a)
		}
	}
	return all
}

// Life is CertificateLife, 0 when it is not given.
func (c Cluster) Life() time.Duration {
	d, err := time.ParseDuration(c.CertificateLife)
	if err != nil {
		return 0 // has been checked, unless it is empty
	}
	return d
}

// FlannelBackend is Flannel, "none" when that is among what is disabled; "" when nothing is said of it.
func (c Cluster) FlannelBackend() string {
	if c.Disabled("flannel") {
		return "none"
	}
	return c.Flannel
}

// Disabled says whether a battery, by its own name, is not wanted.
func (c Cluster) Disabled(battery string) bool {
	return slices.ContainsFunc(c.Disable, func(name string) bool { return batteries[name] == battery })
}

// batteries are the names that disable takes, ours and k3s's, with ours.
var batteries = map[string]string{
	"dns": "dns", "coredns": "dns",
	"metrics-server": "metrics-server",
	"servicelb":      "servicelb",
	"local-storage":  "local-storage",
	"network-policy": "network-policy",
	"flannel":        "flannel",
	"helm":           "helm", "helm-controller": "helm",
	"traefik": "traefik",
}

func prefixes(texts []string) []netip.Prefix {
	var all []netip.Prefix
	for _, text := range texts {
		if p, err := netip.ParsePrefix(text); err == nil { // has been checked
			all = append(all, p)
		}
	}
	return all
}

// serverURL takes what k3OS takes, less a path.
func serverURL(v string) string {
	const want = "want https://HOST or https://HOST:6443 of a server that is up, and nothing after it"
	u, err := url.Parse(v)
	if err != nil || u.Scheme != "https" || u.User != nil || u.Path != "" || u.RawQuery != "" || u.ForceQuery || strings.Contains(v, "#") ||
		host(u.Hostname()) != "" || u.Host != u.Hostname() && strings.HasSuffix(u.Host, ":") {
		return want
	}
	if a, err := netip.ParseAddr(u.Hostname()); err == nil && (a.Zone() != "" || a.IsUnspecified()) {
		return want
	}
	n, err := strconv.Atoi(u.Port())
	return unless(u.Port() == "" || err == nil && 0 < n && n < 1<<16, want)
}

// joinToken is a whole K10 token, or any secret.
func joinToken(v string) string {
	if message := plainToken(v); message != "" {
		return message
	}
	if _, err := token.Parse(v); err != nil { // which never quotes the secret
		return err.Error() + "; want K10<64 hexadecimal digits>::ID:SECRET, as `cairnctl token` prints it, or a secret that does not begin with K10"
	}
	return ""
}

var plainToken = matches(`^[!-~]{1,512}$`, "want 1 to 512 letters, digits and signs without a space")

// podCIDR: every node gets a /24 or /64 of it, and at most 65536 nodes' fit where addresses have 128 bits
// (k8s.io/kubernetes/pkg/controller/nodeipam/ipam/cidrset, v1.36).
func podCIDR(v string) string {
	p, ok := clusterNetwork(v)
	return unless(ok && (p.Addr().Is4() && p.Bits() <= 24 || p.Addr().Is6() && 48 <= p.Bits() && p.Bits() <= 64),
		"want a network such as 10.42.0.0/16, of /24 or larger, or an IPv6 one of /48 to /64")
}

// serviceCIDR has at most 20 bits for services (k8s.io/kubernetes/cmd/kube-apiserver/app/options, v1.36).
func serviceCIDR(v string) string {
	p, ok := clusterNetwork(v)
	bits := p.Addr().BitLen() - p.Bits()
	return unless(ok && 4 <= bits && bits <= 20, "want a network such as 10.43.0.0/16, of /12 to /28, or an IPv6 one of /108 to /124")
}

func clusterNetwork(v string) (netip.Prefix, bool) {
	p, err := netip.ParsePrefix(v)
	a := p.Addr()
	return p, err == nil && p == p.Masked() && !a.Is4In6() && !a.IsUnspecified() && !a.IsMulticast() && !a.IsLoopback() && !a.IsLinkLocalUnicast()
}

func nodeIP(v string) string {
	a, err := netip.ParseAddr(v)
	return unless(err == nil && a.Zone() == "" && a.IsGlobalUnicast() && !a.Is4In6(), "want an IP address by which others reach this machine")
}

func certificateLife(v string) string {
	d, err := time.ParseDuration(v)
	return unless(err == nil && 3*time.Minute <= d && d <= 10*365*24*time.Hour, "want a time such as 8760h, at least 3m and at most 87600h")
}

func battery(v string) string {
	var own []string
	for name, canonical := range batteries {
		if name == canonical {
			own = append(own, name)
		}
	}
	slices.Sort(own)
	return unless(batteries[v] != "", "want one of "+strings.Join(own, ", "))
}

var componentArg = matches(`^[a-z][a-z0-9-]*(=[^\n\r]*)?$`, "want the name of an argument and its value, name=value, without -- before it")

// wholeCluster checks lists whose entries must differ in something.
func wholeCluster(r *reader, n *yaml.Node, path string) {
	for _, key := range []string{"pod_cidr", "service_cidr", "node_ip"} {
		r.differ(n, path, key, "a second IPv%s one; want one of each family", func(v string) string {
			if strings.Contains(v, ":") {
				return "6"
			}
			return "4"
		})
	}
	for _, f := range fields(reflect.TypeFor[Cluster]()) {
		if f.check == "componentArg" {
			r.differ(n, path, f.name, "%s is given twice; want one value", func(v string) string {
				name, _, _ := strings.Cut(v, "=")
				return name
			})
		}
	}
}
