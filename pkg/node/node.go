// Package node runs the parts of Kubernetes that each node needs, in one process: the kubelet, kube-proxy in nftables
// mode, the pod network, and the tunnels by which the apiservers reach the node.
//
// All of them ask the cluster through the node's own balancer, which knows every server, so that none of them notices
// which one answers.
//
// Pods belong to containerd's shims: they keep running when this process ends and are found again when it starts. The
// components register themselves globally, so when one ends, Run returns and the supervisor starts the process anew.
package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"

	"github.com/cairn-os/cairn/pkg/balancer"
	"github.com/cairn-os/cairn/pkg/kubeconfig"
	"github.com/cairn-os/cairn/pkg/membership"
	"github.com/cairn-os/cairn/pkg/pki"
	"github.com/cairn-os/cairn/pkg/podnet"
)

// Options say what the node is and where its files are. DefaultOptions gives those of a real one.
type Options struct {
	Name     string
	Role     membership.Role
	Labels   map[string]string // set when the node registers, and kept
	Taints   []corev1.Taint    // set when the node registers, and kept
	NodeIPs  []netip.Addr      // the addresses to use, one per family; empty: those of the default routes
	Settings membership.Settings

	Server  string   // host:port by which the machine joined; empty on the first server
	Servers []string // host:port of the apiservers known when it joined

	KubeletArgs []string // name=value, over everything else
	ProxyArgs   []string

	TLSDir     string // see pki and nodecert
	RunDir     string // generated configuration, not durable
	StateDir   string // what is remembered across reboots
	KubeletDir string
	LogDir     string // of pods
	Containerd string // its socket
	CNIConfDir string
	ResolvConf string

	ClockFloor time.Time // see pki.Options
}

// balancerAddress is where the node's own parts reach the cluster; see pkg/balancer.
const balancerAddress = balancer.DefaultListen

// DefaultOptions returns the options of a server's node of that name.
func DefaultOptions(name string) Options {
	return Options{
		Name:       name,
		Role:       membership.Server,
		Settings:   membership.DefaultSettings(),
		TLSDir:     "/var/lib/cairn/server/tls",
		RunDir:     "/run/cairn/node",
		StateDir:   "/var/lib/cairn/node",
		KubeletDir: "/var/lib/kubelet",
		LogDir:     "/var/log/pods",
		Containerd: "/run/cairn/containerd.sock",
		CNIConfDir: "/etc/cni/net.d",
		ResolvConf: "/etc/resolv.conf",
	}
}

// kubeconfig is the file by which all parts of the node ask the cluster: they are one process and have one identity.
func (o Options) kubeconfig() string { return filepath.Join(o.RunDir, pki.KubeletClient+".kubeconfig") }

func (o Options) prepare() error {
	c := kubeconfig.Client{
		Server: "https://" + balancerAddress, CAFile: pki.CertFile(o.TLSDir, pki.ServerCA),
		PairFile: pki.PairFile(o.TLSDir, pki.KubeletClient), User: pki.KubeletClient,
	}
	return c.WriteReference(o.kubeconfig())
}

// Run runs the node until ctx ends; pods stay. It calls ready once the kubelet is healthy and has told the cluster since
// that the node is Ready: then pods can run. A part that ends by itself is an error.
func Run(ctx context.Context, log *slog.Logger, o Options, ready func() error) error {
	addresses, err := pki.Addresses(o.NodeIPs...)
	if err != nil {
		return err
	}
	n := &node{Options: o, log: log}
	if n.addresses, err = pki.NodeAddresses(addresses, o.Settings.PodCIDRs); err != nil {
		return err
	}
	if err := n.prepare(); err != nil {
		return err
	}
	if n.client, err = newClient(n.kubeconfig()); err != nil {
		return err
	}
	if n.balancer, err = n.newBalancer(); err != nil {
		return err
	}
	if err := podnet.Restore(n.podNetwork()); err != nil {
		log.Warn("pod network of the last start not restored", "error", err)
	}
	return runParts(ctx, n.parts(ready))
}

// node is a running node.
type node struct {
	Options
	log       *slog.Logger
	client    kubernetes.Interface
	balancer  *balancer.Balancer
	addresses []netip.Addr // the primary one of each family
	servers   servers
	renewing  sync.Mutex // held by who renews an agent's certificates
}

// parts are what runs until the node stops; all but the balancer wait for the cluster by themselves.
func (n *node) parts(ready func() error) map[string]func(context.Context) error {
	begin := time.Now()
	parts := map[string]func(context.Context) error{
		"balancer":     n.balancer.Run,
		"servers":      func(ctx context.Context) error { return followServers(ctx, n.log, n.client, n.setServers) },
		"tunnel":       n.runTunnel,
		"kubelet":      n.afterServer(n.runKubelet),
		"kube-proxy":   n.afterServer(n.runProxy),
		"pod network":  n.afterServer(func(ctx context.Context) error { return podnet.Run(ctx, n.podNetwork()) }),
		"declarations": n.afterServer(n.declare),
		"address":      n.keepAddress,
		"readiness": func(ctx context.Context) error {
			if err := n.awaitReady(ctx, begin); err != nil {
				return err
			}
			if err := ready(); err != nil {
				return fmt.Errorf("notify readiness: %w", err)
			}
			<-ctx.Done()
			return nil
		},
	}
	if n.Role == membership.Agent {
		parts["certificates"] = n.keepCertificates
		parts["authorities"] = n.followAuthorities
		parts["membership"] = n.keepMembership
	}
	return parts
}

// afterServer returns what runs part once an apiserver answers. Without one the parts find nothing to do, and on the only
// server of a cluster they would take the processor from what they wait for.
func (n *node) afterServer(part func(context.Context) error) func(context.Context) error {
	return func(ctx context.Context) error {
		for !n.serverReady() {
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(serverPause):
			}
		}
		return part(ctx)
	}
}

// serverPause is how often an apiserver is looked for.
const serverPause = 100 * time.Millisecond

func (n *node) serverReady() bool {
	return slices.ContainsFunc(n.balancer.Servers(), func(s balancer.Server) bool { return s.Healthy })
}

func (n *node) podNetwork() podnet.Options {
	return podnet.Options{
		Node: n.Name, Settings: n.Settings, Client: n.client, NodeIPs: n.addresses, StateDir: n.StateDir,
		CNIConfDir: n.CNIConfDir, Log: n.log,
	}
}

// runParts runs all parts until ctx ends or one of them does, and waits for the rest for a bounded time.
func runParts(ctx context.Context, parts map[string]func(context.Context) error) error {
	stopping := ctx
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type end struct {
		name string
		err  error
	}
	ends := make(chan end, len(parts))
	for name, run := range parts {
		go func() { ends <- end{name, run(ctx)} }()
	}
	var first error
	grace := time.Duration(-1)
	for left := len(parts); left > 0; left-- {
		var late <-chan time.Time
		if grace > 0 {
			late = time.After(grace)
		}
		select {
		case e := <-ends:
			if stopping.Err() == nil && first == nil {
				if e.err == nil {
					e.err = errors.New("returned without being asked to")
				}
				first = fmt.Errorf("%s ended: %w", e.name, e.err)
			}
		case <-late:
			return first
		}
		cancel()
		grace = 3 * time.Second
	}
	return first
}

// addressInterval is how often the machine's addresses are looked at.
const addressInterval = time.Minute

// keepAddress ends with an error when the machine got another address than the one the kubelet was started with, which
// it would go on to announce.
func (n *node) keepAddress(ctx context.Context) error {
	tick := time.NewTicker(addressInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		now, err := pki.Addresses(n.NodeIPs...)
		if err != nil {
			continue // for a pulled cable
		}
		for _, a := range n.addresses {
			if err := pki.Lost(a, now); err != nil {
				return err
			}
		}
	}
}

// awaitReady waits until the kubelet is healthy and the cluster shows the node as Ready, by a report made after begin.
func (n *node) awaitReady(ctx context.Context, begin time.Time) error {
	return wait.PollUntilContextCancel(ctx, 200*time.Millisecond, true, func(ctx context.Context) (bool, error) {
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		if !kubeletHealthy(ctx) {
			return false, nil
		}
		own, err := n.client.CoreV1().Nodes().Get(ctx, n.Name, metav1.GetOptions{})
		return err == nil && isReady(own, begin, time.Now()), nil
	})
}

// isReady reports whether the kubelet says so since begin: the cluster remembers what it said before the last reboot.
func isReady(n *corev1.Node, begin, now time.Time) bool {
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			// Heartbeats are in whole seconds. Round drops the monotonic clock: one that was set back since says nothing.
			fresh := !c.LastHeartbeatTime.Time.Before(begin.Truncate(time.Second)) || now.Round(0).Before(begin.Round(0))
			return fresh && c.Status == corev1.ConditionTrue
		}
	}
	return false
}

func kubeletHealthy(ctx context.Context) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://127.0.0.1:%d/healthz", healthzPort), nil)
	if err != nil {
		return false
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return false
	}
	defer res.Body.Close()
	return res.StatusCode == http.StatusOK
}
