package node

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// TestWatchMembership plays what the cluster says, a letter for each question: o for an answer, u for a refusal of the
// certificate, x for silence. From the question with the number in removedAt on, the machine's identity is refused, too.
func TestWatchMembership(t *testing.T) {
	for _, tt := range []struct {
		name      string
		says      string
		removedAt int // 0: never
		want      string
	}{
		{"a member", "oooo", 0, "ask ask ask ask"},
		{"no server answers", "xxxx", 0, "ask ask ask ask"},
		{"one refusal of a server that just started", "ouoo", 0, "ask ask ask ask"},
		{"a certificate that ended", "uuo", 0, "ask ask renew ask"},
		{"removed", "ouu", 1, "ask ask ask renew rejoin"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var calls []string
			asked, removed, looks := 0, false, 0
			note := func(what string) { calls = append(calls, what) }
			err := watchMembership(ctx, slog.New(slog.DiscardHandler), memberWatch{
				ask: func(context.Context) error {
					note("ask")
					if asked++; asked >= len(tt.says) && tt.removedAt == 0 {
						cancel()
					}
					switch tt.says[asked-1] {
					case 'u':
						return apierrors.NewUnauthorized("removed")
					case 'x':
						return errors.New("connection refused")
					}
					return nil
				},
				renew: func(context.Context) error {
					note("renew")
					removed = tt.removedAt > 0
					return nil
				},
				removed: func() bool {
					if removed {
						looks++
					}
					return removed && looks < 4 // then it has joined
				},
				rejoin:   func(context.Context) error { note("rejoin"); return nil },
				interval: time.Millisecond,
			})
			if got := strings.Join(calls, " "); got != tt.want {
				t.Errorf("it did %q; want %q", got, tt.want)
			}
			if want := tt.removedAt > 0; errors.Is(err, errRemoved) != want || !want && err != nil {
				t.Errorf("watchMembership = %v; want errRemoved: %t", err, want)
			}
		})
	}
}

// TestWatchMembershipOfRemoved starts while the machine is joining again, and ends when it has.
func TestWatchMembershipOfRemoved(t *testing.T) {
	looks := 0
	err := watchMembership(t.Context(), slog.New(slog.DiscardHandler), memberWatch{
		removed:  func() bool { looks++; return looks < 4 },
		interval: time.Millisecond,
	})
	if !errors.Is(err, errRemoved) {
		t.Errorf("watchMembership = %v; want errRemoved", err)
	}
}
