package member

import (
	"encoding/json"
	"fmt"
	"path/filepath"

	"github.com/cairn-os/cairn/pkg/atomicfile"
)

// Renumber makes the member in dir, which must not run, the only one of a
// cluster of its own, with a random ID: members that know the data by its former
// ID do not take it for one of theirs. A power cut in between leaves a directory
// that is of no use.
func Renumber(dir string) (Identity, error) {
	number := randomID()
	id := Identity{ID: number, Address: Name(number)}
	if err := Reconfigure(dir, []Info{{ID: id.ID, Address: id.Address, Role: Voter}}); err != nil {
		return Identity{}, fmt.Errorf("renumber: %w", err)
	}
	data, err := json.MarshalIndent(id, "", "\t")
	if err != nil {
		return Identity{}, fmt.Errorf("renumber: %w", err)
	}
	if err := atomicfile.Write(filepath.Join(dir, identityFile), append(data, '\n'), 0o600); err != nil {
		return Identity{}, fmt.Errorf("renumber: %w", err)
	}
	return id, nil
}
