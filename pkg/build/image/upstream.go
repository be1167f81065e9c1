package image

import (
	"context"

	"github.com/cairn-os/cairn/pkg/build/binaries"
)

// Upstream compiles vanilla Kubernetes of the version that the image holds,
// and the mains of the source tree named by more.
func (b *Builder) Upstream(ctx context.Context, more ...string) (*binaries.Set, error) {
	return binaries.Upstream(ctx, b.programs(), more...)
}
