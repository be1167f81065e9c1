package config

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"reflect"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Load reads the document at path: in every process but init that is the effective one that init has merged. A missing
// file is an error that wraps fs.ErrNotExist, an empty one wraps ErrNoConfig, a bad one is Problems.
func Load(path string) (*Config, error) {
	source, err := ReadSource(path)
	if err != nil {
		return nil, err
	}
	return Parse(source.Name, source.Data)
}

// Parse reads one document that is a machine's whole configuration; name is what its problems call the file. A document
// that is completed by others goes through Merge with them. What Merge finds fault with for its owner to mend at once, a
// short token, is taken here: a machine that runs with it must start again.
func Parse(name string, data []byte) (*Config, error) {
	root, _, err := Source{Name: name, Data: data}.read()
	if err != nil {
		return nil, err
	}
	m := newMerger()
	m.merge(m.root, root, field{typ: reflect.TypeFor[Config]()}, name)
	return m.finish()
}

// decode fills a Config from a tree that the reader made.
func decode(root *yaml.Node) (*Config, error) {
	var c Config
	if err := root.Decode(&c); err != nil {
		return nil, fmt.Errorf("decode configuration: %w", err)
	}
	return &c, nil
}

// Marshal returns the document of c; Parse of it yields c again.
func (c *Config) Marshal() ([]byte, error) {
	var root yaml.Node
	if err := root.Encode(c); err != nil {
		return nil, fmt.Errorf("encode configuration: %w", err)
	}
	return encode(&root)
}

func encode(root *yaml.Node) ([]byte, error) {
	quoteLines(root)
	var b bytes.Buffer
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	if err := errors.Join(enc.Encode(root), enc.Close()); err != nil {
		return nil, fmt.Errorf("encode configuration: %w", err)
	}
	return b.Bytes(), nil
}

// quoteLines makes every text of several lines a quoted one: block scalars lose some leading and trailing white space.
func quoteLines(n *yaml.Node) {
	if n.Kind == yaml.ScalarNode && (strings.ContainsAny(n.Value, "\n\r\t") || strings.TrimSpace(n.Value) != n.Value) {
		n.Style = yaml.DoubleQuotedStyle
	}
	for _, child := range n.Content {
		quoteLines(child)
	}
}

// ReadSource reads the file at path, of which it takes MaxSize bytes and one more, which Parse then refuses.
func ReadSource(path string) (Source, error) {
	f, err := os.Open(path)
	if err != nil {
		return Source{}, fmt.Errorf("read configuration: %w", err)
	}
	defer f.Close() // read only: nothing to lose
	data, err := readUpTo(f, MaxSize+1)
	if err != nil {
		return Source{}, fmt.Errorf("read configuration %s: %w", path, err)
	}
	return Source{Name: path, Data: data}, nil
}
