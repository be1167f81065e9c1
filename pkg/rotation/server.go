package rotation

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/cairn-os/cairn/pkg/join"
	"github.com/cairn-os/cairn/pkg/nodeevent"
	"github.com/cairn-os/cairn/pkg/pki"
)

const (
	// serverInterval is how often a server makes sure that it is where the stage is, and tries again what went wrong.
	serverInterval = 10 * time.Second
	// refreshInterval is how often what does not notice a changed file by itself is made to look.
	refreshInterval = 30 * time.Second
	// sayAgain is after what time an unchanged problem is made an Event again.
	sayAgain = 30 * time.Minute
)

// ServerOptions are for one server's part.
type ServerOptions struct {
	Client kubernetes.Interface // with an administrator's rights
	Node   string               // name of the server's own node
	Dir    string               // of the server's certificates
	// Change calls f while nothing else works on the certificates, and does what is to be done when f changed them. It
	// returns f's error.
	Change func(f func(pki.Options) (changed bool, err error)) error
	// Refresh has what this server runs look at its files again; it is called now and then while a rotation is under way.
	// May be nil.
	Refresh func(context.Context)
	Stage   func(Stage) // hears the stage of each look, "" for none; may be nil
	Log     *slog.Logger
	Now     func() time.Time // nil: time.Now
}

// Server brings one server's files to where the rotation is. Run is to be called once.
type Server struct {
	o    ServerOptions
	told said
	mark string // the last one that was recorded

	refreshed time.Time
}

// said is the last problem that was told.
type said struct {
	text string
	at   time.Time
}

// NewServer returns a server's part, which does nothing until it is run.
func NewServer(o ServerOptions) *Server {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Stage == nil {
		o.Stage = func(Stage) {}
	}
	return &Server{o: o}
}

// Run works until ctx ends and returns nil then. The other errors are of its set-up.
func (s *Server) Run(ctx context.Context) error { return follow(ctx, s.o.Client, s.look) }

func (s *Server) look(ctx context.Context, secret *corev1.Secret) (time.Duration, error) {
	if secret == nil {
		s.o.Stage("")
		return 0, nil
	}
	state, err := parse(secret)
	if err == nil {
		s.o.Stage(state.Stage)
		err = s.take(ctx, secret, state)
	}
	if err != nil && ctx.Err() == nil {
		s.complain(ctx, err)
	}
	if state == nil {
		return serverSlow, nil
	}
	return state.pace(s.o.Now(), serverInterval, serverSlow), nil
}

// take applies the stage and says so. Both are done again at each look: the files may have been replaced by a restored
// copy, and so may the record.
func (s *Server) take(ctx context.Context, secret *corev1.Secret, state *State) error {
	outdated, err := pki.Outdated(s.o.Dir, state.Successors)
	if err != nil {
		return err
	}
	if outdated {
		return discard(ctx, s.o.Client, s.o.Log, s.o.Node, s.o.Now(), secret) // the leader's authorities may be others
	}
	err = s.o.Change(func(o pki.Options) (bool, error) { return apply(state, o) })
	if err != nil {
		return err
	}
	if now := s.o.Now(); s.o.Refresh != nil && now.Sub(s.refreshed) >= refreshInterval {
		s.refreshed = now
		s.o.Refresh(ctx)
	}
	if err := join.SetAuthorities(ctx, s.o.Client, s.o.Node, state.mark()); err != nil {
		return fmt.Errorf("record the stage: %w", err)
	}
	if s.mark != state.mark() {
		s.mark = state.mark()
		s.o.Log.Info("authorities: this server has come to the stage", "stage", state.Stage, "id", state.ID)
	}
	s.told = said{}
	return nil
}

func apply(state *State, o pki.Options) (bool, error) {
	switch state.Stage {
	case trust:
		return pki.Trust(o, state.Successors)
	case sign:
		return pki.Succeed(o, state.Successors)
	}
	return pki.Retire(o, state.Successors)
}

// complain says once what keeps this server behind: the others wait for it.
func (s *Server) complain(ctx context.Context, err error) {
	now := s.o.Now()
	if s.told.text == err.Error() && now.Sub(s.told.at) < sayAgain {
		return
	}
	s.told = said{err.Error(), now}
	s.o.Log.Error("authorities: this server does not come to the stage", "error", err)
	tell(ctx, s.o.Client, s.o.Log, nodeevent.Event{
		Node: s.o.Node, At: now, Warning: true, Reason: notReplaced,
		Message: "this server does not follow the replacement of the authorities, and all wait for it: " + err.Error(),
	})
}
