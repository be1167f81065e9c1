package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/cairn-os/cairn/pkg/atomicfile"
	"github.com/cairn-os/cairn/pkg/pki"
)

// cniFile is where containerd finds the pod network; no other file is there.
const cniFile = "10-cairn.conflist"

// nodeGetter reads the own node from the cluster.
type nodeGetter struct {
	clients kubernetes.Interface
	name    string
}

func (g nodeGetter) node(ctx context.Context) (*corev1.Node, error) {
	return g.clients.CoreV1().Nodes().Get(ctx, g.name, metav1.GetOptions{})
}

// client returns a reader of the own node with the kubelet's rights.
func (o Options) client() (nodeGetter, error) {
	cfg, err := clientcmd.BuildConfigFromFlags("", o.componentConfig(pki.KubeletClient))
	if err != nil {
		return nodeGetter{}, fmt.Errorf("node client: %w", err)
	}
	clients, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return nodeGetter{}, fmt.Errorf("node client: %w", err)
	}
	return nodeGetter{clients, o.Name}, nil
}

// podNetwork writes the CNI configuration of the node's share of the pod network. It remembers the share, so that pods
// start again after a reboot before the cluster answers.
type podNetwork struct {
	confDir, state string
	log            *slog.Logger
	written        netip.Prefix
}

func newPodNetwork(o Options, log *slog.Logger) *podNetwork {
	return &podNetwork{confDir: o.CNIConfDir, state: filepath.Join(o.StateDir, "pod-cidr"), log: log}
}

// restore writes the configuration of the share remembered, if any.
func (p *podNetwork) restore() error {
	data, err := os.ReadFile(p.state)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	cidr, err := netip.ParsePrefix(strings.TrimSpace(string(data)))
	if err != nil {
		return fmt.Errorf("%s: %w", p.state, err)
	}
	return p.write(cidr)
}

// run waits until the cluster gave the node its share, and writes it. A share never changes while its node exists.
func (p *podNetwork) run(ctx context.Context, client nodeGetter) error {
	err := wait.PollUntilContextCancel(ctx, 100*time.Millisecond, true, func(ctx context.Context) (bool, error) {
		n, err := client.node(ctx)
		if err != nil || n.Spec.PodCIDR == "" {
			return false, nil
		}
		cidr, err := netip.ParsePrefix(n.Spec.PodCIDR)
		if err != nil {
			return false, fmt.Errorf("pod CIDR of node %s: %w", n.Name, err)
		}
		if cidr == p.written {
			return true, nil
		}
		if err := p.write(cidr); err != nil {
			return false, err
		}
		if err := os.MkdirAll(filepath.Dir(p.state), 0o755); err != nil {
			return false, err
		}
		return true, atomicfile.Write(p.state, []byte(cidr.String()+"\n"), 0o644)
	})
	if err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

func (p *podNetwork) write(cidr netip.Prefix) error {
	data, err := cniConfig(cidr)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(p.confDir, 0o755); err != nil {
		return fmt.Errorf("write pod network: %w", err)
	}
	if err := atomicfile.Write(filepath.Join(p.confDir, cniFile), data, 0o644); err != nil {
		return fmt.Errorf("write pod network: %w", err)
	}
	p.written = cidr
	p.log.Info("pod network written", "cidr", cidr)
	return nil
}

// cniConfig is a bridge with the addresses of cidr. Addresses are kept on a tmpfs: after a reboot none is in use.
func cniConfig(cidr netip.Prefix) ([]byte, error) {
	type object = map[string]any
	everywhere := "0.0.0.0/0"
	if cidr.Addr().Is6() {
		everywhere = "::/0"
	}
	return json.MarshalIndent(object{
		"cniVersion": "1.0.0",
		"name":       "cairn",
		"plugins": []object{
			{
				"type": "bridge", "bridge": "cni0", "isGateway": true, "forceAddress": true, "hairpinMode": true,
				"ipMasq": true, "ipMasqBackend": "nftables",
				"ipam": object{
					"type": "host-local", "dataDir": "/run/cairn/cni",
					"ranges": [][]object{{{"subnet": cidr.String()}}},
					"routes": []object{{"dst": everywhere}},
				},
			},
			{"type": "portmap", "backend": "nftables", "capabilities": object{"portMappings": true}},
		},
	}, "", "  ")
}
