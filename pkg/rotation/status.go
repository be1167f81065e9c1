package rotation

import (
	"context"
	"time"

	"k8s.io/client-go/kubernetes"
)

// Status is what a person may know about a rotation under way.
type Status struct {
	ID      string
	Stage   Stage
	Since   time.Time // of the stage
	Begun   time.Time
	By      string        // name of the server that was told to
	Waiting []string      // who has not come as far as the stage, in words that say what to do
	Settles time.Duration // what is left of the time that a stage is held when nobody is waited for
}

// Look returns the rotation under way as any server sees it, and nil when there is none. dir has the server's certificates,
// of that life.
func Look(ctx context.Context, client kubernetes.Interface, dir string, life time.Duration, now time.Time) (*Status, error) {
	state, err := get(ctx, client)
	if state == nil || err != nil {
		return nil, err
	}
	s := &Status{ID: state.ID, Stage: state.Stage, Since: state.Since, Begun: state.Begun, By: state.By}
	v, err := see(ctx, client, dir)
	if err != nil {
		return s, err
	}
	s.Waiting = v.waiting(state)
	if len(s.Waiting) == 0 && state.Stage != retire {
		s.Settles = settle(life)
		if !state.Agreed.IsZero() {
			s.Settles = min(max(s.Settles-now.Sub(state.Agreed), 0), s.Settles)
		}
	}
	return s, nil
}
