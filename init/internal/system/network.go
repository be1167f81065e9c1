package system

import (
	"context"

	"github.com/cairn-os/cairn/pkg/status"
)

// network is the running network and how to end it. A nil *network is one that was never started.
type network struct {
	list func() []status.Address
	end  func()
}

func (n *network) addresses() []status.Address {
	if n == nil {
		return nil
	}
	return n.list()
}

func (n *network) stop() {
	if n != nil {
		n.end()
	}
}

func (m *machine) startNetwork(ctx context.Context) error { return nil }
