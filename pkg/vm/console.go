package vm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"sync"
	"time"
)

// ErrOff says that the machine went off before the awaited text came.
var ErrOff = errors.New("the machine is off")

// Match is a text that the console said.
type Match struct {
	Text   string
	Groups []string      // of the expression, from the first
	At     time.Duration // since power-on
}

// WaitConsole waits until the console has said what re matches, and returns
// the first such text that no earlier call has returned or passed over.
// Concurrent calls compete for the text.
func (m *Machine) WaitConsole(ctx context.Context, re *regexp.Regexp) (Match, error) {
	for {
		match, changed, ok := m.console.find(re)
		if ok {
			return match, nil
		}
		if changed == nil {
			return Match{}, fmt.Errorf("wait for %q on the console: %w", re, errors.Join(ErrOff, m.err))
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return Match{}, fmt.Errorf("wait for %q on the console: %w", re, context.Cause(ctx))
		}
	}
}

// Transcript returns everything that the console has said.
func (m *Machine) Transcript() string {
	m.console.mu.Lock()
	defer m.console.mu.Unlock()
	return string(m.console.text)
}

// console keeps what the serial port said, with the time of each piece.
type console struct {
	out   io.Writer // nil means nowhere
	start time.Time

	mu      sync.Mutex // guards the rest
	text    []byte
	pieces  []piece
	next    int           // where the next search starts
	changed chan struct{} // closed and replaced at every change; nil when no more comes
}

// piece says when the text up to end was complete.
type piece struct {
	end int
	at  time.Duration
}

func newConsole(out io.Writer) *console {
	return &console{out: out, changed: make(chan struct{})}
}

func (c *console) Write(p []byte) (int, error) {
	c.mu.Lock()
	c.text = append(c.text, p...)
	c.pieces = append(c.pieces, piece{len(c.text), time.Since(c.start)})
	close(c.changed)
	c.changed = make(chan struct{})
	c.mu.Unlock()
	if c.out == nil {
		return len(p), nil
	}
	return c.out.Write(p)
}

// close ends all waiting.
func (c *console) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	close(c.changed)
	c.changed = nil
}

// find searches what has not been searched successfully yet. changed is
// closed at the next change, and nil when none comes.
func (c *console) find(re *regexp.Regexp) (_ Match, changed <-chan struct{}, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	at := re.FindSubmatchIndex(c.text[c.next:])
	if at == nil {
		return Match{}, c.changed, false
	}
	from := c.next
	group := func(i int) string {
		if at[2*i] < 0 {
			return ""
		}
		return string(c.text[from+at[2*i] : from+at[2*i+1]])
	}
	m := Match{Text: group(0)}
	for i := 1; i <= re.NumSubexp(); i++ {
		m.Groups = append(m.Groups, group(i))
	}
	c.next = from + at[1]
	for _, p := range c.pieces {
		if m.At = p.at; p.end >= c.next {
			break
		}
	}
	return m, c.changed, true
}
