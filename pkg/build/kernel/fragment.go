package kernel

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// architectures are the names of fragments that only one target takes; every
// other fragment goes into every kernel.
var architectures = []string{"amd64", "arm64", "armv7"}

// Option is one line of a fragment: CONFIG_NAME=value # reason.
type Option struct {
	Name   string // with CONFIG_
	Value  string // y, m, n, a number or a quoted string
	Reason string
	Pos    string // file:line
}

// Fragments reads the options of every fragment in dir that a kernel for arch
// takes, in the order of file names. A line without a reason, an option named
// twice and anything else that is neither a comment nor an option is an error.
func Fragments(dir, arch string) ([]Option, error) {
	if !slices.Contains(architectures, arch) {
		return nil, fmt.Errorf("kernel fragments: unknown architecture %q", arch)
	}
	paths, err := filepath.Glob(filepath.Join(dir, "*.config"))
	if err != nil {
		return nil, err
	}
	if len(paths) == 0 {
		return nil, fmt.Errorf("kernel fragments: no *.config in %s", dir)
	}
	var all []Option
	var problems []error
	seen := map[string]string{}
	for _, path := range paths {
		name := strings.TrimSuffix(filepath.Base(path), ".config")
		if name != arch && slices.Contains(architectures, name) {
			continue
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		options, err := parseFragment(filepath.Base(path), string(data))
		if err != nil {
			problems = append(problems, err)
		}
		for _, o := range options {
			if first, ok := seen[o.Name]; ok {
				problems = append(problems, fmt.Errorf("%s: %s is already at %s", o.Pos, o.Name, first))
			}
			seen[o.Name] = o.Pos
		}
		all = append(all, options...)
	}
	return all, errors.Join(problems...)
}

// parseFragment reads one fragment; its errors name every bad line.
func parseFragment(file, text string) ([]Option, error) {
	var options []Option
	var problems []error
	n := 0
	for line := range strings.Lines(text) {
		n++
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		pos := fmt.Sprintf("%s:%d", file, n)
		setting, reason, _ := strings.Cut(line, " #")
		name, value, ok := strings.Cut(strings.TrimSpace(setting), "=")
		switch {
		case !ok || !strings.HasPrefix(name, "CONFIG_") || value == "" || strings.ContainsAny(name, " \t"):
			problems = append(problems, fmt.Errorf("%s: want CONFIG_NAME=value # reason, got %q", pos, line))
		case strings.TrimSpace(reason) == "":
			problems = append(problems, fmt.Errorf("%s: %s has no reason", pos, name))
		default:
			options = append(options, Option{Name: name, Value: value, Reason: strings.TrimSpace(reason), Pos: pos})
		}
	}
	return options, errors.Join(problems...)
}

// merged is the text that options have for kconfig.
func merged(options []Option) string {
	var b strings.Builder
	for _, o := range options {
		fmt.Fprintf(&b, "%s=%s\n", o.Name, o.Value)
	}
	return b.String()
}

// Lost compares what options ask for with config, the text of a .config that
// kconfig made of them, and returns one error that names every difference.
// kconfig itself drops in silence what does not exist or lacks a dependency.
func Lost(options []Option, config string) error {
	got := map[string]string{}
	for line := range strings.Lines(config) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), "=")
		if ok && strings.HasPrefix(name, "CONFIG_") {
			got[name] = value
		}
	}
	var problems []error
	for _, o := range options {
		value, ok := got[o.Name]
		if !ok {
			value = "n"
		}
		if value != o.Value {
			problems = append(problems, fmt.Errorf("%s: %s=%s became %s", o.Pos, o.Name, o.Value, value))
		}
	}
	return errors.Join(problems...)
}
