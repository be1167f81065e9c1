//go:build cgo && linux

package member

import (
	"fmt"

	"github.com/canonical/go-dqlite/v3"
	"github.com/canonical/go-dqlite/v3/client"
)

// ReadLast returns the term and the index of the last entry in the log of the
// member in dir, which must not run. Of two members, the one with the higher
// term, then the higher index, has seen more. Open segments are closed
// by it; nothing is deleted.
func ReadLast(dir string) (term, index uint64, err error) {
	last, err := dqlite.ReadLastEntryInfo(dir)
	if err != nil {
		return 0, 0, fmt.Errorf("last entry of %s: %w", dir, err)
	}
	return last.Term, last.Index, nil
}

// Reconfigure makes members the configuration of the cluster to which the
// data in dir belongs, without asking anybody. The member must not run.
func Reconfigure(dir string, members []Info) error {
	var nodes []client.NodeInfo
	for _, m := range members {
		nodes = append(nodes, client.NodeInfo{ID: m.ID, Address: m.Address, Role: client.NodeRole(m.Role)})
	}
	if err := dqlite.ReconfigureMembershipExt(dir, nodes); err != nil {
		return fmt.Errorf("reconfigure %s: %w", dir, err)
	}
	return nil
}
