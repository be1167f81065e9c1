package node

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/cairn-os/cairn/pkg/balancer"
	"github.com/cairn-os/cairn/pkg/initctl"
	"github.com/cairn-os/cairn/pkg/join"
	"github.com/cairn-os/cairn/pkg/membership"
	"github.com/cairn-os/cairn/pkg/nodecert"
	"github.com/cairn-os/cairn/pkg/pki"
	"github.com/cairn-os/cairn/pkg/tunnel"
)

// apiserverName is in the certificate of every apiserver, under whichever address it is reached.
const apiserverName = "kubernetes"

// newClient returns a client with the kubelet's rights.
func newClient(path string) (kubernetes.Interface, error) {
	cfg, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		return nil, fmt.Errorf("node client: %w", err)
	}
	clients, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("node client: %w", err)
	}
	return clients, nil
}

// servers are the apiservers as the cluster tells them.
type servers struct {
	mu  sync.Mutex
	now []string
}

func (s *servers) set(all []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now = all
}

func (s *servers) get() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now
}

func (n *node) newBalancer() (*balancer.Balancer, error) {
	o := balancer.Options{
		Listen: balancerAddress, File: filepath.Join(n.StateDir, "servers.json"), Initial: n.withJoined(n.Servers),
		Seed: n.Name, TLS: n.serverTLS, Log: n.log,
	}
	if n.Role == membership.Server {
		// An apiserver that stops is taken out of the list; its own node asks it again as soon as it is back.
		o.Prefer = net.JoinHostPort(n.addresses[0].String(), "6443")
	}
	if err := os.MkdirAll(n.StateDir, 0o700); err != nil {
		return nil, err
	}
	b, err := balancer.New(o)
	if err != nil {
		return nil, err
	}
	var known []string
	for _, s := range b.Servers() {
		known = append(known, s.Address)
	}
	n.servers.set(n.withJoined(known))
	return b, nil
}

// setServers takes over what the cluster says about its apiservers.
func (n *node) setServers(all []string) error {
	all = n.withJoined(all)
	n.servers.set(all)
	return n.balancer.Set(all)
}

// withJoined adds the address by which the machine joined: servers behind a router know only their inner addresses.
func (n *node) withJoined(all []string) []string {
	if n.Server == "" || slices.Contains(all, n.Server) {
		return all
	}
	return append(slices.Clone(all), n.Server)
}

// serverTLS is whom to trust as an apiserver now. It needs no certificate of the node: one that is missing or damaged says
// nothing about servers.
func (n *node) serverTLS() (*tls.Config, error) {
	file := pki.CertFile(n.TLSDir, pki.ServerCA)
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s holds no certificate", file)
	}
	return &tls.Config{RootCAs: roots, ServerName: apiserverName, MinVersion: tls.VersionTLS12}, nil
}

// clientTLS is for connections to an apiserver as this node, with the certificates as they are now.
func (n *node) clientTLS() (*tls.Config, error) {
	cfg, err := n.serverTLS()
	if err != nil {
		return nil, err
	}
	path := pki.PairFile(n.TLSDir, pki.KubeletClient)
	pair, err := tls.LoadX509KeyPair(path, path)
	if err != nil {
		return nil, err
	}
	cfg.Certificates = []tls.Certificate{pair}
	return cfg, nil
}

// runTunnel lets every apiserver reach this node, from inside.
func (n *node) runTunnel(ctx context.Context) error {
	return tunnel.RunAgent(ctx, tunnel.AgentOptions{Node: n.Name, Addresses: n.addresses, Servers: n.servers.get, TLS: n.clientTLS, Log: n.log})
}

// keepCertificates renews an agent's certificates; a server's control plane renews those of its own node.
func (n *node) keepCertificates(ctx context.Context) error {
	return nodecert.Keep(ctx, n.certificateOptions())
}

func (n *node) certificateOptions() nodecert.Options {
	return nodecert.Options{
		Node: n.Name, Dir: n.TLSDir, Server: "https://" + balancerAddress,
		Addresses: func() ([]netip.Addr, error) {
			all, err := pki.Addresses(n.NodeIPs...)
			if err != nil {
				return nil, err
			}
			return pki.NodeAddresses(all, n.Settings.PodCIDRs)
		},
		Bootstrap: n.bootstrap, Floor: n.ClockFloor, Log: n.log, Lock: &n.renewing,
	}
}

// bootstrap gets a certificate to obtain others with. After a year without power the machine's own identity is all that
// is left to show.
func (n *node) bootstrap(ctx context.Context) (tls.Certificate, error) {
	c, _, err := join.Renew(ctx, n.renewOptions())
	return c, err
}

func (n *node) renewOptions() join.RenewOptions {
	return join.RenewOptions{
		Role: n.Role, Node: n.Name, Servers: n.servers.get(), Dir: filepath.Dir(n.StateDir), Floor: n.ClockFloor, Log: n.log,
	}
}

// keepMembership notices when an agent was removed from the cluster, has it join again, which takes a token that is good,
// and then ends, so that the kubelet registers its Node anew.
func (n *node) keepMembership(ctx context.Context) error {
	state := filepath.Dir(n.StateDir)
	return watchMembership(ctx, n.log, memberWatch{
		ask: func(ctx context.Context) error {
			_, err := n.client.CoreV1().Nodes().Get(ctx, n.Name, metav1.GetOptions{})
			return err
		},
		renew: func(ctx context.Context) error {
			_, err := n.bootstrap(ctx)
			return err
		},
		removed: func() bool { return join.Removed(state) },
		rejoin: func(ctx context.Context) error {
			return initctl.Client{Path: initctl.Path}.Do(ctx, initctl.Request{Verb: initctl.VerbRestart, Process: "join"})
		},
		interval: memberInterval,
	})
}
