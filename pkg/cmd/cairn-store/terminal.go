package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
)

// terminal is where the operator sits.
type terminal struct {
	in       io.Reader
	out, err io.Writer
	// person says that somebody is there to answer.
	person bool
}

// errNotConfirmed says that nothing was changed, because nobody wanted it.
var errNotConfirmed = errors.New("nothing was changed")

// confirm returns nil when the operator agrees to what was printed: by the flag
// --yes, or by typing word.
func (t terminal) confirm(ctx context.Context, yes bool, word string) error {
	if yes {
		return nil
	}
	if !t.person {
		return fmt.Errorf("%w: read the plan and give --yes if it is what you want", errNotConfirmed)
	}
	fmt.Fprintf(t.err, "Type %q to go on: ", word)
	answer := make(chan string, 1)
	go func() {
		line, _ := bufio.NewReader(t.in).ReadString('\n') // What came before an error is not the word.
		answer <- strings.TrimSpace(line)
	}()
	select {
	case got := <-answer:
		if got != word {
			return fmt.Errorf("%w: the answer was not %q", errNotConfirmed, word)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%w: interrupted", errNotConfirmed)
	}
}
