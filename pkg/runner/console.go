package runner

import (
	"context"
	"fmt"
	"io"
	"regexp"
	"strings"
	"sync"
	"time"
)

// Line is a line of a machine's console and when it came.
type Line struct {
	Text string
	At   time.Time
}

// Console keeps what a machine prints, line by line, and hands it on. It is
// safe for concurrent use.
type Console struct {
	w io.Writer // may be nil

	mu      sync.Mutex // guards all below
	lines   []Line
	partial strings.Builder
	changed chan struct{} // closed and replaced at each new line
}

// NewConsole returns a Console that copies what it receives to w, which may
// be nil.
func NewConsole(w io.Writer) *Console {
	return &Console{w: w, changed: make(chan struct{})}
}

// escapes are the terminal control sequences that firmware sends.
var escapes = regexp.MustCompile("\x1b(\\[[0-9;?=]*[A-Za-z]|[()][0-9A-Za-z]|[=>c])")

// Write implements io.Writer.
func (c *Console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	rest := string(p)
	for {
		text, after, found := strings.Cut(rest, "\n")
		c.partial.WriteString(text)
		if !found {
			break
		}
		line := strings.TrimRight(escapes.ReplaceAllString(c.partial.String(), ""), "\r")
		c.lines = append(c.lines, Line{line, now})
		c.partial.Reset()
		rest = after
		close(c.changed)
		c.changed = make(chan struct{})
	}
	if c.w == nil {
		return len(p), nil
	}
	return c.w.Write(p)
}

// Wait returns the first whole line, from line number from on, that matches
// re, with its number. It waits until there is one or ctx ends; the error
// then shows the last lines.
func (c *Console) Wait(ctx context.Context, re *regexp.Regexp, from int) (Line, int, error) {
	for {
		c.mu.Lock()
		lines, changed := c.lines, c.changed
		c.mu.Unlock()
		for ; from < len(lines); from++ {
			if re.MatchString(lines[from].Text) {
				return lines[from], from, nil
			}
		}
		select {
		case <-ctx.Done():
			return Line{}, 0, fmt.Errorf("wait for %q on the console: %w; its end:\n%s", re, ctx.Err(), c.Tail(25))
		case <-changed:
		}
	}
}

// Find returns the first line that matches re, if there is one by now.
func (c *Console) Find(re *regexp.Regexp) (Line, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range c.lines {
		if re.MatchString(l.Text) {
			return l, true
		}
	}
	return Line{}, false
}

// Len is the number of whole lines so far.
func (c *Console) Len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.lines)
}

// Tail returns the last n lines.
func (c *Console) Tail(n int) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var b strings.Builder
	for _, l := range c.lines[max(0, len(c.lines)-n):] {
		b.WriteString("    " + l.Text + "\n")
	}
	return b.String() + c.partial.String()
}
