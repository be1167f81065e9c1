//go:build cgo && linux

package member

import (
	"errors"
	"io"
	"net"
	"testing"
	"time"
)

// TestServeFrom closes a connection whose greeting is another's than who opened it, and keeps one that greets as itself.
func TestServeFrom(t *testing.T) {
	n := newNetwork(t)
	a := n.start("a")
	const caller, leader = 1<<40 + 1, 1<<40 + 2
	for greets, closed := range map[uint64]bool{caller: false, leader: true, a.ID(): true} {
		ours, theirs := net.Pipe()
		served := make(chan struct{})
		go func() { a.ServeFrom(caller, theirs); close(served) }()
		if err := ours.SetReadDeadline(time.Now().Add(300 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		_, err := ours.Write(encodeGreeting(greets, Name(greets)))
		if err == nil { // else it was closed before all of it was read
			_, err = ours.Read(make([]byte, 1))
		}
		if got := errors.Is(err, io.EOF) || errors.Is(err, io.ErrClosedPipe); got != closed {
			t.Errorf("who opened it as %s and greets as %s: %v; want it closed: %t", Name(caller), Name(greets), err, closed)
		}
		ours.Close()
		<-served
	}
}
