package config

import (
	"fmt"
	"reflect"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// reader checks a document against the Go types and rewrites it to their spelling: canonical keys, lists where lists
// belong, and scalars tagged with the type they are meant to have. The result decodes without surprises.
type reader struct {
	file     string
	part     bool // what is read is no whole mapping: values are checked, and not against each other
	problems Problems
}

func (r *reader) problem(n *yaml.Node, path, message string) {
	r.problems = append(r.problems, Problem{r.file, n.Line, path, message})
}

// value reads n as the value of f; nil when there is nothing usable.
func (r *reader) value(n *yaml.Node, f field, path string) *yaml.Node {
	null := n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null"
	switch f.typ.Kind() {
	case reflect.Struct:
		if null {
			return nil // "cairn:" with all below it commented out
		}
		return r.object(n, f.typ, path)
	case reflect.Map:
		if null {
			return nil
		}
		return r.table(n, f, path)
	case reflect.Slice:
		if null {
			return nil
		}
		return r.list(n, f, path)
	}
	return r.scalar(n, f, path)
}

func (r *reader) object(n *yaml.Node, t reflect.Type, path string) *yaml.Node {
	if n.Kind != yaml.MappingNode {
		r.problem(n, path, "want keys and values, got "+kind(n))
		return nil
	}
	out := &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map", Line: n.Line}
	seen := map[string]*yaml.Node{}
	before := len(r.problems)
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, child := n.Content[i], n.Content[i+1]
		if !r.isKey(key, path) {
			continue
		}
		f, ok := lookup(t, key.Value)
		if !ok {
			r.problem(key, join(path, keyText(key.Value)), unknown(t, key.Value))
			continue
		}
		at := join(path, f.name)
		if first, twice := seen[f.name]; twice {
			r.problem(key, at, twiceMessage(key, first))
			continue
		}
		seen[f.name] = key
		if v := r.value(child, f, at); v != nil {
			out.Content = append(out.Content, text(f.name, key.Line), v)
		}
	}
	if check := whole(t); check != nil && !r.part && len(r.problems) == before {
		check(r, out, path)
	}
	return out
}

func twiceMessage(key, first *yaml.Node) string {
	switch {
	case first.Value == key.Value && first.Line > 0:
		return fmt.Sprintf("given twice, first on line %d", first.Line)
	case first.Line > 0:
		return fmt.Sprintf("given twice, first as %s on line %d", first.Value, first.Line)
	}
	return fmt.Sprintf("given twice, as %s and as %s", first.Value, key.Value)
}

func (r *reader) isKey(key *yaml.Node, path string) bool {
	if key.Kind == yaml.ScalarNode && key.ShortTag() != "!!null" && key.ShortTag() != "!!merge" {
		return true
	}
	r.problem(key, path, "want a word as the key, got "+keyKind(key))
	return false
}

func keyKind(key *yaml.Node) string {
	if key.Kind == yaml.ScalarNode && key.ShortTag() == "!!merge" {
		return "<<: merging is not supported, write the values out"
	}
	return kind(key)
}

// table reads a mapping with keys of the owner's choice.
func (r *reader) table(n *yaml.Node, f field, path string) *yaml.Node {
	if n.Kind != yaml.MappingNode {
		r.problem(n, path, "want keys and values, got "+kind(n))
		return nil
	}
	out := &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map", Line: n.Line}
	seen := map[string]*yaml.Node{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, child := n.Content[i], n.Content[i+1]
		if !r.isKey(key, path) {
			continue
		}
		at := join(path, keyText(key.Value))
		if first, twice := seen[key.Value]; twice {
			r.problem(key, at, twiceMessage(key, first))
			continue
		}
		seen[key.Value] = key
		if message := checks[f.keys](key.Value); message != "" {
			r.problem(key, at, "bad key: "+message)
		}
		if v := r.value(child, field{typ: f.typ.Elem(), check: f.check, secret: f.secret}, at); v != nil {
			out.Content = append(out.Content, text(key.Value, key.Line), v)
		}
	}
	return out
}

func (r *reader) list(n *yaml.Node, f field, path string) *yaml.Node {
	out := &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq", Line: n.Line}
	element := field{typ: f.typ.Elem(), check: f.check, secret: f.secret}
	switch {
	case n.Kind == yaml.SequenceNode:
		for i, child := range n.Content {
			at := fmt.Sprintf("%s[%d]", path, i)
			if v := r.value(child, element, at); v != nil {
				out.Content = append(out.Content, v)
			} else if element.typ.Kind() == reflect.Struct && child.Kind == yaml.ScalarNode && child.ShortTag() == "!!null" {
				r.problem(child, at, "an empty entry")
			}
		}
	case n.Kind == yaml.ScalarNode && element.typ.Kind() == reflect.String:
		if v := r.value(n, element, path); v != nil { // k3OS: one value is a list of one
			out.Content = append(out.Content, v)
		}
	default:
		r.problem(n, path, "want a list, got "+kind(n))
		return nil
	}
	return out
}

func (r *reader) scalar(n *yaml.Node, f field, path string) *yaml.Node {
	if n.Kind != yaml.ScalarNode {
		r.problem(n, path, "want "+wanted(f.typ)+", got "+kind(n))
		return nil
	}
	if n.ShortTag() == "!!null" {
		r.problem(n, path, `no value; write "" for an empty one, or delete the key`)
		return nil
	}
	out := &yaml.Node{Kind: yaml.ScalarNode, Line: n.Line, Value: n.Value}
	var message string
	switch f.typ.Kind() {
	case reflect.String:
		out.Tag = "!!str"
		message = "want text without a zero byte"
		if !strings.Contains(n.Value, "\x00") {
			message = checks[f.check](n.Value)
		}
	case reflect.Bool:
		out.Tag = "!!bool"
		if n.Value != "true" && n.Value != "false" {
			message = "want true or false"
		}
	case reflect.Int:
		out.Tag = "!!int"
		message = "want a whole number"
		if _, err := strconv.ParseInt(n.Value, 10, 32); err == nil && number.MatchString(n.Value) {
			message = checks[f.check](n.Value)
		}
	}
	if message == "" {
		return out
	}
	if !f.secret {
		message += ", got " + shown(n.Value)
	}
	r.problem(n, path, message)
	return nil
}

// number keeps to what YAML reads as a decimal number, too: no leading zero, no plus sign.
var number = regexp.MustCompile(`^(0|-?[1-9][0-9]*)$`)

func wanted(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Bool:
		return "true or false"
	case reflect.Int:
		return "a number"
	}
	return "text"
}

func text(value string, line int) *yaml.Node {
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: value, Line: line}
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

// keyText is a key of the document as part of a path: what is odd is quoted.
func keyText(key string) string {
	if plainKey.MatchString(key) {
		return key
	}
	return shown(key)
}

var plainKey = regexp.MustCompile(`^[A-Za-z0-9_./-]{1,80}$`)

// get returns the value of key in mapping n, or nil.
func get(n *yaml.Node, key string) *yaml.Node {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i+1]
		}
	}
	return nil
}
