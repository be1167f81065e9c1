package member

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/cairn-os/cairn/pkg/atomicfile"
)

// bootstrapID is the id that dqlite wants of a cluster's first member
// (dqlite.BootstrapID of go-dqlite, which needs cgo).
const bootstrapID = 0x2dc171858c3155be

// identityFile lies beside dqlite's own files.
const identityFile = "identity.json"

// Identity says which member of which cluster a data directory belongs to. It
// is written once.
type Identity struct {
	// ID is the member's number in the raft configuration.
	ID uint64 `json:"id"`
	// Address is the member's name in the raft configuration. It is no
	// network address: the dial function finds the member by it.
	Address string `json:"address"`
}

// loadIdentity reads the identity in dir. In an empty directory it writes
// that of a new cluster's first member; a directory with data and without
// identity is refused, for guessing would split a cluster.
func loadIdentity(dir string) (Identity, error) {
	path := filepath.Join(dir, identityFile)
	data, err := os.ReadFile(path)
	if err == nil {
		return parseIdentity(path, data)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return Identity{}, fmt.Errorf("identity: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return Identity{}, fmt.Errorf("identity: %w", err)
	}
	for _, e := range entries {
		// A power cut while the identity is written leaves a temporary file.
		if strings.HasPrefix(e.Name(), ".") {
			continue
		}
		return Identity{}, fmt.Errorf("identity %s: missing, but %s is not empty: restore the file or move the directory away", path, dir)
	}
	id := Identity{ID: bootstrapID, Address: fmt.Sprintf("member-%016x", uint64(bootstrapID))}
	data, err = json.MarshalIndent(id, "", "\t")
	if err != nil {
		return Identity{}, fmt.Errorf("identity: %w", err)
	}
	if err := atomicfile.Write(path, append(data, '\n'), 0o600); err != nil {
		return Identity{}, fmt.Errorf("identity: %w", err)
	}
	return id, nil
}

func parseIdentity(path string, data []byte) (Identity, error) {
	var id Identity
	if err := json.Unmarshal(data, &id); err != nil {
		return Identity{}, fmt.Errorf("identity %s: %w", path, err)
	}
	if id.ID == 0 || id.Address == "" {
		return Identity{}, fmt.Errorf("identity %s: no id or no address", path)
	}
	return id, nil
}
