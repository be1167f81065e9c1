// Package node runs the parts of Kubernetes that each node needs, in one process: the kubelet, kube-proxy in nftables
// mode, and the configuration of the pod network.
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
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/wait"

	"github.com/cairn-os/cairn/pkg/kubeconfig"
	"github.com/cairn-os/cairn/pkg/pki"
)

// Options say what the node is and where its files are. DefaultOptions gives those of a real one.
type Options struct {
	Name   string
	Labels map[string]string // set when the node registers
	Taints []corev1.Taint    // set when the node registers

	Server      string // URL of the apiserver
	TLSDir      string // see pki
	RunDir      string // generated configuration, not durable
	StateDir    string // what is remembered across reboots
	KubeletDir  string
	LogDir      string // of pods
	Containerd  string // its socket
	CNIConfDir  string
	ResolvConf  string
	ClusterCIDR netip.Prefix // of all pods

	address netip.Addr // the primary one; Run finds it
}

// DefaultOptions returns the options of a node of that name.
func DefaultOptions(name string) Options {
	return Options{
		Name:        name,
		Server:      "https://127.0.0.1:6443",
		TLSDir:      "/var/lib/cairn/server/tls",
		RunDir:      "/run/cairn/node",
		StateDir:    "/var/lib/cairn/node",
		KubeletDir:  "/var/lib/kubelet",
		LogDir:      "/var/log/pods",
		Containerd:  "/run/cairn/containerd.sock",
		CNIConfDir:  "/etc/cni/net.d",
		ResolvConf:  "/etc/resolv.conf",
		ClusterCIDR: netip.MustParsePrefix("10.42.0.0/16"),
	}
}

func (o Options) componentConfig(name string) string {
	return filepath.Join(o.RunDir, name+".kubeconfig")
}

func (o Options) prepare() error {
	for _, name := range []string{pki.KubeletClient, pki.KubeProxy} {
		c := kubeconfig.Client{
			Server: o.Server, CAFile: pki.CertFile(o.TLSDir, pki.ServerCA), PairFile: pki.PairFile(o.TLSDir, name), User: name,
		}
		if err := c.WriteReference(o.componentConfig(name)); err != nil {
			return err
		}
	}
	return nil
}

// Run runs the node until ctx ends; pods stay. It calls ready once the kubelet is healthy and has told the cluster since
// that the node is Ready: then pods can run. A part that ends by itself is an error.
func Run(ctx context.Context, log *slog.Logger, o Options, ready func() error) error {
	addresses, err := pki.Addresses()
	if err != nil {
		return err
	}
	o.address = addresses[0]
	if err := o.prepare(); err != nil {
		return err
	}
	client, err := o.client()
	if err != nil {
		return err
	}
	cni := newPodNetwork(o, log)
	if err := cni.restore(); err != nil {
		log.Warn("pod network of the last start not restored", "error", err)
	}

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	begin := time.Now()
	parts := map[string]func(context.Context) error{
		"kubelet":     o.runKubelet,
		"kube-proxy":  o.runProxy,
		"pod network": func(ctx context.Context) error { return cni.run(ctx, client) },
		"readiness": func(ctx context.Context) error {
			if err := o.awaitReady(ctx, client, begin); err != nil {
				return err
			}
			if err := ready(); err != nil {
				return fmt.Errorf("notify readiness: %w", err)
			}
			<-ctx.Done()
			return nil
		},
		"address": o.keepAddress,
	}
	return runParts(ctx, parts)
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
func (o Options) keepAddress(ctx context.Context) error {
	tick := time.NewTicker(addressInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		now, err := pki.Addresses()
		if err != nil {
			continue // for a pulled cable
		}
		if err := pki.Lost(o.address, now); err != nil {
			return err
		}
	}
}

// awaitReady waits until the kubelet is healthy and the cluster shows the node as Ready, by a report made after begin.
func (o Options) awaitReady(ctx context.Context, client nodeGetter, begin time.Time) error {
	return wait.PollUntilContextCancel(ctx, 200*time.Millisecond, true, func(ctx context.Context) (bool, error) {
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		if !kubeletHealthy(ctx) {
			return false, nil
		}
		n, err := client.node(ctx)
		return err == nil && isReady(n, begin, time.Now()), nil
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
