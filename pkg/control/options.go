package control

import (
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"time"

	"github.com/cairn-os/cairn/pkg/kubeconfig"
	"github.com/cairn-os/cairn/pkg/pki"
)

// Options say what the control plane is for and where its files are. DefaultOptions gives those of a node.
type Options struct {
	Node   string            // name of the machine's own node
	Labels map[string]string // kept on the own node
	Taints []Taint           // kept on the own node
	SANs   []string          // further names and addresses of the apiserver

	Store           string // URL of the etcd-compatible endpoint
	Etcd            Etcd   // used instead of Store when it names servers
	DataDir         string // certificates and keys, durable
	RunDir          string // generated configuration, not durable
	AdminKubeconfig string

	Port        int
	ClusterCIDR netip.Prefix // of pods
	ServiceCIDR netip.Prefix
	ServiceIP   netip.Addr // of the Service default/kubernetes
	ClockFloor  time.Time  // see pki.Options

	Status func(string) // takes what is waited for; may be nil

	// addresses are the machine's, the primary one first; prepare finds them.
	addresses []netip.Addr
}

// Taint is a taint of the own node.
type Taint struct{ Key, Value, Effect string }

// DefaultOptions returns the options of a node of that name.
func DefaultOptions(node string) Options {
	return Options{
		Node:            node,
		Store:           "unix:///run/cairn/store.sock",
		DataDir:         "/var/lib/cairn/server",
		RunDir:          "/run/cairn/control",
		AdminKubeconfig: kubeconfig.Admin,
		Port:            6443,
		ClusterCIDR:     netip.MustParsePrefix("10.42.0.0/16"),
		ServiceCIDR:     netip.MustParsePrefix("10.43.0.0/16"),
		ServiceIP:       netip.MustParseAddr("10.43.0.1"),
	}
}

func (o Options) tls() string                     { return filepath.Join(o.DataDir, "tls") }
func (o Options) pair(name string) string         { return pki.PairFile(o.tls(), name) }
func (o Options) authority(name string) string    { return pki.CertFile(o.tls(), name) }
func (o Options) encryption() string              { return filepath.Join(o.DataDir, "encryption.yaml") }
func (o Options) authentication() string          { return filepath.Join(o.RunDir, "authentication.yaml") }
func (o Options) componentConfig(n string) string { return filepath.Join(o.RunDir, n+".kubeconfig") }
func (o Options) url() string                     { return fmt.Sprintf("https://127.0.0.1:%d", o.Port) }

func (o Options) say(message string) {
	if o.Status != nil {
		o.Status(message)
	}
}

func (o Options) pki() pki.Options {
	return pki.Options{
		Dir: o.tls(), Node: o.Node, Addresses: o.addresses, SANs: o.SANs, ServiceIP: o.ServiceIP, Floor: o.ClockFloor,
	}
}

// prepare writes all files that the components read.
func (o *Options) prepare(log *slog.Logger) error {
	var err error
	if o.addresses, err = pki.Addresses(); err != nil {
		return err
	}
	written, err := pki.Ensure(o.pki())
	if err != nil {
		return err
	}
	if len(written) > 0 {
		log.Info("certificates written", "files", written)
	}
	if err := pki.EnsureEncryption(o.encryption(), time.Now()); err != nil {
		return err
	}
	if err := writeRuntime(o.authentication(), authenticationConfig); err != nil {
		return err
	}
	return o.writeKubeconfigs()
}

func (o Options) writeKubeconfigs() error {
	client := func(name string) kubeconfig.Client {
		return kubeconfig.Client{Server: o.url(), CAFile: o.authority(pki.ServerCA), PairFile: o.pair(name), User: name}
	}
	for _, name := range []string{pki.ControllerManager, pki.Scheduler} {
		if err := client(name).WriteReference(o.componentConfig(name)); err != nil {
			return err
		}
	}
	return client(pki.Admin).WriteEmbedded(o.AdminKubeconfig)
}
