package kernel

import (
	"bytes"
	"strings"
)

// tailLines is how much of a failed make's output an error shows.
const tailLines = 40

// lines is a writer that hands on each line and remembers the last ones.
type lines struct {
	on      func(string)
	partial []byte
	last    []string
}

func (l *lines) Write(p []byte) (int, error) {
	l.partial = append(l.partial, p...)
	for {
		i := bytes.IndexByte(l.partial, '\n')
		if i < 0 {
			return len(p), nil
		}
		line := string(l.partial[:i])
		l.partial = l.partial[i+1:]
		l.last = append(l.last, line)
		if len(l.last) > tailLines {
			l.last = l.last[1:]
		}
		if l.on != nil {
			l.on(line)
		}
	}
}

// tail is the end of what was written.
func (l *lines) tail() string {
	return strings.Join(append(l.last, string(l.partial)), "\n")
}
