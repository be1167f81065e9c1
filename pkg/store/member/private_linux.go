//go:build cgo && linux

package member

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// privateNet is a thread in a network namespace of its own. Sockets belong to
// the namespace of the thread that made them, wherever they are used. A nil
// privateNet is the process's own namespace.
type privateNet struct {
	work chan func()
	done chan struct{}
}

func newPrivateNet() (*privateNet, error) {
	p := &privateNet{work: make(chan func()), done: make(chan struct{})}
	ready := make(chan error)
	go func() {
		runtime.LockOSThread() // For good: the thread ends with the goroutine.
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			runtime.UnlockOSThread()
			ready <- fmt.Errorf("unshare network: %w", err)
			return
		}
		ready <- nil
		for {
			select {
			case f := <-p.work:
				f()
			case <-p.done:
				return
			}
		}
	}()
	if err := <-ready; err != nil {
		return nil, err
	}
	return p, nil
}

// do calls f inside the namespace. It reports false, and does not call f,
// after close.
func (p *privateNet) do(f func()) bool {
	if p == nil {
		f()
		return true
	}
	done := make(chan struct{})
	call := func() {
		defer close(done)
		f()
	}
	select {
	case p.work <- call:
		<-done
		return true
	case <-p.done:
		return false
	}
}

// close ends the thread. The namespace lives on while sockets are open.
func (p *privateNet) close() {
	if p != nil {
		close(p.done)
	}
}
