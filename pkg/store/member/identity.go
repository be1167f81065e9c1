package member

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/cairn-os/cairn/pkg/atomicfile"
)

// identityFile lies beside dqlite's own files.
const identityFile = "identity.json"

// Identity says which member a data directory belongs to. It is written once.
type Identity struct {
	// ID is the member's number in the raft configuration.
	ID uint64 `json:"id"`
	// Address is the member's name in the raft configuration. It is no
	// network address: the dial function finds the member by it.
	Address string `json:"address"`
}

// ReadIdentity returns the identity in dir. The error wraps fs.ErrNotExist if
// there is none.
func ReadIdentity(dir string) (Identity, error) {
	path := filepath.Join(dir, identityFile)
	data, err := os.ReadFile(path)
	if err != nil {
		return Identity{}, fmt.Errorf("identity: %w", err)
	}
	return parseIdentity(path, data)
}

// makeDir makes a data directory where there is none, with its parents, such
// that a power cut does not take it away with what is written into it later.
func makeDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	// Always: an earlier start may have ended in between.
	parent := filepath.Dir(dir)
	return errors.Join(atomicfile.SyncDir(parent), atomicfile.SyncDir(filepath.Dir(parent)))
}

// loadIdentity reads the identity in dir. In an empty directory it writes a
// new one: with join that of a member that others will add, else that of a
// new cluster's first member. A directory with data and without
// identity is refused, for guessing would split a cluster.
func loadIdentity(dir string, join bool) (Identity, error) {
	id, err := ReadIdentity(dir)
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return id, err
	}
	path := filepath.Join(dir, identityFile)
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
	number := BootstrapID
	if join {
		number = randomID()
	} else if err := beginBootstrap(dir); err != nil {
		return Identity{}, fmt.Errorf("identity: %w", err)
	}
	id = Identity{ID: number, Address: Name(number)}
	data, err := json.MarshalIndent(id, "", "\t")
	if err != nil {
		return Identity{}, fmt.Errorf("identity: %w", err)
	}
	if err := atomicfile.Write(path, append(data, '\n'), 0o600); err != nil {
		return Identity{}, fmt.Errorf("identity: %w", err)
	}
	return id, nil
}

// randomID returns an ID that no other member has. dqlite bootstraps the IDs
// 1 and BootstrapID, so a joiner must not have them; IDs are kept out of
// the small numbers altogether.
func randomID() uint64 {
	for {
		var b [8]byte
		_, _ = rand.Read(b[:]) // Never fails: the program ends instead.
		if id := binary.BigEndian.Uint64(b[:]); id > 1<<32 && id != BootstrapID {
			return id
		}
	}
}

func parseIdentity(path string, data []byte) (Identity, error) {
	var id Identity
	if err := json.Unmarshal(data, &id); err != nil {
		return Identity{}, fmt.Errorf("identity %s: %w", path, err)
	}
	if id.ID == 0 || id.Address == "" {
		return Identity{}, fmt.Errorf("identity %s: no id or no address", path)
	}
	if id.Address != Name(id.ID) {
		return Identity{}, fmt.Errorf("identity %s: address %q is not that of id %d, which is %s", path, id.Address, id.ID, Name(id.ID))
	}
	return id, nil
}
