package rotation

import (
	"context"
	"log/slog"

	"k8s.io/client-go/kubernetes"

	"github.com/cairn-os/cairn/pkg/nodeevent"
)

// The reasons of this package's Events.
const (
	replaced    = "AuthoritiesReplaced"
	notReplaced = "AuthoritiesNotReplaced"
)

// tell makes an Event. That it cannot be made is no reason to stop.
func tell(ctx context.Context, client kubernetes.Interface, log *slog.Logger, e nodeevent.Event) {
	if err := nodeevent.Create(ctx, client, e); err != nil && ctx.Err() == nil {
		log.Info("authorities: no event", "error", err)
	}
}
