// Package cmdline reads the kernel command line.
//
// Reference: Documentation/admin-guide/kernel-parameters.rst and lib/cmdline.c of Linux 6.12. Parameters are separated
// by white space; double quotes keep white space together and are dropped; the first "=" ends the key; "--" ends the
// kernel's own parameters, and what follows it is passed to init and ignored here.
package cmdline

import (
	"fmt"
	"os"
	"slices"
	"strings"
)

// Path is where the running kernel shows its command line.
const Path = "/proc/cmdline"

// True is the value of a parameter that has none.
const True = "true"

// Param is one parameter.
type Param struct{ Key, Value string }

// Line is a parsed command line; the zero value is an empty one.
type Line struct{ params []Param }

// Parse reads text. Any text is a command line; as in the kernel a quote that is never closed runs to the end.
func Parse(text string) Line {
	var l Line
	for {
		var arg string
		arg, text = next(text)
		if arg == "" || arg == "--" {
			return l
		}
		l.params = append(l.params, split(arg))
	}
}

// Read parses the file at path.
func Read(path string) (Line, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return Line{}, fmt.Errorf("read kernel command line: %w", err)
	}
	return Parse(string(data)), nil
}

// next returns the first argument of text, its quotes still inside, and the rest; "" when there is none.
func next(text string) (arg, rest string) {
	text = strings.TrimLeft(text, space)
	quoted := false
	for i := 0; i < len(text); i++ {
		switch {
		case text[i] == '"':
			quoted = !quoted
		case !quoted && strings.IndexByte(space, text[i]) >= 0:
			return text[:i], text[i:]
		}
	}
	return text, ""
}

const space = " \t\n\v\f\r"

func split(arg string) Param {
	if inner, ok := strings.CutPrefix(arg, `"`); ok { // "key=two words"
		arg = strings.TrimSuffix(inner, `"`)
	}
	key, value, found := strings.Cut(arg, "=")
	if !found {
		return Param{key, True}
	}
	if inner, ok := strings.CutPrefix(value, `"`); ok { // key="two words"
		value = strings.TrimSuffix(inner, `"`)
	}
	return Param{key, value}
}

// Params returns all parameters in order.
func (l Line) Params() []Param { return slices.Clone(l.params) }

// Get returns the last value of key, which is the one that counts, and whether there is one.
func (l Line) Get(key string) (string, bool) {
	for _, p := range slices.Backward(l.params) {
		if p.Key == key {
			return p.Value, true
		}
	}
	return "", false
}

// All returns every value of key in order.
func (l Line) All(key string) []string {
	var values []string
	for _, p := range l.params {
		if p.Key == key {
			values = append(values, p.Value)
		}
	}
	return values
}

// Bool reports whether key is given and not switched off with "0", "n", "off" or "false".
func (l Line) Bool(key string) bool {
	value, ok := l.Get(key)
	return ok && !slices.Contains([]string{"0", "n", "off", "false"}, value)
}

// reserved are the names after "cairn." that steer the boot and are no configuration.
var reserved = []string{"slot", "bootpart", "roothash", "rootblocks", "debug", "emergency"}

// topLevel are the keys of a cloud-config document that the kernel and other programs leave alone.
var topLevel = []string{"hostname", "ssh_authorized_keys", "run_cmd"}

// Config returns the parameters that are configuration: those of topLevel, "cairn.x.y" and k3OS's "k3os.x.y". Their keys
// are paths of the cloud-config document.
func (l Line) Config() []Param {
	var params []Param
	for _, p := range l.params {
		if isConfig(p.Key) {
			params = append(params, p)
		}
	}
	return params
}

func isConfig(key string) bool {
	if slices.Contains(topLevel, key) {
		return true
	}
	first, rest, found := strings.Cut(key, ".")
	return found && (first == "k3os" || first == "cairn" && !slices.Contains(reserved, rest))
}
