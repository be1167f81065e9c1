package store

import (
	"context"
	"errors"
	"time"

	"github.com/k3s-io/kine/pkg/server"
)

// watch is one client's watch of a range.
type watch struct {
	in     keyRange
	from   int64 // first revision that the client wants
	events chan []*server.Event
	cancel context.CancelCauseFunc
	lag    chan struct{}
	// unawaited is true for a watch of the store's own: no client is promised
	// that it has its events.
	unawaited bool

	// Guarded by feed.mu.
	synced   bool
	position int64 // while behind: everything up to it has been sent
}

func (w *watch) wake() {
	select {
	case w.lag <- struct{}{}:
	default:
	}
}

// filter returns the events that belong to the watch; the result may share
// events.
func (w *watch) filter(events []*server.Event) []*server.Event {
	var mine []*server.Event
	for _, e := range events {
		if e.KV.ModRevision >= w.from && w.in.contains(e.KV.Key) {
			mine = append(mine, e)
		}
	}
	return mine
}

// watch starts a watch from a revision; 0 is from now on. The channel of
// events is closed when ctx ends or the watch fails, errs then holds why.
func (f *feed) watch(ctx context.Context, in keyRange, from int64) (events <-chan []*server.Event, errs <-chan error) {
	if from == 0 {
		from = f.head() + 1
	}
	return f.follow(ctx, &watch{in: in, from: from})
}

// follow starts a watch whose range and first revision are set.
func (f *feed) follow(ctx context.Context, w *watch) (events <-chan []*server.Event, errs <-chan error) {
	ctx, cancel := context.WithCancelCause(ctx)
	w.cancel, w.position = cancel, w.from-1
	w.events, w.lag = make(chan []*server.Event, watchBuffer), make(chan struct{}, 1)
	failed := make(chan error, 1)
	f.mu.Lock()
	if f.closed {
		cancel(errClosed)
	}
	w.synced = w.position >= f.published
	f.watches[w] = struct{}{}
	f.mu.Unlock()
	if !w.synced {
		w.wake()
	}
	go func() {
		err := f.serve(ctx, w)
		f.mu.Lock()
		w.synced, w.position = false, 0 // Nobody sends to it any more.
		f.mu.Unlock()
		if err != nil && !errors.Is(err, context.Canceled) {
			failed <- err
		}
		cancel(nil)
		// Closed before waitFor forgets the watch: who is told that all watches
		// have their events can see that this one may lack some.
		close(w.events)
		f.mu.Lock()
		delete(f.watches, w)
		f.advance(f.published)
		f.mu.Unlock()
	}()
	return w.events, failed
}

// serve brings the watch up to date whenever it is behind.
func (f *feed) serve(ctx context.Context, w *watch) error {
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-w.lag:
		}
		for !f.join(w) {
			if err := f.catchUp(ctx, w); err != nil {
				return err
			}
		}
	}
}

// join makes the watch synced if nothing is missing.
func (f *feed) join(w *watch) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if w.position < f.published {
		return false
	}
	w.synced = true
	f.advance(f.published)
	return true
}

// room waits until few of the chunks that were read for this watch alone are
// queued. Nobody tells when the client takes one, so it looks now and then.
func (w *watch) room(ctx context.Context) error {
	if len(w.events) < behindBuffer {
		return nil
	}
	stalled := time.NewTimer(stallLimit)
	defer stalled.Stop()
	ticker := time.NewTicker(behindLook)
	defer ticker.Stop()
	for left := len(w.events); left >= behindBuffer; {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-stalled.C:
			return errStalled
		case <-ticker.C:
			if now := len(w.events); now < left {
				left = now
				stalled.Reset(stallLimit)
			}
		}
	}
	return nil
}

// catchUp sends a chunk of what the watch lacks, from the database.
func (f *feed) catchUp(ctx context.Context, w *watch) error {
	if err := w.room(ctx); err != nil {
		return err
	}
	f.mu.Lock()
	after, to := w.position, f.published
	f.mu.Unlock()
	var c chunk
	full := errors.New("full")
	err := f.reader.changes(ctx, w.in, after, to, feedChunk, func(e *server.Event) error {
		if c.add(e) {
			return full
		}
		return nil
	})
	switch {
	case errors.Is(err, full):
		to = c.events[len(c.events)-1].KV.ModRevision
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil:
		return toEtcd(err)
	}
	if compacted := f.compacted(); after+1 < compacted {
		return server.ErrCompacted // Some of what was to be sent may be gone.
	}
	if len(c.events) > 0 {
		timer := time.NewTimer(stallLimit)
		defer timer.Stop()
		select {
		case w.events <- c.events:
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-timer.C:
			return errStalled
		}
	}
	f.mu.Lock()
	w.position = to
	f.mu.Unlock()
	return nil
}
