package config

import (
	"reflect"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// k3sFlag is an argument of k3s that has a key here.
type k3sFlag struct {
	path   string              // of the key, "" for what needs none here
	bare   bool                // takes no value
	commas bool                // the value may be several, separated by commas
	value  string              // of the key, instead of the argument's own
	rename func(string) string // of the value
}

// k3sFlags are taken over from k3s_args. Those without a path say what is so anyway: every first server begins a
// cluster that others can join, secrets are always encrypted, and the administrator's file is root's, who is the only
// user.
var k3sFlags = map[string]k3sFlag{
	"server":                      {path: "cairn.server_url"},
	"token":                       {path: "cairn.token"},
	"node-name":                   {path: "hostname", rename: strings.ToLower},
	"node-label":                  {path: "cairn.labels", commas: true},
	"node-taint":                  {path: "cairn.taints", commas: true},
	"node-ip":                     {path: "cairn.cluster.node_ip", commas: true},
	"cluster-cidr":                {path: "cairn.cluster.pod_cidr", commas: true},
	"service-cidr":                {path: "cairn.cluster.service_cidr", commas: true},
	"flannel-backend":             {path: "cairn.cluster.flannel", rename: flannelBackend},
	"tls-san":                     {path: "cairn.cluster.tls_sans", commas: true},
	"disable":                     {path: "cairn.cluster.disable", commas: true},
	"no-deploy":                   {path: "cairn.cluster.disable", commas: true},
	"disable-network-policy":      {path: "cairn.cluster.disable", bare: true, value: "network-policy"},
	"disable-helm-controller":     {path: "cairn.cluster.disable", bare: true, value: "helm"},
	"kubelet-arg":                 {path: "cairn.cluster.kubelet_args"},
	"kube-proxy-arg":              {path: "cairn.cluster.kube_proxy_args"},
	"kube-apiserver-arg":          {path: "cairn.cluster.kube_apiserver_args"},
	"kube-scheduler-arg":          {path: "cairn.cluster.kube_scheduler_args"},
	"kube-controller-manager-arg": {path: "cairn.cluster.kube_controller_manager_args"},
	"kube-controller-arg":         {path: "cairn.cluster.kube_controller_manager_args"},
	"datastore-endpoint":          {path: "cairn.datastore.endpoint"},
	"datastore-cafile":            {path: "cairn.datastore.ca_file"},
	"datastore-certfile":          {path: "cairn.datastore.cert_file"},
	"datastore-keyfile":           {path: "cairn.datastore.key_file"},
	"cluster-init":                {bare: true},
	"secrets-encryption":          {bare: true},
	"write-kubeconfig-mode":       {},
}

func flannelBackend(v string) string { return strings.TrimSuffix(v, "-native") }

// k3sArg is one argument with its value.
type k3sArg struct {
	at   int // index in the list
	line int
	name string // as it was written, without dashes; "" for the role
	flag k3sFlag
	text string
}

// k3sArgs reads the list k3s_args, in which values follow their argument after "=" or as the next entry.
func (r *reader) k3sArgs(entries []*yaml.Node, path string) []k3sArg {
	var all []k3sArg
	for i := 0; i < len(entries); i++ {
		arg := k3sArg{at: i, line: entries[i].Line}
		word := strings.TrimSpace(entries[i].Value)
		if i == 0 && (word == RoleServer || word == RoleAgent) {
			arg.flag, arg.text = k3sFlag{path: "cairn.role"}, word
			all = append(all, arg)
			continue
		}
		rest, dashed := strings.CutPrefix(word, "-")
		name, value, inside := strings.Cut(strings.TrimPrefix(rest, "-"), "=")
		flag, known := k3sFlags[name]
		switch {
		case !dashed:
			r.problem(entries[i], element(path, i), "want server or agent first and then k3s's arguments, each an entry that begins with --")
			continue
		case !known:
			r.problem(entries[i], element(path, i), "--"+keyText(name)+" of k3s is not taken over; see the keys of cairn.cluster")
			continue
		case flag.bare && inside && !slices.Contains([]string{"true", "false"}, value):
			r.problem(entries[i], element(path, i), "--"+name+" is true or false")
			continue
		case flag.bare && value == "false":
			continue
		case !flag.bare && !inside:
			if i+1 == len(entries) || strings.HasPrefix(entries[i+1].Value, "--") {
				r.problem(entries[i], element(path, i), "--"+name+" wants a value, after = or as the next entry")
				continue
			}
			i++
			value = entries[i].Value
		}
		arg.name, arg.flag, arg.text = name, flag, value
		if flag.path != "" {
			all = append(all, arg)
		}
	}
	return all
}

func element(path string, i int) string { return path + "[" + strconv.Itoa(i) + "]" }

// values are what the argument says, one or several.
func (a k3sArg) values() []string {
	if a.flag.value != "" {
		return []string{a.flag.value}
	}
	values := []string{a.text}
	if a.flag.commas {
		values = strings.Split(a.text, ",")
	}
	for i := range values {
		if a.flag.rename != nil {
			values[i] = a.flag.rename(values[i])
		}
	}
	return values
}

// tree reads one value of the argument as the configuration that it stands for.
func (a k3sArg) tree(r *reader, value, path string) *yaml.Node {
	parts := strings.Split(a.flag.path, ".")
	if a.flag.path == "cairn.labels" {
		var key string
		key, value, _ = strings.Cut(value, "=")
		parts = append(parts, key)
	}
	root := &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}
	put(root, reflect.TypeFor[Config](), parts, value)
	walk(root, func(n *yaml.Node) { n.Line = a.line })
	sub := &reader{file: r.file, part: true}
	out := sub.object(root, reflect.TypeFor[Config](), "")
	for _, p := range sub.problems {
		p.Path = element(path, a.at)
		if a.name != "" {
			p.Message = "--" + a.name + ": " + p.Message
		}
		r.problems = append(r.problems, p)
	}
	return out
}

func walk(n *yaml.Node, f func(*yaml.Node)) {
	f(n)
	for _, child := range n.Content {
		walk(child, f)
	}
}

// fromK3s turns the list k3s_args into the tree of the keys that it stands for.
func (r *reader) fromK3s(list *yaml.Node, path string) *yaml.Node {
	whole := &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}
	for _, arg := range r.k3sArgs(list.Content, path) {
		for _, value := range arg.values() {
			part := arg.tree(r, value, path)
			if part == nil {
				continue
			}
			add(whole, part, func(_ string, given, _ *yaml.Node) bool {
				if given.Kind == yaml.SequenceNode {
					return true // k3s adds up what is repeated
				}
				r.problem(&yaml.Node{Line: arg.line}, element(path, arg.at), "--"+arg.name+": given twice, with another value")
				return false
			})
		}
	}
	return whole
}

func wholeCairn(r *reader, n *yaml.Node, path string) {
	if args := get(n, "k3s_args"); args != nil {
		r.fromK3s(args, join(path, "k3s_args"))
	}
}

// add puts the values of from into the mapping into. Where both have one and they differ, both decides: whether the
// entries of from's list are added, or nothing is done.
func add(into, from *yaml.Node, both func(path string, given, more *yaml.Node) bool) {
	addAt(into, from, "", both)
}

func addAt(into, from *yaml.Node, path string, both func(path string, given, more *yaml.Node) bool) {
	for i := 0; i+1 < len(from.Content); i += 2 {
		key, value := from.Content[i], from.Content[i+1]
		given, at := get(into, key.Value), join(path, key.Value)
		switch {
		case given == nil:
			into.Content = append(into.Content, key, value)
		case given.Kind == yaml.MappingNode:
			addAt(given, value, at, both)
		case equal(given, value) || !both(at, given, value) || given.Kind != yaml.SequenceNode:
		default:
			for _, n := range value.Content {
				if !slices.ContainsFunc(given.Content, func(have *yaml.Node) bool { return equal(have, n) }) {
					given.Content = append(given.Content, n)
				}
			}
		}
	}
}

func equal(a, b *yaml.Node) bool {
	return a.Kind == b.Kind && a.Value == b.Value && slices.EqualFunc(a.Content, b.Content, equal)
}

// oneDecision are lists that say one thing together, so that those of two places cannot be added up.
var oneDecision = []string{"cairn.cluster.pod_cidr", "cairn.cluster.service_cidr", "cairn.cluster.node_ip"}

// applyK3s replaces k3s_args in the merged tree by the keys that they stand for. What is given both ways must be the
// same, or be a list or a mapping in which both have room.
func (m *merger) applyK3s() {
	cairn := get(m.root, "cairn")
	if cairn == nil {
		return
	}
	at := index(cairn, "k3s_args")
	if at < 0 {
		return
	}
	key, list := cairn.Content[at], cairn.Content[at+1]
	cairn.Content = slices.Delete(cairn.Content, at, at+2)
	r := &reader{file: m.files[list]}
	tree := r.fromK3s(list, "cairn.k3s_args")
	m.mark(tree, m.files[list], key.HeadComment+", k3s_args")
	add(m.root, tree, func(path string, given, more *yaml.Node) bool {
		if given.Kind == yaml.SequenceNode && !slices.Contains(oneDecision, path) {
			return true
		}
		r.problem(&yaml.Node{Line: line(more)}, "cairn.k3s_args", path+" is given as well, with another value; want it once")
		return false
	})
	// Values of two places are together only now.
	if n := get(cairn, "cluster"); n != nil && len(r.problems) == 0 {
		wholeCluster(r, n, "cairn.cluster")
	}
	if n := get(cairn, "datastore"); n != nil && len(r.problems) == 0 {
		wholeDatastore(r, n, "cairn.datastore")
	}
	m.problems = append(m.problems, r.problems...)
}

// mark notes for every value of the tree which file it is from.
func (m *merger) mark(tree *yaml.Node, file, comment string) {
	for i := 0; i+1 < len(tree.Content); i += 2 {
		key, value := tree.Content[i], tree.Content[i+1]
		if value.Kind == yaml.MappingNode {
			m.mark(value, file, comment)
			continue
		}
		key.HeadComment = comment
		m.files[value] = file
	}
}
