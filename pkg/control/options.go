package control

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"time"

	"k8s.io/client-go/kubernetes"

	"github.com/cairn-os/cairn/pkg/control/admin"
	"github.com/cairn-os/cairn/pkg/kubeconfig"
	"github.com/cairn-os/cairn/pkg/membership"
	"github.com/cairn-os/cairn/pkg/pki"
	storeadmin "github.com/cairn-os/cairn/pkg/store/admin"
)

// Options say what the control plane is for and where its files are. DefaultOptions gives those of a node.
type Options struct {
	Node     string              // name of the machine's own node
	Settings membership.Settings // the same on all servers
	Joined   bool                // another server founded the cluster: authorities and keys must be there already
	Identity string              // of the machine, see join.Identity; empty: it is not recorded

	NodeIPs    []netip.Addr  // the machine's addresses to use, at most one per family; empty: the one of the default route
	SANs       []string      // further names and addresses of the apiserver
	Life       time.Duration // of leaf certificates; 0: see pki.Options
	ClockFloor time.Time     // see pki.Options

	Arguments Arguments // the operator's, on top of Cairn's own
	Audit     bool      // log who changed what

	Store           string // URL of the etcd-compatible endpoint
	StoreSocket     string // of the store's operator; empty: the data is not in Cairn's own store
	Etcd            Etcd   // used instead of Store when it names servers
	Port            int
	DataDir         string // certificates and keys, durable
	RunDir          string // generated configuration, not durable
	AuditDir        string
	AdminKubeconfig string
	AdminSocket     string

	Founding    *Founding    // nil on a server that joined
	Tunnels     bool         // the apiserver reaches nodes and pods through connections that the nodes make
	Controllers []Controller // Cairn's own, beside those of Kubernetes
	Status      func(string) // takes what is waited for; may be nil

	addresses []netip.Addr // the machine's, the primary one first; prepare finds them
	listen    netip.Addr   // the apiserver listens on; tests of several servers on one machine set it
	lease     leaseTimes   // zero: those of a node
}

// Founding is what the server that begins a cluster puts into it.
type Founding struct {
	Token string // cairn.token of its configuration; may be empty
}

// Controller is a loop over the cluster's objects, which works on one server of the cluster at a time. Run works until
// its context ends; when it returns earlier it is started anew after a pause. ErrHandOver as its error makes another
// server lead.
type Controller struct {
	Name string
	Run  func(context.Context, kubernetes.Interface) error
}

// ErrHandOver is a controller's wish that another server leads: this one cannot do what is to be done.
var ErrHandOver = errors.New("another server must lead the controllers")

// errBeginAnew is a controller's wish that all controllers begin anew, on the same server.
var errBeginAnew = errors.New("the controllers must begin anew")

// DefaultOptions returns the options of a node of that name.
func DefaultOptions(node string) Options {
	return Options{
		Node:            node,
		Settings:        membership.DefaultSettings(),
		Store:           "unix:///run/cairn/store.sock",
		StoreSocket:     storeadmin.Socket,
		Port:            6443,
		DataDir:         "/var/lib/cairn/server",
		RunDir:          "/run/cairn/control",
		AuditDir:        "/var/log/cairn",
		AdminKubeconfig: kubeconfig.Admin,
		AdminSocket:     admin.Socket,
		Tunnels:         true,
	}
}

func (o Options) tls() string                     { return filepath.Join(o.DataDir, "tls") }
func (o Options) pair(name string) string         { return pki.PairFile(o.tls(), name) }
func (o Options) authority(name string) string    { return pki.CertFile(o.tls(), name) }
func (o Options) encryption() string              { return filepath.Join(o.DataDir, "encryption.yaml") }
func (o Options) runtime(name string) string      { return filepath.Join(o.RunDir, name) }
func (o Options) egressSocket() string            { return o.runtime("egress.sock") }
func (o Options) componentConfig(n string) string { return o.runtime(n + ".kubeconfig") }

// loopback is the address by which the own parts ask the apiserver.
func (o Options) loopback() netip.Addr {
	if o.listen.IsValid() {
		return o.listen
	}
	return netip.AddrFrom4([4]byte{127, 0, 0, 1})
}

func (o Options) url() string { return serverURL(o.loopback(), o.Port) }

func serverURL(a netip.Addr, port int) string {
	return fmt.Sprintf("https://%s", netip.AddrPortFrom(a, uint16(port)))
}

func (o Options) say(message string) {
	if o.Status != nil {
		o.Status(message)
	}
}

func (o Options) pki() pki.Options {
	return pki.Options{
		Dir: o.tls(), Node: o.Node, Addresses: o.addresses, SANs: o.SANs, ServiceIP: o.Settings.ServiceIP(),
		ClusterDomain: o.Settings.ClusterDomain, Life: o.Life, Joined: o.Joined, Floor: o.ClockFloor,
	}
}
