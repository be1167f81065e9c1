package rotation

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/cairn-os/cairn/pkg/join"
	"github.com/cairn-os/cairn/pkg/nodeevent"
	"github.com/cairn-os/cairn/pkg/pki"
)

const (
	// leaderInterval is how often the leader looks at records and Nodes while a rotation is under way.
	leaderInterval = 3 * time.Second
	// publishLimit is how long the end is put off until everything that is published is new. Pods may be told otherwise
	// by somebody who runs a publisher of his own.
	publishLimit = 5 * time.Minute
)

// quietTime is how long nothing of before must have been published: apiservers look each minute whether their authorities'
// files changed, and one that has not looked yet puts the old ones back.
func quietTime(life time.Duration) time.Duration { return min(70*time.Second, settle(life)) }

// ErrAnew ends a Leader: Kubernetes' controllers must begin anew on this server, with the authorities that are in its files
// by now.
var ErrAnew = errors.New("the authorities were replaced, and the controllers begin anew with them")

// LeaderOptions are for the part that works on one server of the cluster at a time.
type LeaderOptions struct {
	Node string        // name of the own node
	Dir  string        // of the own server's certificates
	Life time.Duration // see pki.Options
	Log  *slog.Logger
	Now  func() time.Time // nil: time.Now
}

// Leader moves a rotation on. Its Run is to be called by one caller at a time.
type Leader struct {
	o       LeaderOptions
	began   string // hash of the server-ca.crt that the controllers began with
	agreed  agreement
	stale   time.Time // when something of before was published last
	waiting string    // what was logged last
	problem string
}

// agreement is what the Secret says of the stage. Another leader's clock may be wrong, so this one goes by since when it
// knows that itself.
type agreement struct {
	stage Stage
	at    time.Time // State.Agreed
	known time.Time // not before at
}

// NewLeader returns a Leader for controllers that are about to begin: what they will read from the files must not be older
// than what this finds there.
func NewLeader(o LeaderOptions) (*Leader, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	began, err := join.BundleHash(pki.CertFile(o.Dir, pki.ServerCA))
	return &Leader{o: o, began: began}, err
}

// Run works until ctx ends, and then returns nil. Other errors are ErrAnew and those of its set-up.
func (l *Leader) Run(ctx context.Context, client kubernetes.Interface) error {
	return follow(ctx, client, func(ctx context.Context, s *corev1.Secret) (time.Duration, error) {
		if s == nil {
			l.waiting, l.problem = "", ""
			return 0, nil
		}
		pause, err := l.look(ctx, client, s)
		switch {
		case errors.Is(err, ErrAnew):
			return 0, err
		case err == nil || apierrors.IsConflict(err): // what was looked at is a moment old
			l.problem = ""
		case err.Error() != l.problem && ctx.Err() == nil:
			l.problem = err.Error()
			l.o.Log.Error("authorities: their replacement does not go on", "error", err)
		}
		return pause, nil
	})
}

// look takes at most one step, and returns the pause before the next.
func (l *Leader) look(ctx context.Context, client kubernetes.Interface, secret *corev1.Secret) (time.Duration, error) {
	s, err := parse(secret)
	if err != nil {
		return leaderSlow, err
	}
	pause := s.pace(l.o.Now(), leaderInterval, leaderSlow)
	return pause, l.step(ctx, client, secret, s)
}

func (l *Leader) step(ctx context.Context, client kubernetes.Interface, secret *corev1.Secret, s *State) error {
	outdated, err := pki.Outdated(l.o.Dir, s.Successors)
	if err != nil {
		return err
	}
	if outdated {
		return discard(ctx, client, l.o.Log, l.o.Node, l.o.Now(), secret)
	}
	v, err := see(ctx, client, l.o.Dir)
	if err != nil {
		return err
	}
	now, waiting := l.o.Now(), v.waiting(s)
	l.tell(s, waiting)
	switch {
	case len(waiting) > 0 && s.Agreed.IsZero():
		return nil
	case len(waiting) > 0: // a machine came back that is not as far
		s.Agreed = time.Time{}
		return l.write(ctx, client, secret, s)
	case s.Agreed.IsZero() || now.Before(s.Agreed): // of a clock that is ahead of this one
		s.Agreed = now
		l.learn(s, now)
		return l.write(ctx, client, secret, s)
	}
	l.learn(s, now)
	switch {
	case s.Stage == retire:
		return l.finish(ctx, client, secret, s, v)
	case now.Sub(l.agreed.known) < settle(l.o.Life):
		return nil
	}
	s.Stage, s.Since, s.Agreed = s.Stage.next(), now, time.Time{}
	if err := l.write(ctx, client, secret, s); err != nil {
		return err
	}
	l.announce(ctx, client, s.Stage)
	return nil
}

// learn keeps since when this leader knows what the Secret says of the stage.
func (l *Leader) learn(s *State, now time.Time) {
	if l.agreed.stage != s.Stage || !l.agreed.at.Equal(s.Agreed) || now.Before(l.agreed.known) {
		l.agreed = agreement{stage: s.Stage, at: s.Agreed.UTC(), known: now}
	}
}

// tell logs who is waited for when that changed.
func (l *Leader) tell(s *State, waiting []string) {
	text := string(s.Stage) + ": " + strings.Join(waiting, "; ")
	if text == l.waiting {
		return
	}
	l.waiting = text
	if len(waiting) > 0 {
		l.o.Log.Info("authorities: their replacement waits", "stage", s.Stage, "for", waiting)
	}
}

func (l *Leader) write(ctx context.Context, client kubernetes.Interface, secret *corev1.Secret, s *State) error {
	s.Agreed, s.Since = s.Agreed.UTC(), s.Since.UTC()
	next, err := s.fill(secret.DeepCopy())
	if err != nil {
		return err
	}
	if _, err := client.CoreV1().Secrets(join.Namespace).Update(ctx, next, metav1.UpdateOptions{}); err != nil {
		return fmt.Errorf("write secret %s: %w", join.RotationName, err)
	}
	return nil
}

func (l *Leader) announce(ctx context.Context, client kubernetes.Interface, stage Stage) {
	l.o.Log.Info("authorities: their replacement goes on", "stage", stage)
	text := map[Stage]string{
		sign:   "the new authorities sign from now on, the old ones are still trusted",
		retire: "the old authorities are not trusted any more: kubeconfigs of before and the K10 hash in tokens are worthless",
	}[stage]
	tell(ctx, client, l.o.Log, nodeevent.Event{Node: l.o.Node, At: l.o.Now(), Reason: replaced, Message: "stage " + string(stage) + ": " + text})
}

// finish ends the rotation once what is published is new, which takes controllers that began with the new files.
func (l *Leader) finish(ctx context.Context, client kubernetes.Interface, secret *corev1.Secret, s *State, v view) error {
	if v.bundle != l.began {
		l.o.Log.Info("authorities: the controllers begin anew")
		return ErrAnew
	}
	now := l.o.Now()
	stale, err := publish(ctx, client, l.o.Dir)
	if err != nil || len(stale) > 0 {
		l.stale = now
	}
	late := now.Sub(l.agreed.known) > publishLimit
	quiet := now.Sub(l.agreed.known) >= quietTime(l.o.Life) && now.Sub(l.stale) >= quietTime(l.o.Life)
	if !quiet && !late {
		return err
	}
	if err != nil || len(stale) > 0 {
		stale = stale[:min(len(stale), 10)]
		l.o.Log.Warn("authorities: something of before is still published", "config maps", stale, "error", err)
	}
	if gone, err := remove(ctx, client, secret); err != nil || !gone {
		return err
	}
	l.o.Log.Info("authorities: all are replaced", "id", s.ID, "begun", s.Begun)
	tell(ctx, client, l.o.Log, nodeevent.Event{Node: l.o.Node, At: l.o.Now(), Reason: replaced, Message: "all authorities are replaced"})
	return nil
}
