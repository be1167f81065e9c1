package rotation

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/cairn-os/cairn/pkg/join"
	"github.com/cairn-os/cairn/pkg/membership"
	"github.com/cairn-os/cairn/pkg/pki"
)

// ErrRefused says that no rotation can begin now. The error's text says why and what to do.
var ErrRefused = errors.New("the authorities cannot be replaced now")

// BeginOptions say what is to be replaced, and by whom.
type BeginOptions struct {
	Client kubernetes.Interface // with an administrator's rights
	PKI    pki.Options          // of the server that was told to
	By     string               // its name
	// Present tells why a server or a witness cannot take part at this moment, or nil. Several are asked at once.
	Present func(context.Context, join.NodeRecord) error
	Log     *slog.Logger
	Now     func() time.Time // nil: time.Now
}

// Check returns an error that is ErrRefused when no rotation can begin at this moment: another one is under way, or a
// server or a witness is not there and would be waited for.
func Check(ctx context.Context, o BeginOptions) error {
	s, err := get(ctx, o.Client)
	switch {
	case err != nil:
		return fmt.Errorf("%w: %w", ErrRefused, err)
	case s != nil:
		return underWay(s)
	}
	records, err := join.ListNodes(ctx, o.Client)
	if err != nil {
		return err
	}
	absent := make(chan error, len(records))
	asked := 0
	for _, r := range records {
		if r.Role != membership.Agent {
			asked++
			go func() { absent <- o.present(ctx, r) }()
		}
	}
	if asked == 0 {
		return fmt.Errorf("%w: no server is recorded yet", ErrRefused)
	}
	var problems []error
	for range asked {
		if err := <-absent; err != nil {
			problems = append(problems, err)
		}
	}
	if len(problems) > 0 {
		return fmt.Errorf("%w: %w", ErrRefused, errors.Join(problems...))
	}
	return nil
}

func (o BeginOptions) present(ctx context.Context, r join.NodeRecord) error {
	err := o.Present(ctx, r)
	if err == nil {
		return nil
	}
	remove := "kubectl delete node " + r.Name
	if r.Role == membership.Witness {
		remove = "cairnctl store remove " + r.Name
	}
	return fmt.Errorf("%s %s would be waited for (%w): bring it back, or remove it with %q", r.Role, r.Name, err, remove)
}

// Begin makes successors of all authorities and the Secret, from which on the servers replace them. It checks first what
// Check does.
func Begin(ctx context.Context, o BeginOptions) (*State, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if err := Check(ctx, o); err != nil {
		return nil, err
	}
	all, err := pki.Successors(o.PKI)
	if err != nil {
		return nil, err
	}
	id, err := identify(all)
	if err != nil {
		return nil, err
	}
	now := o.Now().UTC().Truncate(time.Second)
	s := &State{ID: id, Stage: Trust, Since: now, Begun: now, By: o.By, Successors: all}
	secret, err := s.fill(nil)
	if err != nil {
		return nil, err
	}
	_, err = o.Client.CoreV1().Secrets(join.Namespace).Create(ctx, secret, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		return nil, fmt.Errorf("%w: another replacement began at this moment", ErrRefused)
	}
	if err != nil {
		return nil, fmt.Errorf("create secret %s: %w", join.RotationName, err)
	}
	o.Log.Warn("authorities: their replacement begins", "id", id)
	event(ctx, o.Client, o.Log, o.By, now, corev1.EventTypeNormal, "AuthoritiesReplaced", "stage trust: all servers are to trust new authorities, too")
	return s, nil
}

func underWay(s *State) error {
	return fmt.Errorf("%w: a replacement is under way since %s, begun on %s, at the stage %s; \"cairnctl cluster status\" shows it",
		ErrRefused, s.Begun.UTC().Format(time.RFC3339), s.By, s.Stage)
}

// get reads the rotation under way, nil for none.
func get(ctx context.Context, client kubernetes.Interface) (*State, error) {
	s, err := client.CoreV1().Secrets(join.Namespace).Get(ctx, join.RotationName, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read secret %s: %w", join.RotationName, err)
	}
	state, err := Read(s)
	if err != nil {
		return nil, fmt.Errorf("%w; if it is damaged, \"kubectl -n %s delete secret %s\"", err, join.Namespace, join.RotationName)
	}
	return state, nil
}
