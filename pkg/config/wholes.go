package config

import (
	"net/netip"
	"reflect"
	"slices"

	"go.yaml.in/yaml/v3"
)

// wholes are checks of several keys of one mapping against each other; each runs only when all its values are good.
var wholes = map[reflect.Type]func(r *reader, n *yaml.Node, path string){
	reflect.TypeFor[File]():      wholeFile,
	reflect.TypeFor[Interface](): wholeInterface,
	reflect.TypeFor[Route]():     wholeRoute,
	reflect.TypeFor[Datastore](): wholeDatastore,
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
