package member

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// privateNet is a thread in a network namespace of its own. Sockets belong to
// the namespace of the thread that made them, wherever they are used. A nil
// privateNet is the process's own namespace.
type privateNet struct{ work chan func() }

func newPrivateNet() (*privateNet, error) {
	p := &privateNet{work: make(chan func())}
	ready := make(chan error)
	go func() {
		runtime.LockOSThread() // For good: the thread ends with the goroutine.
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			runtime.UnlockOSThread()
			ready <- fmt.Errorf("unshare network: %w", err)
			return
		}
		ready <- nil
		for f := range p.work {
			f()
		}
	}()
	if err := <-ready; err != nil {
		return nil, err
	}
	return p, nil
}

// do calls f inside the namespace.
func (p *privateNet) do(f func()) {
	if p == nil {
		f()
		return
	}
	done := make(chan struct{})
	p.work <- func() {
		defer close(done)
		f()
	}
	<-done
}

func (p *privateNet) close() {
	if p != nil {
		close(p.work)
	}
}
