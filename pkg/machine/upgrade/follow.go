package upgrade

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/cairn-os/cairn/pkg/config"
	"github.com/cairn-os/cairn/pkg/update"
)

const (
	// firstLook is how long after the start the channel is looked at: a machine that just started has other things to do.
	firstLook = 2 * time.Minute
	// retrySettle and mostRetry are the first and the longest pause after Settle failed.
	retrySettle = 5 * time.Second
	mostRetry   = time.Minute
)

// Run settles what earlier boots left, and then follows the channel if it is to, until ctx ends.
func (m *Manager) Run(ctx context.Context, settings config.Upgrade) {
	for wait := retrySettle; ; wait = min(2*wait, mostRetry) {
		err := m.Settle(ctx)
		m.tell(err)
		if err == nil {
			break
		}
		m.o.Log.Error("upgrades", "error", err)
		if !pause(ctx, wait) {
			return
		}
	}
	if !settings.Auto || settings.Source == "" {
		return
	}
	for wait := firstLook; pause(ctx, wait); wait = m.follow(ctx, settings) {
	}
}

// follow looks at the channel and takes what is new, in the window. It returns how long to wait for the next look.
func (m *Manager) follow(ctx context.Context, settings config.Upgrade) time.Duration {
	now := m.o.Now()
	if !settings.Window.Open(now) {
		return settings.Window.Next(now).Sub(now) + spread(time.Minute)
	}
	_, err := m.Upgrade(ctx, Request{}, func(update.Progress) {})
	switch {
	case errors.Is(err, update.ErrCurrent), errors.Is(err, ErrBusy):
		err = nil
	case err != nil:
		m.o.Log.Warn("the channel was not followed", "error", err)
	}
	m.tell(err)
	return settings.Interval() + spread(settings.Interval()/10)
}

// spread is a time by which the machines of a fleet differ, so that they do not all ask at once.
func spread(most time.Duration) time.Duration { return rand.N(most + 1) }

// tell keeps what keeps this daemon from what it does by itself.
func (m *Manager) tell(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.problem = ""
	if err != nil {
		m.problem = err.Error()
	}
}

// pause waits; it reports false when ctx ends first.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
