package config

import (
	"net/netip"
	"slices"

	"go.yaml.in/yaml/v3"
)

// checkWhole finds what is wrong with keys against each other in the merged tree, whichever source each one is from.
// The values themselves are good. Each problem carries the place of the key that its owner would change.
func (m *merger) checkWhole(c *Config) {
	m.checkRole(c)
	if m.owners {
		m.checkToken(c)
	}
	m.checkNetworks(c.Cairn.Cluster, c.Cairn.ServerURL == "")
	m.checkUpgrades(c.Cairn)
	if zone, ok := c.Cairn.Labels[zoneLabel]; ok && c.Cairn.Cluster.Zone != "" && zone != c.Cairn.Cluster.Zone {
		m.problem("the label "+zoneLabel+" says another zone; want it once", "cairn", "cluster", "zone")
	}
	if c.Cairn.Cluster.Disabled("flannel") && c.Cairn.Cluster.Flannel != "" && c.Cairn.Cluster.Flannel != "none" {
		m.problem("flannel is among cairn.cluster.disable as well; want one of the two", "cairn", "cluster", "flannel")
	}
}

const zoneLabel = "topology.kubernetes.io/zone"

func (m *merger) checkRole(c *Config) {
	role := c.EffectiveRole()
	if role != RoleServer && c.Cairn.ServerURL == "" {
		m.problem("a machine of this role needs cairn.server_url as well, the https://HOST:6443 of a server", "cairn", "role")
	}
	if c.Cairn.ServerURL != "" && c.Cairn.Token == "" {
		m.problem("joining a server needs cairn.token as well; `cairnctl token` prints it there", "cairn", "server_url")
	}
	if role != RoleServer && c.Cairn.Datastore.Endpoint != "" {
		m.problem("only servers talk to the datastore, and this machine is of the role "+role, "cairn", "datastore", "endpoint")
	}
}

// checkNetworks compares what is given with what holds for what is not: the defaults where a cluster begins, and what
// only the cluster knows on a machine that joins.
func (m *merger) checkNetworks(c Cluster, first bool) {
	given := "service_cidr"
	if len(c.ServiceCIDR) == 0 {
		given = "pod_cidr"
	}
	pods, services := c.PodCIDRs(), c.ServiceCIDRs()
	if first {
		pods, services = orDefault(pods, DefaultPodCIDR), orDefault(services, DefaultServiceCIDR)
	}
	for _, a := range c.NodeIPs() {
		if slices.ContainsFunc(slices.Concat(pods, services), func(p netip.Prefix) bool { return p.Contains(a) }) {
			m.problem("is inside of the pod network or the service network, got "+a.String(), "cairn", "cluster", "node_ip")
		}
	}
	if len(pods) == 0 || len(services) == 0 {
		return
	}
	place := []string{"cairn", "cluster", given}
	if !slices.EqualFunc(pods, services, func(a, b netip.Prefix) bool { return a.Addr().Is4() == b.Addr().Is4() }) {
		m.problem("want pod_cidr and service_cidr of the same address families in the same order; they are "+
			list(pods)+" and "+list(services), place...)
		return
	}
	for i := range pods {
		if pods[i].Overlaps(services[i]) {
			m.problem("want a pod network and a service network that do not overlap; they are "+
				pods[i].String()+" and "+services[i].String(), place...)
		}
	}
}

func orDefault(given []netip.Prefix, text string) []netip.Prefix {
	if len(given) == 0 {
		return []netip.Prefix{netip.MustParsePrefix(text)}
	}
	return given
}

func list(all []netip.Prefix) string {
	text := ""
	for i, p := range all {
		if i > 0 {
			text += ", "
		}
		text += p.String()
	}
	return text
}

// problem is about the value at the path of keys; where there is none, about the mapping that it would be in.
func (m *merger) problem(message string, keys ...string) {
	path, at := "", m.root
	var file string
	for _, key := range keys {
		path = join(path, key)
		if at != nil {
			at = get(at, key)
		}
		if at != nil && m.files[at] != "" {
			file = m.files[at]
		}
	}
	p := Problem{File: file, Path: path, Message: message}
	if at != nil {
		p.Line = line(at)
	}
	m.problems = append(m.problems, p)
}

// line is where the first value of n is; lists of k3s_args have no place of their own.
func line(n *yaml.Node) int {
	if n.Line == 0 && len(n.Content) > 0 {
		return n.Content[0].Line
	}
	return n.Line
}
