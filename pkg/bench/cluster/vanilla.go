package cluster

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/client"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/cairn-os/cairn/pkg/airgap"
	"github.com/cairn-os/cairn/pkg/bench/cluster/peer"
	"github.com/cairn-os/cairn/pkg/build/binaries"
	"github.com/cairn-os/cairn/pkg/build/image"
	"github.com/cairn-os/cairn/pkg/nodens"
	"github.com/cairn-os/cairn/pkg/pki"
	"github.com/cairn-os/cairn/pkg/runner"
)

// Certificates that Cairn has no counterpart of.
const (
	etcdPair  = "etcd"
	proxyPair = "kube-proxy"
)

// vanilla is Kubernetes as its project publishes it.
type vanilla struct {
	built    *image.Output
	upstream *binaries.Set

	// Of the cluster that was prepared last.
	pki     string     // directory of the certificates, one below it for each machine
	servers []*machine // in the order in which etcd's members are named
}

func (*vanilla) name() string { return "vanilla" }

func (k *vanilla) programs() map[string]string { return k.upstream.Files }

// tls is where the certificates of m are on this machine.
func (k *vanilla) tls(m *machine) string { return filepath.Join(k.pki, m.name) }

// prepare makes the certificates, as "kubeadm init" and "kubeadm join" do
// before anything runs.
func (k *vanilla) prepare(c *cluster) error {
	k.pki, k.servers = filepath.Join(c.dir, "pki"), nil
	if err := os.RemoveAll(k.pki); err != nil {
		return err
	}
	for i, m := range c.machines {
		if m.role == server {
			k.servers = append(k.servers, m)
		}
		if i > 0 {
			if err := copyAuthorities(k.tls(c.machines[0]), k.tls(m)); err != nil {
				return err
			}
		}
		if err := k.certify(m, i > 0); err != nil {
			return fmt.Errorf("certificates of %s: %w", m.name, err)
		}
	}
	return nil
}

// copyAuthorities shares what makes a cluster one.
func copyAuthorities(from, to string) error {
	if err := os.MkdirAll(to, 0o700); err != nil {
		return err
	}
	files, err := filepath.Glob(filepath.Join(from, "*-ca.*"))
	if err != nil {
		return err
	}
	for _, file := range append(files, pki.ServiceAccountKey(from)) {
		data, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(to, filepath.Base(file)), data, 0o600); err != nil {
			return err
		}
	}
	return nil
}

func (k *vanilla) certify(m *machine, joined bool) error {
	dir, address := k.tls(m), m.address.Addr()
	if _, err := pki.Ensure(pki.Options{
		Dir: dir, Node: m.name, Addresses: []netip.Addr{address}, ServiceIP: serviceNet().Addr().Next(), Joined: joined,
	}); err != nil {
		return err
	}
	both := []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}
	loopback := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	return errors.Join(
		sign(dir, pki.StoreCA, etcdPair, pki.Request{
			User: m.name, Usages: both, DNSNames: []string{"localhost", m.name}, Addresses: []netip.Addr{loopback, address},
		}),
		sign(dir, pki.ClientCA, proxyPair, pki.ClientRequest("system:kube-proxy")),
	)
}

// sign makes a pair's file.
func sign(dir, authority, name string, r pki.Request) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	cert, err := pki.Sign(dir, authority, key.Public(), r)
	if err != nil {
		return err
	}
	data, err := pki.EncodePair(cert, key)
	if err != nil {
		return err
	}
	return os.WriteFile(pki.PairFile(dir, name), data, 0o600)
}

func (k *vanilla) powerOn(ctx context.Context, m *machine) (*power, error) {
	seed, err := k.seed(m)
	if err != nil {
		return nil, err
	}
	console := runner.NewConsole(nil)
	n, err := nodens.Start(ctx, nodens.Config{
		Tree: m.tree(), StateDir: m.state(), Name: m.name, Address: m.address, Console: console,
		Init: []string{peer.Program}, Seed: seed,
	})
	if err != nil {
		return nil, err
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, err := n.Wait(context.WithoutCancel(ctx))
		fmt.Fprintf(console, "%s ended: %v\n", m.name, err)
	}()
	return &power{pid: n.PID(), console: console, done: done, kill: n.Kill}, nil
}

// seed is what lies in /etc and /run of m when it starts. A distribution keeps
// most of it on the disk.
func (k *vanilla) seed(m *machine) (map[string][]byte, error) {
	spec, err := json.Marshal(k.spec(m))
	if err != nil {
		return nil, err
	}
	seed := map[string][]byte{
		peer.SpecFile:      spec,
		"/etc/resolv.conf": []byte("nameserver " + m.gateway().String() + "\n"),
		containerdConfig:   containerdText(),
		kubeletConfig:      kubeletText(),
		"/etc/crictl.yaml": []byte("runtime-endpoint: unix://" + containerdSocket + "\n"),
		"/etc/machine-id":  []byte(fmt.Sprintf("%032x\n", m.address.Addr().As4())),
	}
	err = filepath.WalkDir(k.tls(m), func(file string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(file)
		seed[path.Join(tlsDir, d.Name())] = data
		return err
	})
	if err != nil {
		return nil, err
	}
	for file, user := range kubeconfigs() {
		if seed[file], err = kubeconfigText(k.serverOf(m), user); err != nil {
			return nil, err
		}
	}
	if m.podNet.IsValid() {
		seed[cniFile] = cniText(m.podNet)
	}
	return seed, nil
}

// serverOf is the apiserver that the programs of m use. Real clusters have a
// load balancer in between.
func (k *vanilla) serverOf(m *machine) string {
	if m.role == server {
		return m.url()
	}
	return k.servers[0].url()
}

// attend imports the images, and connects the pods of the node once its share
// of their network is known.
func (k *vanilla) attend(ctx context.Context, m *machine) error {
	if m.podNet.IsValid() {
		return nil // all is on the disk
	}
	failures := make(chan error, 1)
	go func() { failures <- k.importImages(ctx, m) }()
	return errors.Join(k.connectPods(ctx, m), <-failures)
}

func (k *vanilla) importImages(ctx context.Context, m *machine) error {
	var c *client.Client
	socket := fmt.Sprintf("/proc/%d/root%s", m.power.pid, containerdSocket)
	err := m.wait(ctx, "containerd serves", func(ctx context.Context) (bool, error) {
		if _, err := os.Stat(socket); err != nil {
			return false, err
		}
		var err error
		if c, err = client.New(socket); err != nil {
			return false, err
		}
		if ok, err := c.IsServing(ctx); !ok {
			return false, errors.Join(err, c.Close())
		}
		return true, nil
	})
	if err != nil {
		return err
	}
	defer c.Close()
	for _, archive := range []string{filepath.Join(m.tree(), "usr/share/cairn/images/pause.tar"), k.built.Hello} {
		f, err := os.Open(archive)
		if err != nil {
			return err
		}
		_, err = airgap.Containerd{Client: c}.Import(ctx, f, []string{pauseImage})
		if err := errors.Join(err, f.Close()); err != nil {
			return fmt.Errorf("%s: import %s: %w", m.name, archive, err)
		}
	}
	return nil
}

// connectPods writes the node's CNI configuration, as the DaemonSet of a pod
// network does.
func (k *vanilla) connectPods(ctx context.Context, m *machine) error {
	api, err := m.client(ctx)
	if err != nil {
		return err
	}
	err = m.wait(ctx, "the node has its share of the pod network", func(ctx context.Context) (bool, error) {
		n, err := api.CoreV1().Nodes().Get(ctx, m.name, metav1.GetOptions{})
		if err != nil || n.Spec.PodCIDR == "" {
			return false, err
		}
		m.podNet, err = netip.ParsePrefix(n.Spec.PodCIDR)
		return err == nil, err
	})
	if err != nil {
		return err
	}
	file := fmt.Sprintf("/proc/%d/root%s", m.power.pid, cniFile)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	// containerd looks again at each change: it must not see half of it.
	if err := os.WriteFile(file+".new", cniText(m.podNet), 0o644); err != nil {
		return err
	}
	return os.Rename(file+".new", file)
}

func (k *vanilla) access(_ context.Context, m *machine) (*rest.Config, error) {
	dir := k.tls(m)
	pair := pki.PairFile(dir, pki.Admin)
	return &rest.Config{Host: k.serverOf(m), TLSClientConfig: rest.TLSClientConfig{
		CAFile: pki.CertFile(dir, pki.ServerCA), CertFile: pair, KeyFile: pair,
	}}, nil
}

func (*vanilla) process(argv []string) string {
	name := path.Base(argv[0])
	switch {
	case argv[0] == peer.Program:
		return "" // a distribution has a service manager, of a size of its own
	case strings.HasPrefix(name, shimProgram):
		return shims
	}
	return name
}
