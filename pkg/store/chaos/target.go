package chaos

import (
	"context"
	"path/filepath"

	"github.com/cairn-os/cairn/pkg/store/chaos/nodes"
)

// Target is a program that serves etcd's protocol as one of several nodes.
type Target interface {
	// Program returns what to run on a node, with which additions to the
	// environment. It must serve on Socket(n) whether it leads or not.
	Program(n *nodes.Node, all []*nodes.Node) (argv, env []string, err error)
	// Status asks a node; an error means that it does not answer.
	Status(ctx context.Context, n *nodes.Node) (Status, error)
}

// Status is what a node says of itself.
type Status struct {
	Leads bool
	Term  uint64
	// Voters counts the members that vote, as the leader knows them.
	Voters int
}

// Socket is where a node's program serves etcd's protocol.
func Socket(n *nodes.Node) string { return filepath.Join(n.Dir, "store.sock") }
