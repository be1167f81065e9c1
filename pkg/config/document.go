package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// Limits of a document. The depth is that of the deepest key we have, doubled.
const (
	MaxSize  = 1 << 20
	maxDepth = 16
	maxNodes = 100_000
)

// document turns the text of a file into its root node: one mapping, without aliases, tags and excess.
func document(file string, data []byte) (*yaml.Node, error) {
	if p := checkText(data); p != nil {
		p.File = file
		return nil, Problems{*p}
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc yaml.Node
	switch err := dec.Decode(&doc); {
	case errors.Is(err, io.EOF):
		return nil, fmt.Errorf("%s: %w", file, ErrNoConfig)
	case err != nil:
		return nil, Problems{syntax(file, data, err)}
	}
	// The shape of this document before the syntax of what follows it.
	if p := checkShape(&doc); p != nil {
		p.File = file
		return nil, Problems{*p}
	}
	var second yaml.Node
	switch err := dec.Decode(&second); {
	case err == nil:
		return nil, Problems{{File: file, Line: second.Line, Message: "a second document starts here; want one"}}
	case !errors.Is(err, io.EOF):
		return nil, Problems{syntax(file, data, err)}
	}
	root := doc.Content[0]
	switch {
	case root.Kind == yaml.ScalarNode && root.ShortTag() == "!!null":
		return nil, fmt.Errorf("%s: %w", file, ErrNoConfig)
	case root.Kind != yaml.MappingNode:
		return nil, Problems{{File: file, Line: root.Line, Message: "want keys and values at the top, got " + kind(root)}}
	}
	return root, nil
}

// checkText finds what makes data no text at all, in time linear to its size.
func checkText(data []byte) *Problem {
	line := func(at int) int { return 1 + bytes.Count(data[:at], []byte("\n")) }
	switch {
	case len(data) > MaxSize:
		return &Problem{Message: fmt.Sprintf("%d bytes; at most %d", len(data), MaxSize)}
	case bytes.HasPrefix(data, []byte("#!")):
		return &Problem{Line: 1, Message: "this is a script; want a cloud-config document, which may hold it under run_cmd or write_files"}
	case bytes.HasPrefix(data, []byte{0xff, 0xfe}), bytes.HasPrefix(data, []byte{0xfe, 0xff}):
		return &Problem{Line: 1, Message: "this is UTF-16; save the file as UTF-8"}
	}
	if at := bytes.IndexByte(data, 0); at >= 0 {
		return &Problem{Line: line(at), Message: "a zero byte: this is not a text file"}
	}
	if utf8.Valid(data) {
		return nil
	}
	for at := 0; ; {
		r, n := utf8.DecodeRune(data[at:])
		if r == utf8.RuneError && n <= 1 {
			return &Problem{Line: line(at), Message: fmt.Sprintf("byte 0x%02x is not UTF-8", data[at])}
		}
		at += n
	}
}

var yamlLine = regexp.MustCompile(`^yaml: (?:line (\d+): )?`)

// syntax turns an error of the YAML parser into a Problem. The parser's words are kept where they cannot quote values.
func syntax(file string, data []byte, err error) Problem {
	text := err.Error()
	p := Problem{File: file}
	if m := yamlLine.FindStringSubmatch(text); m != nil {
		p.Line, _ = strconv.Atoi(m[1]) // no line: 0
		text = text[len(m[0]):]
	}
	switch {
	case strings.HasPrefix(text, "unknown anchor"):
		text = "aliases (*name) are not supported: write the value out"
		p.Line = 0
	case strings.Contains(text, "exceeded max depth"):
		text = "nested too deeply"
		p.Line = deepLine(data)
	case tabIndented(data, p.Line):
		text = "indented with a tab; use spaces"
	default:
		text = "not YAML: " + text
	}
	p.Message = text
	return p
}

// tabIndented reports whether the indentation of line holds a tab.
func tabIndented(data []byte, line int) bool {
	lines := bytes.SplitN(data, []byte("\n"), line+1)
	if line < 1 || len(lines) < line {
		return false
	}
	text := lines[line-1]
	return bytes.IndexByte(text[:len(text)-len(bytes.TrimLeft(text, " \t"))], '\t') >= 0
}

// checkShape walks the whole tree without recursion and refuses what no configuration needs.
func checkShape(doc *yaml.Node) *Problem {
	type place struct {
		n     *yaml.Node
		depth int
	}
	nodes := 0
	for todo := []place{{doc, -1}}; len(todo) > 0; {
		at := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		nodes++
		p := &Problem{Line: at.n.Line}
		switch {
		case at.depth > maxDepth:
			p.Message = "nested too deeply"
		case nodes > maxNodes:
			p.Message = fmt.Sprintf("more than %d values", maxNodes)
		case at.n.Kind == yaml.AliasNode:
			p.Message = "aliases (*name) are not supported: write the value out"
		case at.n.Anchor != "":
			p.Message = "anchors (&name) are not supported: write the value out where it is used"
		case !plainTag(at.n):
			p.Message = fmt.Sprintf("tag %s is not supported", shown(at.n.ShortTag()))
		default:
			p = nil
		}
		if p != nil {
			return p
		}
		// Last first, so that the first problem in the document is the one reported.
		for i := len(at.n.Content) - 1; i >= 0; i-- {
			todo = append(todo, place{at.n.Content[i], at.depth + 1})
		}
	}
	return nil
}

func plainTag(n *yaml.Node) bool {
	switch n.Kind {
	case yaml.MappingNode:
		return n.ShortTag() == "!!map"
	case yaml.SequenceNode:
		return n.ShortTag() == "!!seq"
	case yaml.ScalarNode:
		switch n.ShortTag() {
		case "!!str", "!!int", "!!float", "!!bool", "!!null", "!!timestamp", "!!merge":
			return true
		}
		return false
	}
	return true
}

// kind names the type of n for a message.
func kind(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "keys and values"
	case yaml.SequenceNode:
		return "a list"
	}
	switch n.ShortTag() {
	case "!!null":
		return "nothing"
	case "!!bool":
		return "true or false"
	case "!!int", "!!float":
		return "a number"
	}
	return "text"
}

// deepLine is the first line at which more than maxDepth collections are open; the YAML parser refuses such documents
// without saying where. Brackets inside of quoted text count as well: a document this deep holds nothing but brackets,
// dashes or indentation, so that the first line is near enough when none stands out.
func deepLine(data []byte) int {
	open := 0
	for i, line := range bytes.Split(data, []byte("\n")) {
		dashes := len(line) - len(bytes.TrimLeft(line, "- ?"))
		if dashes/2 > maxDepth {
			return i + 1
		}
		for _, c := range line {
			switch c {
			case '[', '{':
				open++
			case ']', '}':
				open--
			}
			if open > maxDepth {
				return i + 1
			}
		}
	}
	return 1
}
