//go:build cgo && linux

package member

import (
	"errors"
	"fmt"

	"github.com/canonical/go-dqlite/v3"
	"github.com/canonical/go-dqlite/v3/client"
)

// ReadLast returns the term and the index of the last entry in the log of the
// member in dir, which must not run. Of two members, the one with the higher
// term, then the higher index, has seen more. Open segments are closed by it;
// nothing is deleted.
func ReadLast(dir string) (term, index uint64, err error) {
	// dqlite would not tell a directory that is not there from an empty one.
	if _, err := ReadIdentity(dir); err != nil {
		return 0, 0, fmt.Errorf("last entry of %s: %w", dir, err)
	}
	last, err := dqlite.ReadLastEntryInfo(dir)
	if err != nil {
		return 0, 0, fmt.Errorf("last entry of %s: damaged, or in use: %w", dir, err)
	}
	return last.Term, last.Index, nil
}

// Reconfigure makes members the configuration of the cluster to which the
// data in dir belongs, without asking anybody. The member must not run, nor may
// any other of the former configuration ever run again with its data: the
// entry that is added has term 1 (uvRecover of dqlite 1.18.6), so
// others would seem to have seen more. It is tried once in a process: after a
// failure dqlite keeps the directory locked.
func Reconfigure(dir string, members []Info) error {
	voters := 0
	var nodes []client.NodeInfo
	for _, m := range members {
		if m.ID == 0 || m.Address == "" {
			return fmt.Errorf("reconfigure %s: member without id or address", dir)
		}
		if m.Role == Voter {
			voters++
		}
		nodes = append(nodes, client.NodeInfo{ID: m.ID, Address: m.Address, Role: client.NodeRole(m.Role)})
	}
	if voters == 0 {
		return errors.New("reconfigure: no voter among the members")
	}
	// Reconfiguration runs with AutoRecovery on, which may delete what is
	// damaged; reading the log first does not, and fails then.
	if _, _, err := ReadLast(dir); err != nil {
		return fmt.Errorf("reconfigure: %w", err)
	}
	if err := dqlite.ReconfigureMembershipExt(dir, nodes); err != nil {
		return fmt.Errorf("reconfigure %s: %w", dir, err)
	}
	return nil
}
