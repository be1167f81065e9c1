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
	"github.com/cairn-os/cairn/pkg/pki"
)

const (
	// leaderInterval is how often the leader looks at records and Nodes while a rotation is under way.
	leaderInterval = 3 * time.Second
	// publishLimit is how long the end is put off until everything that is published is new. Pods may be told otherwise
	// by somebody who runs a publisher of his own.
	publishLimit = 5 * time.Minute
)

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
	waiting string // what was logged last
	problem string
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
		err := l.look(ctx, client, s)
		switch {
		case errors.Is(err, ErrAnew):
			return 0, err
		case err == nil || apierrors.IsConflict(err): // what was looked at is a moment old
			l.problem = ""
		case err.Error() != l.problem && ctx.Err() == nil:
			l.problem = err.Error()
			l.o.Log.Error("authorities: their replacement does not go on", "error", err)
		}
		return leaderInterval, nil
	})
}

// look takes at most one step.
func (l *Leader) look(ctx context.Context, client kubernetes.Interface, secret *corev1.Secret) error {
	s, err := Read(secret)
	if err != nil {
		return err
	}
	outdated, err := pki.Outdated(l.o.Dir, s.Successors)
	if err != nil {
		return err
	}
	if outdated {
		return l.discard(ctx, client, secret)
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
		return l.write(ctx, client, secret, s)
	case s.Stage == Retire:
		return l.finish(ctx, client, secret, s, v)
	case now.Sub(s.Agreed) < Settle(l.o.Life):
		return nil
	}
	s.Stage, s.Since, s.Agreed = s.Stage.next(), now, time.Time{}
	if err := l.write(ctx, client, secret, s); err != nil {
		return err
	}
	l.announce(ctx, client, s.Stage)
	return nil
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
		Sign:   "the new authorities sign from now on, the old ones are still trusted",
		Retire: "the old authorities are not trusted any more: kubeconfigs and tokens of before are worthless",
	}[stage]
	event(ctx, client, l.o.Log, l.o.Node, l.o.Now(), corev1.EventTypeNormal, "AuthoritiesReplaced", "stage "+string(stage)+": "+text)
}

// finish ends the rotation once what is published is new, which takes controllers that began with the new files.
func (l *Leader) finish(ctx context.Context, client kubernetes.Interface, secret *corev1.Secret, s *State, v view) error {
	if v.bundle != l.began {
		l.o.Log.Info("authorities: the controllers begin anew")
		return ErrAnew
	}
	stale, err := publish(ctx, client, l.o.Dir)
	late := l.o.Now().Sub(s.Agreed) > publishLimit
	if (err != nil || len(stale) > 0) && !late {
		return err
	}
	if err != nil || len(stale) > 0 {
		stale = stale[:min(len(stale), 10)]
		l.o.Log.Warn("authorities: something of before is still published", "config maps", stale, "error", err)
	}
	if err := l.delete(ctx, client, secret); err != nil {
		return err
	}
	l.o.Log.Info("authorities: all are replaced", "id", s.ID, "begun", s.Begun)
	event(ctx, client, l.o.Log, l.o.Node, l.o.Now(), corev1.EventTypeNormal, "AuthoritiesReplaced", "all authorities are replaced")
	return nil
}

// discard removes a rotation of the past.
func (l *Leader) discard(ctx context.Context, client kubernetes.Interface, secret *corev1.Secret) error {
	if err := l.delete(ctx, client, secret); err != nil {
		return err
	}
	const text = "a replacement of the authorities was found that is older than those in use, as a restored snapshot brings it: it is forgotten"
	l.o.Log.Warn("authorities: an old replacement is forgotten, which came with a restored snapshot")
	event(ctx, client, l.o.Log, l.o.Node, l.o.Now(), corev1.EventTypeWarning, "AuthoritiesNotReplaced", text)
	return nil
}

func (l *Leader) delete(ctx context.Context, client kubernetes.Interface, secret *corev1.Secret) error {
	err := client.CoreV1().Secrets(join.Namespace).Delete(ctx, secret.Name, metav1.DeleteOptions{
		Preconditions: &metav1.Preconditions{UID: &secret.UID, ResourceVersion: &secret.ResourceVersion},
	})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete secret %s: %w", join.RotationName, err)
	}
	return nil
}
