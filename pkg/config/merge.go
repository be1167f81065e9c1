package config

import (
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/cairn-os/cairn/pkg/cmdline"
)

// Source is one place that configuration comes from.
type Source struct {
	Name string // the file's path, or how else the owner knows it
	Data []byte

	params []cmdline.Param // instead of Data
}

// CommandLineName is what problems of the kernel command line are reported under.
const CommandLineName = "kernel command line"

// CommandLine returns the configuration that the kernel command line holds, as a source.
func CommandLine(l cmdline.Line) Source {
	return Source{Name: CommandLineName, params: l.Config()}
}

// Merge reads all sources and puts them together, later ones over earlier ones: mappings merge, everything else is
// replaced, lists and interfaces as a whole. It returns the configuration and its document, in which comments tell
// where each value came from. Sources that hold nothing are skipped; without any the configuration is empty. When one
// source is bad nothing is returned but the Problems of all; when each is good, those of the whole.
func Merge(sources []Source) (*Config, []byte, error) {
	m := newMerger()
	m.owners = true
	var problems Problems
	for _, s := range sources {
		tree, k3os, err := s.read()
		var bad Problems
		switch {
		case errors.Is(err, ErrNoConfig):
		case errors.As(err, &bad):
			problems = append(problems, bad...)
		case err != nil:
			return nil, nil, err
		default:
			m.k3os[s.Name] = k3os
			m.merge(m.root, tree, field{typ: reflect.TypeFor[Config]()}, s.Name)
		}
	}
	if len(problems) > 0 {
		return nil, nil, problems
	}
	c, err := m.finish()
	if err != nil {
		return nil, nil, err
	}
	text, err := encode(m.root)
	if err != nil {
		return nil, nil, err
	}
	return c, text, nil
}

// merger puts checked trees together.
type merger struct {
	root     *yaml.Node
	files    map[*yaml.Node]string // which source a value in root is from; mappings have none
	k3os     map[string]bool       // sources that say k3os: instead of cairn:
	owners   bool                  // the sources are what owners wrote, not what a machine made of it
	problems Problems              // of the whole
}

func newMerger() *merger {
	return &merger{root: &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}, files: map[*yaml.Node]string{}, k3os: map[string]bool{}}
}

// finish turns what was merged into the configuration, if it is good as a whole.
func (m *merger) finish() (*Config, error) {
	m.applyK3s()
	c, err := decode(m.root)
	if err != nil {
		return nil, err
	}
	if len(m.problems) == 0 {
		m.checkWhole(c)
	}
	if len(m.problems) > 0 {
		return nil, m.problems
	}
	return c, nil
}

// read returns the checked tree of the source, and whether it is a k3OS's.
func (s Source) read() (tree *yaml.Node, k3os bool, err error) {
	var root *yaml.Node
	if s.Data == nil && s.params != nil {
		root = s.tree()
	} else {
		if root, err = document(s.Name, s.Data); err != nil {
			return nil, false, err
		}
	}
	r := &reader{file: s.Name}
	tree = r.object(root, reflect.TypeFor[Config](), "")
	if len(r.problems) > 0 {
		return nil, false, r.problems
	}
	return tree, get(root, "k3os") != nil, nil
}

// merge puts from, which is of type f and comes from the named source, into the mapping into.
func (m *merger) merge(into, from *yaml.Node, f field, name string) {
	for i := 0; i+1 < len(from.Content); i += 2 {
		key, value := from.Content[i], from.Content[i+1]
		child := field{typ: f.typ}
		if f.typ.Kind() == reflect.Struct {
			child, _ = lookup(f.typ, key.Value)
		} else {
			child.typ = f.typ.Elem()
		}
		mapping := value.Kind == yaml.MappingNode && !f.whole
		if !mapping {
			key.HeadComment = origin(name, key.Line)
			m.files[value] = name
		}
		at := index(into, key.Value)
		switch {
		case mapping && at < 0:
			fresh := &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}
			into.Content = append(into.Content, key, fresh)
			m.merge(fresh, value, child, name)
		case mapping:
			m.merge(into.Content[at+1], value, child, name)
		case at < 0:
			into.Content = append(into.Content, key, value)
		default:
			into.Content[at], into.Content[at+1] = key, value
		}
	}
}

func index(n *yaml.Node, key string) int {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return i
		}
	}
	return -1
}

func origin(name string, line int) string {
	clean := strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r > 0x7e {
			return '?'
		}
		return r
	}, name)
	if line > 0 {
		clean = fmt.Sprintf("%s:%d", clean, line)
	}
	return "# " + clean
}

// tree builds a document from parameters whose keys are paths. Only the types know where a path ends and a key with
// dots of its own (net.ipv4.ip_forward) begins.
func (s Source) tree() *yaml.Node {
	root := &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}
	for _, p := range s.params {
		put(root, reflect.TypeFor[Config](), strings.Split(p.Key, "."), p.Value)
	}
	return root
}

// put places value at the path of parts below the mapping n of type t. What does not fit is placed all the same, for
// the reader to complain about.
func put(n *yaml.Node, t reflect.Type, parts []string, value string) {
	key, rest := parts[0], parts[1:]
	typ := reflect.TypeFor[string]()
	switch {
	case t.Kind() == reflect.Struct:
		f, ok := lookup(t, key)
		if !ok {
			key, rest = strings.Join(parts, "."), nil
			break
		}
		typ = f.typ
		if t != reflect.TypeFor[Config]() { // cairn and k3os stay apart, for using both is an error
			key = f.name
		}
	case t.Kind() == reflect.Map && t.Elem().Kind() == reflect.Struct && len(parts) > 1:
		last := len(parts) - 1
		key, rest, typ = strings.Join(parts[:last], "."), parts[last:], t.Elem()
	default:
		key, rest = strings.Join(parts, "."), nil
	}
	at := index(n, key)
	if at < 0 {
		n.Content = append(n.Content, text(key, 0), &yaml.Node{})
		at = len(n.Content) - 2
	}
	slot := &n.Content[at+1]
	deep := len(rest) > 0 && (typ.Kind() == reflect.Struct || typ.Kind() == reflect.Map)
	switch {
	case deep:
		if (*slot).Kind != yaml.MappingNode {
			*slot = &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}
		}
		put(*slot, typ, rest, value)
	case typ.Kind() == reflect.Slice:
		if (*slot).Kind != yaml.SequenceNode {
			*slot = &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq"}
		}
		(*slot).Content = append((*slot).Content, text(value, 0))
	default:
		*slot = text(value, 0)
	}
}

func readUpTo(r io.Reader, n int64) ([]byte, error) { return io.ReadAll(io.LimitReader(r, n)) }
