package main

import (
	"maps"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/cairn-os/cairn/pkg/config"
	"github.com/cairn-os/cairn/pkg/membership"
	"github.com/cairn-os/cairn/pkg/node"
)

func (d *daemon) nodeOptions(m *membership.Membership) node.Options {
	cfg := d.cfg
	o := node.DefaultOptions(m.Node)
	o.Role = m.Role
	o.Labels = labels(cfg)
	o.Taints = taints(cfg)
	o.NodeIPs = cfg.Cairn.Cluster.NodeIPs()
	o.Settings = m.Settings
	o.Server = cfg.Cairn.Server()
	o.Servers = m.Servers
	o.KubeletArgs = cfg.Cairn.Cluster.KubeletArgs
	o.ProxyArgs = cfg.Cairn.Cluster.KubeProxyArgs
	if m.Role == membership.Agent {
		o.TLSDir = agentTLS
	}
	o.ClockFloor = d.floor
	return o
}

// agentTLS is where an agent's certificates are; a server's node uses those of the control plane.
const agentTLS = "/var/lib/cairn/node/tls"

// labels are those of the configuration, and the zone's as the field calls it.
func labels(cfg *config.Config) map[string]string {
	all := maps.Clone(cfg.Cairn.Labels)
	if zone := cfg.Cairn.Cluster.Zone; zone != "" {
		if all == nil {
			all = map[string]string{}
		}
		all[corev1.LabelTopologyZone] = zone
	}
	return all
}

// taints parses key=value:effect or key:effect, whose form config has checked.
func taints(cfg *config.Config) []corev1.Taint {
	var all []corev1.Taint
	for _, text := range cfg.Cairn.Taints {
		left, effect, _ := strings.Cut(text, ":")
		key, value, _ := strings.Cut(left, "=")
		all = append(all, corev1.Taint{Key: key, Value: value, Effect: corev1.TaintEffect(effect)})
	}
	return all
}
