package rotation

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/cairn-os/cairn/pkg/join"
	"github.com/cairn-os/cairn/pkg/nodeevent"
)

// discard removes a rotation of the past. Any server whose authorities are later ones does so.
func discard(ctx context.Context, client kubernetes.Interface, log *slog.Logger, node string, now time.Time, secret *corev1.Secret) error {
	if gone, err := remove(ctx, client, secret); err != nil || !gone {
		return err
	}
	const text = "a replacement of the authorities was found that is older than those in use, as a restored snapshot brings it: it is forgotten"
	log.Warn("authorities: an old replacement is forgotten, which came with a restored snapshot")
	tell(ctx, client, log, nodeevent.Event{Node: node, At: now, Warning: true, Reason: notReplaced, Message: text})
	return nil
}

// remove deletes the Secret as it was seen. It reports false when somebody else was faster, who deleted it or changed it.
func remove(ctx context.Context, client kubernetes.Interface, secret *corev1.Secret) (gone bool, err error) {
	err = client.CoreV1().Secrets(join.Namespace).Delete(ctx, secret.Name, metav1.DeleteOptions{
		Preconditions: &metav1.Preconditions{UID: &secret.UID, ResourceVersion: &secret.ResourceVersion},
	})
	switch {
	case apierrors.IsNotFound(err) || apierrors.IsConflict(err):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("delete secret %s: %w", join.RotationName, err)
	}
	return true, nil
}
