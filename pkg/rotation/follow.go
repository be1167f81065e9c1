package rotation

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"github.com/cairn-os/cairn/pkg/join"
)

const (
	// slow is how long a stage may last before everybody looks less often: who is waited for may be off for weeks.
	slow = 10 * time.Minute
	// leaderSlow and serverSlow are how often the leader and the servers look then.
	leaderSlow = 30 * time.Second
	serverSlow = time.Minute
)

// pace returns the pause before the next look at the stage.
func (s *State) pace(now time.Time, often, seldom time.Duration) time.Duration {
	if now.Sub(s.Since) > slow {
		return seldom
	}
	return often
}

// follow calls look with the Secret, nil when there is none, at the beginning, at each change, and after the pause that
// look returns; 0 is none. It returns look's error, and nil when ctx has ended.
func follow(ctx context.Context, client kubernetes.Interface, look func(context.Context, *corev1.Secret) (time.Duration, error)) error {
	ctx, cancel := context.WithCancel(ctx)
	factory := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithNamespace(join.Namespace),
		informers.WithTweakListOptions(func(o *metav1.ListOptions) {
			o.FieldSelector = fields.OneTermEqualSelector(metav1.ObjectNameField, join.RotationName).String()
		}))
	defer factory.Shutdown()
	defer cancel()
	changed := make(chan struct{}, 1)
	wake := func() {
		select {
		case changed <- struct{}{}:
		default: // it will look anyway
		}
	}
	secrets := factory.Core().V1().Secrets()
	handler, err := secrets.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(any) { wake() }, UpdateFunc: func(_, _ any) { wake() }, DeleteFunc: func(any) { wake() },
	})
	if err != nil {
		return fmt.Errorf("watch secret %s: %w", join.RotationName, err)
	}
	lister := secrets.Lister().Secrets(join.Namespace)
	factory.Start(ctx.Done())
	if !cache.WaitForCacheSync(ctx.Done(), handler.HasSynced) {
		return nil
	}
	for {
		s, err := lister.Get(join.RotationName)
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("read secret %s: %w", join.RotationName, err)
		}
		if err != nil {
			s = nil
		}
		pause, err := look(ctx, s)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		var again <-chan time.Time
		if pause > 0 {
			again = time.After(pause)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-again:
		}
	}
}
