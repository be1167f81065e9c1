// Package runner starts built images as machines, in QEMU or in namespaces of
// this machine, and uses them as their owner would: over SSH and through the
// Kubernetes API. The commands "build.sh run" and the machine tests share it.
package runner

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"k8s.io/client-go/tools/clientcmd"

	"github.com/cairn-os/cairn/pkg/build/image"
	"github.com/cairn-os/cairn/pkg/config"
)

// Machine is a running machine.
type Machine interface {
	// Name is its host name and its node's name.
	Name() string
	// PowerOn is when it was started.
	PowerOn() time.Time
	// Console is what it prints.
	Console() *Console
	// Run runs a command line as root on the machine and returns what it
	// printed.
	Run(ctx context.Context, line string) (string, error)
	// API is the URL of its Kubernetes API as this machine reaches it.
	API() string
	// Page is the URL of HelloPort as this machine reaches it.
	Page() string
	// Done is closed when the machine has ended.
	Done() <-chan struct{}
	// Kill ends it as a pulled plug would.
	Kill() error
}

// writeKubeconfig fetches the administrator's kubeconfig of m once it is
// there, points it to the address that is reachable from here and writes it
// to path.
func writeKubeconfig(ctx context.Context, m Machine, path string) error {
	var text string
	err := poll(ctx, m.Name()+" has made its kubeconfig", func(ctx context.Context) (bool, error) {
		var err error
		text, err = m.Run(ctx, "cat /etc/cairn/kubeconfig")
		return err == nil, err
	})
	if err != nil {
		return err
	}
	cfg, err := clientcmd.Load([]byte(text))
	if err != nil {
		return fmt.Errorf("kubeconfig of %s: %w", m.Name(), err)
	}
	for _, cluster := range cfg.Clusters {
		cluster.Server = m.API()
	}
	return clientcmd.WriteToFile(*cfg, path)
}

// Access waits until m hands out its kubeconfig, writes it into dir as
// "kubeconfig" with a link to kubectl beside it, and returns a client.
func Access(ctx context.Context, m Machine, built *image.Output, dir string) (*Cluster, error) {
	path := filepath.Join(dir, "kubeconfig")
	if err := writeKubeconfig(ctx, m, path); err != nil {
		return nil, err
	}
	link := filepath.Join(dir, "kubectl")
	if err := os.Remove(link); err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	if err := os.Symlink(built.KubeCtl, link); err != nil {
		return nil, err
	}
	return Connect(path)
}

// seedConfig is the cloud-config of a demonstration machine, with extra merged
// over it.
func seedConfig(name, authorizedKey string, network *config.Network, extra []byte) ([]byte, error) {
	c := config.Config{Hostname: name}
	if authorizedKey != "" {
		c.SSHAuthorizedKeys = []string{authorizedKey}
	}
	if network != nil {
		c.Cairn.Network = *network
	}
	base, err := c.Marshal()
	if err != nil {
		return nil, err
	}
	_, text, err := config.Merge([]config.Source{{Name: "the demonstration", Data: base}, {Name: "--config", Data: extra}})
	return text, err
}
