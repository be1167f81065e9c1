package membership

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Settings are the same on all nodes of a cluster, and fixed when it begins.
type Settings struct {
	PodCIDRs      []netip.Prefix `json:"podCIDRs"`      // one, or one per family
	ServiceCIDRs  []netip.Prefix `json:"serviceCIDRs"`  // one, or one per family
	Flannel       string         `json:"flannel"`       // vxlan, host-gw, wireguard, none
	ClusterDomain string         `json:"clusterDomain"` // of Services
	// Datastore is where the servers keep Kubernetes' state. Empty: not known, or, as the wish of an agent, of no interest.
	Datastore Datastore `json:"datastore,omitempty"`
}

// Datastore is the kind of place where servers keep Kubernetes' state. The kind is all that can be compared: two servers
// may reach one database by other names, through a proxy of their own, as other users, or know some members of an etcd
// cluster each.
type Datastore string

// The kinds.
const (
	OwnStore Datastore = "own" // the servers' own
	Etcd     Datastore = "etcd"
	Postgres Datastore = "postgres"
	MySQL    Datastore = "mysql"
)

// String is what people call it; "" when it is not known.
func (d Datastore) String() string {
	switch d {
	case OwnStore:
		return "the servers' own store"
	case Etcd:
		return "an etcd cluster"
	case Postgres:
		return "PostgreSQL"
	case MySQL:
		return "MySQL or MariaDB"
	}
	return string(d)
}

// Known reports whether d is one of the kinds.
func (d Datastore) Known() bool {
	return slices.Contains([]Datastore{OwnStore, Etcd, Postgres, MySQL}, d)
}

// DefaultSettings are those of a cluster whose configuration says nothing.
func DefaultSettings() Settings {
	return Settings{
		PodCIDRs:      []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")},
		ServiceCIDRs:  []netip.Prefix{netip.MustParsePrefix("10.43.0.0/16")},
		Flannel:       "vxlan",
		ClusterDomain: "cluster.local",
		Datastore:     OwnStore,
	}
}

// Or returns s with the fields that are empty taken from other.
func (s Settings) Or(other Settings) Settings {
	if len(s.PodCIDRs) == 0 {
		s.PodCIDRs = other.PodCIDRs
	}
	if len(s.ServiceCIDRs) == 0 {
		s.ServiceCIDRs = other.ServiceCIDRs
	}
	if s.Flannel == "" {
		s.Flannel = other.Flannel
	}
	if s.ClusterDomain == "" {
		s.ClusterDomain = other.ClusterDomain
	}
	if s.Datastore == "" {
		s.Datastore = other.Datastore
	}
	return s
}

// ServiceIP is the address of the Service default/kubernetes: the first of the first service CIDR.
func (s Settings) ServiceIP() netip.Addr {
	if len(s.ServiceCIDRs) == 0 {
		return netip.Addr{}
	}
	return s.ServiceCIDRs[0].Masked().Addr().Next()
}

// NodeMask is how many bits of an address the share of a node has, of the pod network p: upstream's /24 or /64, while the
// network has room for 16 nodes of that size. In a smaller one nodes get a sixteenth, and of a larger one of IPv6 what
// upstream can count: 65536 nodes.
func NodeMask(p netip.Prefix) int {
	bits := p.Bits()
	if p.Addr().Is6() {
		return min(max(min(64, bits+16), bits+4), 128)
	}
	return min(max(24, bits+4), max(bits, 28)) // a node needs some addresses, a cluster at least one node
}

// Validate returns what is wrong with s, naming the key of the configuration.
func (s Settings) Validate() error {
	if err := checkCIDRs(keyPods, s.PodCIDRs); err != nil {
		return err
	}
	if err := checkCIDRs(keyServices, s.ServiceCIDRs); err != nil {
		return err
	}
	for _, p := range s.PodCIDRs {
		for _, q := range s.ServiceCIDRs {
			if p.Overlaps(q) {
				return fmt.Errorf("%s %v and %s %v overlap", keyPods, p, keyServices, q)
			}
		}
	}
	if !slices.Contains([]string{"vxlan", "host-gw", "wireguard", "none"}, s.Flannel) {
		return fmt.Errorf("%s %q is none of vxlan, host-gw, wireguard and none", keyFlannel, s.Flannel)
	}
	if s.ClusterDomain == "" || strings.ContainsAny(s.ClusterDomain, " /:\n") || len(s.ClusterDomain) > 253 {
		return fmt.Errorf("%s %q is no domain", keyDomain, s.ClusterDomain)
	}
	if s.Datastore != "" && !s.Datastore.Known() {
		return fmt.Errorf("%s %q is of no kind that this release knows", KeyDatastore, string(s.Datastore))
	}
	return nil
}

// Keys of the configuration that the settings come from.
const (
	keyPods     = "cairn.cluster.pod_cidr"
	keyServices = "cairn.cluster.service_cidr"
	keyFlannel  = "cairn.cluster.flannel"
	keyDomain   = "cairn.cluster.cluster_domain"
	// KeyDatastore has no value of the cluster to follow: who conflicts there must not go on.
	KeyDatastore = "cairn.datastore"
)

func checkCIDRs(key string, all []netip.Prefix) error {
	if len(all) == 0 || len(all) > 2 {
		return fmt.Errorf("%s has %d networks, not one or one per family", key, len(all))
	}
	for _, p := range all {
		switch {
		case !p.IsValid() || p.Addr().Is4In6():
			return errors.New(key + " holds something that is no network")
		case p != p.Masked():
			return fmt.Errorf("%s %v: the network is %v", key, p, p.Masked())
		case p.Addr().BitLen()-p.Bits() < 3:
			return fmt.Errorf("%s %v is too small", key, p)
		}
	}
	if len(all) == 2 && all[0].Addr().Is4() == all[1].Addr().Is4() {
		return fmt.Errorf("%s has two networks of one family", key)
	}
	return nil
}

// Conflict is a setting in which a machine's own configuration differs from its cluster.
type Conflict struct{ Key, Own, Cluster string }

func (c Conflict) String() string {
	return fmt.Sprintf("%s is %s here and %s in the cluster", c.Key, c.Own, c.Cluster)
}

// Conflicts compares what a machine's own configuration says with s, the cluster's. Fields that own leaves empty are the
// cluster's; what is not known of the cluster contradicts nothing.
func (s Settings) Conflicts(own Settings) []Conflict {
	var all []Conflict
	add := func(key, mine, cluster string) {
		if mine != "" && cluster != "" && mine != cluster {
			all = append(all, Conflict{key, mine, cluster})
		}
	}
	add(keyPods, list(own.PodCIDRs), list(s.PodCIDRs))
	add(keyServices, list(own.ServiceCIDRs), list(s.ServiceCIDRs))
	add(keyFlannel, own.Flannel, s.Flannel)
	add(keyDomain, own.ClusterDomain, s.ClusterDomain)
	add(KeyDatastore, own.Datastore.String(), s.Datastore.String())
	return all
}

func list(all []netip.Prefix) string {
	var texts []string
	for _, p := range all {
		texts = append(texts, p.String())
	}
	return strings.Join(texts, ",")
}
