package config

import (
	"errors"
	"fmt"
	"strings"
)

// ErrNoConfig says that a document holds nothing, or comments only.
var ErrNoConfig = errors.New("no configuration in it")

// Problem is one thing that is wrong with a document. It never holds a secret.
type Problem struct {
	File    string
	Line    int    // 0: the source has no lines
	Path    string // "cairn.labels.store", "write_files[0].path"; "" for the document itself
	Message string
}

func (p Problem) String() string {
	var b strings.Builder
	b.WriteString(p.File)
	if p.Line > 0 {
		fmt.Fprintf(&b, ":%d", p.Line)
	}
	if p.Path != "" {
		b.WriteString(": " + p.Path)
	}
	return b.String() + ": " + p.Message
}

// Problems is the error of a document that must not be used: all that was found, in the order of the document.
type Problems []Problem

// maxShown keeps a document of nonsense from flooding the console.
const maxShown = 20

func (p Problems) Error() string {
	lines := make([]string, 0, maxShown+1)
	for i, one := range p {
		if i == maxShown {
			lines = append(lines, fmt.Sprintf("and %d more problems", len(p)-maxShown))
			break
		}
		lines = append(lines, one.String())
	}
	return strings.Join(lines, "\n")
}

// shown shortens and quotes text of the document for a message.
func shown(text string) string {
	const most = 60
	if len(text) > most {
		text = text[:most] + "..."
	}
	return fmt.Sprintf("%q", text)
}
