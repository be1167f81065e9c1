package podnet

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/cairn-os/cairn/pkg/atomicfile"
)

const (
	// cniFile is where containerd finds the pod network; the first file of the folder counts.
	cniFile = "10-cairn.conflist"
	// bridge connects the node's own pods.
	bridge = "cni0"
	// addressDir holds the addresses in use. It is on a tmpfs: after a reboot none is.
	addressDir = "/run/cairn/cni"
	// memoryFile is in the state folder.
	memoryFile = "pod-network.json"
)

// memory is what a node remembers of its network, so that pods start again after a reboot before the cluster answers, and so
// that a later choice can remove what this one made.
type memory struct {
	Backend  string         `json:"backend"`
	Networks []netip.Prefix `json:"networks"`
	Shares   []netip.Prefix `json:"shares"`
	MTU      int            `json:"mtu"`
}

// remembered reads the memory; a node without one has the zero value.
func remembered(stateDir string) (memory, error) {
	path := filepath.Join(stateDir, memoryFile)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return memory{}, nil
	}
	if err != nil {
		return memory{}, err
	}
	var m memory
	if err := json.Unmarshal(data, &m); err != nil {
		return memory{}, fmt.Errorf("%s: %w", path, err)
	}
	return m, nil
}

// save writes the memory when it differs: it is on a card that wears. A power cut leaves the old one or the new one.
func (m memory) save(stateDir string) error {
	data, err := json.Marshal(m)
	if err != nil {
		return err
	}
	return writeChanged(filepath.Join(stateDir, memoryFile), append(data, '\n'))
}

// writeCNI lets pods start by this network.
func (m memory) writeCNI(dir string, log *slog.Logger) error {
	data, err := cniConfig(m)
	if err != nil {
		return err
	}
	path := filepath.Join(dir, cniFile)
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, data) {
		return nil
	}
	if err := writeChanged(path, data); err != nil {
		return fmt.Errorf("write pod network: %w", err)
	}
	log.Info("pod network written", "backend", m.Backend, "shares", m.Shares, "mtu", m.MTU)
	return nil
}

func writeChanged(path string, data []byte) error {
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, data) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return atomicfile.Write(path, data, 0o644)
}

// Restore brings back the node's own end of the network as it was last, before the cluster answers: pods on the node can
// start, reach each other and the world. Other nodes' pods follow when Run finds them. Without a memory, or one of other
// settings, it does nothing. An error is for the log: Run sets everything up again.
func Restore(o Options) error {
	m, err := remembered(o.StateDir)
	if err != nil || m.Backend == "" {
		return err
	}
	networks, err := splitPrefixes(o.Settings.PodCIDRs)
	if err != nil {
		return err
	}
	if m.Backend != o.Settings.Flannel || !slices.Equal(m.Networks, networks.list()) {
		o.Log.Info("pod network of the last start has other settings and is not restored", "backend", m.Backend, "networks", m.Networks)
		return nil
	}
	share, err := splitPrefixes(m.Shares)
	if err != nil {
		return fmt.Errorf("%s: %w", memoryFile, err)
	}
	nft, err := openTable()
	if err == nil {
		err = masquerade(context.Background(), nft, share, networks)
	}
	return errors.Join(err, enableForwarding(networks), m.writeCNI(o.CNIConfDir, o.Log))
}

// cniConfig is a bridge with the addresses of the shares. It masquerades nothing: that is done for all pods together.
func cniConfig(m memory) ([]byte, error) {
	type object = map[string]any
	var ranges [][]object
	var routes []object
	for _, s := range m.Shares {
		ranges = append(ranges, []object{{"subnet": s}})
	}
	// A pod whose default route is changed by a network of its own still reaches the cluster.
	for _, n := range m.Networks {
		routes = append(routes, object{"dst": n})
	}
	return json.MarshalIndent(object{
		"cniVersion": "1.0.0",
		"name":       "cairn",
		"plugins": []object{
			{
				"type": "bridge", "bridge": bridge, "isDefaultGateway": true, "forceAddress": true, "hairpinMode": true,
				"ipMasq": false, "mtu": m.MTU,
				"ipam": object{"type": "host-local", "dataDir": addressDir, "ranges": ranges, "routes": routes},
			},
			{"type": "portmap", "backend": "nftables", "capabilities": object{"portMappings": true}},
		},
	}, "", "  ")
}
