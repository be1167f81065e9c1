package health

import (
	"context"
	"fmt"
	"time"
)

// Look is a check of the caller's own: of what only the caller knows.
type Look struct {
	// Name is told with what it finds; no two have the same one.
	Name string
	// Timeout is how long Do may take. 0: defaultTimeout.
	Timeout time.Duration
	// Do looks once. It is never called a second time before it has returned, and should return soon after ctx ends.
	Do func(ctx context.Context) Finding
}

const (
	defaultTimeout = 5 * time.Second
	// grace is how long a look that has run out of time may take to say so itself: it knows more.
	grace = 2 * time.Second
)

// looker makes the looks of one check, one at a time.
type looker struct {
	Look
	busy chan struct{} // holds one token while Do runs
}

func newLooker(l Look) *looker {
	if l.Timeout == 0 {
		l.Timeout = defaultTimeout
	}
	return &looker{Look: l, busy: make(chan struct{}, 1)}
}

// try looks once and returns within Timeout and grace, even when Do does not. Such a one is left alone until it returns.
func (l *looker) try(ctx context.Context) Finding {
	select {
	case l.busy <- struct{}{}:
	default:
		return Finding{Text: fmt.Sprintf("hangs: an earlier look has not ended, which may take %s", l.Timeout)}
	}
	ctx, cancel := context.WithTimeout(ctx, l.Timeout)
	defer cancel()
	found := make(chan Finding, 1)
	go func() {
		f := l.Do(ctx)
		<-l.busy
		found <- f
	}()
	select {
	case f := <-found:
		return f
	case <-ctx.Done():
	}
	late := time.NewTimer(grace)
	defer late.Stop()
	select {
	case f := <-found:
		return f
	case <-late.C:
		return Finding{Text: fmt.Sprintf("no answer within %s", l.Timeout)}
	}
}
