// Package membership remembers which cluster a machine belongs to, and what all nodes of that cluster have in common.
//
// The file is written last when a machine begins or joins a cluster: while it lacks, nothing that was written before it
// counts, and joining starts over. It survives everything but a reset of the machine.
package membership

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/cairn-os/cairn/pkg/atomicfile"
)

// Path is where a machine keeps its membership.
const Path = "/var/lib/cairn/node/membership.json"

// maxSize bounds what Load reads, in bytes: a cluster of hundreds of servers would not fill it.
const maxSize = 64 << 10

// Role is what a node does for its cluster.
type Role string

// The roles.
const (
	Server  Role = "server"  // store, control plane and pods
	Agent   Role = "agent"   // pods only
	Witness Role = "witness" // store only: its vote
)

// Known reports whether r is one of the roles.
func (r Role) Known() bool { return slices.Contains([]Role{Server, Agent, Witness}, r) }

// Membership is what a machine knows of the cluster that it belongs to.
type Membership struct {
	Role Role `json:"role"`
	// Node is the name that the machine joined under.
	Node string `json:"node"`
	// Founded says that this server began the cluster.
	Founded bool `json:"founded"`
	// Servers are host:port of the apiservers known at the time of joining, the configured one first.
	Servers []string `json:"servers"`
	// StorePeers are host:port of the store's members to join by. Empty on the first server, and where the store is elsewhere.
	StorePeers []string `json:"storePeers"`
	Settings   Settings `json:"settings"`
	// Identity is the hash of the identity that the machine joined with: who lost that one since is not known to the cluster
	// by another. Empty: not known.
	Identity string `json:"identity,omitempty"`
}

// Load reads the file at path. The error wraps fs.ErrNotExist when the machine belongs to no cluster yet. Unknown fields
// are passed over: a release that was rolled back reads the file of a newer one.
func Load(path string) (*Membership, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read membership: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxSize+1))
	if err != nil {
		return nil, fmt.Errorf("read membership %s: %w", path, err)
	}
	m, err := decode(data)
	if err != nil {
		return nil, fmt.Errorf("read membership %s: %w", path, err)
	}
	return m, nil
}

func decode(data []byte) (*Membership, error) {
	if len(data) > maxSize {
		return nil, fmt.Errorf("longer than %d bytes", maxSize)
	}
	var m Membership
	if err := json.Unmarshal(data, &m); err != nil {
		return nil, err
	}
	if err := m.Validate(); err != nil {
		return nil, err
	}
	return &m, nil
}

// Validate returns what is wrong with m.
func (m *Membership) Validate() error {
	switch {
	case !m.Role.Known():
		return fmt.Errorf("role %q is none of server, agent and witness", m.Role)
	case m.Node == "":
		return errors.New("the node has no name")
	case m.Founded && m.Role != Server:
		return fmt.Errorf("role %s: only a server begins a cluster", m.Role)
	case !m.Founded && len(m.Servers) == 0:
		return errors.New("no servers")
	}
	for _, address := range slices.Concat(m.Servers, m.StorePeers) {
		if err := checkAddress(address); err != nil {
			return err
		}
	}
	return m.Settings.Validate()
}

// checkAddress wants host:port with a number for the port.
func checkAddress(address string) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return err
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 || host == "" {
		return fmt.Errorf("address %q is not HOST:PORT", address)
	}
	return nil
}

// Encode returns the file's content.
func (m *Membership) Encode() ([]byte, error) {
	if err := m.Validate(); err != nil {
		return nil, fmt.Errorf("membership: %w", err)
	}
	plain := *m
	plain.Servers = append([]string{}, m.Servers...) // [] and never null, for scripts
	plain.StorePeers = append([]string{}, m.StorePeers...)
	data, err := json.MarshalIndent(plain, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("membership: %w", err)
	}
	return append(data, '\n'), nil
}

// Save replaces the file at path durably and whole, and creates its directory.
func (m *Membership) Save(path string) error {
	data, err := m.Encode()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("save membership: %w", err)
	}
	if err := atomicfile.Write(path, data, 0o600); err != nil {
		return fmt.Errorf("save membership: %w", err)
	}
	return nil
}
