// Package guard keeps a bug from taking PID 1, and with it the machine, down: it runs functions so that a panic becomes
// an error and a log line.
package guard

import (
	"fmt"
	"runtime/debug"
	"time"
)

// Logf prints one line.
type Logf func(format string, args ...any)

// Call runs fn; a panic is returned as an error that holds the stack.
func Call(fn func() error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("a bug in init: %v\n%s", v, debug.Stack())
		}
	}()
	return fn()
}

// Go runs fn in a goroutine. An error, or a panic, is logged under name and ends only that goroutine. The returned
// channel is closed when fn is over.
func Go(logf Logf, name string, fn func() error) <-chan struct{} {
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := Call(fn); err != nil {
			logf("%s: %v", name, err)
		}
	}()
	return done
}

// Within runs fn and reports whether it ended in time. One that hangs, as a sync does on a dead disk, is left behind.
func Within(limit time.Duration, logf Logf, name string, fn func() error) bool {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-Go(logf, name, fn):
		return true
	case <-timer.C:
		logf("%s: did not end within %v; going on without", name, limit)
		return false
	}
}
