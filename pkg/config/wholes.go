package config

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"

	"go.yaml.in/yaml/v3"
)

// whole is the check of several values of one mapping of type t against each other, nil where there is none. It runs only
// when all of them are good.
func whole(t reflect.Type) func(r *reader, n *yaml.Node, path string) {
	switch t {
	case reflect.TypeFor[File]():
		return wholeFile
	case reflect.TypeFor[Interface]():
		return wholeInterface
	case reflect.TypeFor[Route]():
		return wholeRoute
	case reflect.TypeFor[Datastore]():
		return wholeDatastore
	case reflect.TypeFor[Cluster]():
		return wholeCluster
	case reflect.TypeFor[Cairn]():
		return wholeCairn
	case reflect.TypeFor[Window]():
		return wholeWindow
	case reflect.TypeFor[Health]():
		return wholeHealth
	case reflect.TypeFor[CriticalPods]():
		return wholeCriticalPods
	case reflect.TypeFor[Probe]():
		return wholeProbe
	case reflect.TypeFor[HTTPProbe]():
		return wholeHTTPProbe
	}
	return nil
}

// differ wants the entries of the list below key to differ in what of takes of them; message says so of the second.
func (r *reader) differ(n *yaml.Node, path, key, message string, of func(string) string) {
	list := get(n, key)
	if list == nil {
		return
	}
	seen := map[string]bool{}
	for i, entry := range list.Content {
		what := of(entry.Value)
		if seen[what] {
			r.problem(entry, element(join(path, key), i), fmt.Sprintf(message, what))
		}
		seen[what] = true
	}
}

func wholeFile(r *reader, n *yaml.Node, path string) {
	var f File
	if err := n.Decode(&f); err != nil {
		r.problem(n, path, "not readable") // cannot happen: the reader has typed every scalar
		return
	}
	if f.Path == "" {
		r.problem(n, path, "want a path")
	}
	if _, err := f.Data(); err != nil {
		at := n
		if content := get(n, "content"); content != nil {
			at = content
		}
		r.problem(at, join(path, "content"), err.Error())
	}
}

func wholeInterface(r *reader, n *yaml.Node, path string) {
	var i Interface
	if err := n.Decode(&i); err != nil {
		r.problem(n, path, "not readable")
		return
	}
	var own []netip.Prefix
	for _, a := range i.Addresses {
		own = append(own, netip.MustParsePrefix(a)) // checked by "prefix"
	}
	is4 := func(p netip.Prefix) bool { return p.Addr().Is4() }
	switch {
	case !i.DHCP && len(own) == 0:
		r.problem(n, path, "want dhcp: true or addresses")
	case i.DHCP && slices.ContainsFunc(own, is4):
		r.problem(get(n, "addresses"), join(path, "addresses"), "an IPv4 address beside dhcp: true; want one of the two")
	}
	if i.Gateway == "" {
		return
	}
	gateway := netip.MustParseAddr(i.Gateway)
	inside := func(p netip.Prefix) bool { return p.Contains(gateway) }
	if !gateway.IsLinkLocalUnicast() && !slices.ContainsFunc(own, inside) {
		r.problem(get(n, "gateway"), join(path, "gateway"), "is in no network of addresses, got "+shown(i.Gateway))
	}
}

func wholeRoute(r *reader, n *yaml.Node, path string) {
	to, via := get(n, "to"), get(n, "via")
	switch {
	case to == nil:
		r.problem(n, path, "want to, the network that is reached")
	case via == nil:
		r.problem(n, path, "want via, the next hop")
	case netip.MustParsePrefix(to.Value).Addr().Is4() != netip.MustParseAddr(via.Value).Is4():
		r.problem(via, join(path, "via"), "IPv4 and IPv6 in one route")
	}
}
