package store

import (
	"context"

	"github.com/cairn-os/cairn/pkg/bench"
)

// startReport begins a report beside the etcd that is measured.
func startReport(ctx context.Context, p Programs) (func() *bench.Report, error) {
	peer, err := p.peer(ctx)
	if err != nil {
		return nil, err
	}
	return bench.Begin(ctx, peer), nil
}
