package node

import (
	"context"

	"github.com/cairn-os/cairn/pkg/join"
	"github.com/cairn-os/cairn/pkg/nodecert"
)

// followAuthorities lets an agent follow when the cluster's authorities are replaced. On a server the control plane does
// that, which has their keys.
func (n *node) followAuthorities(ctx context.Context) error {
	return join.Follow(ctx, n.renewOptions(), join.FollowOptions{
		Servers: n.servers.get,
		Certificates: func(ctx context.Context) error {
			_, err := nodecert.Ensure(ctx, n.certificateOptions())
			return err
		},
	})
}
