package node

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/util/feature"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
	"k8s.io/kubernetes/cmd/kubelet/app/options"
	kubeletconfig "k8s.io/kubernetes/pkg/kubelet/apis/config"
	kubelettypes "k8s.io/kubernetes/pkg/kubelet/types"

	"github.com/cairn-os/cairn/pkg/pki"
)

// healthzPort serves the kubelet's health, on the loopback address alone.
const healthzPort = 10248

// host is what the kubelet's configuration depends on.
type host struct {
	cgroupV1 bool
	oomScore int32 // of this process, as the supervisor set it
}

func inspectHost() (host, error) {
	var h host
	var st unix.Statfs_t
	if err := unix.Statfs("/sys/fs/cgroup", &st); err != nil {
		return h, fmt.Errorf("statfs /sys/fs/cgroup: %w", err)
	}
	h.cgroupV1 = st.Type != unix.CGROUP2_SUPER_MAGIC
	data, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		return h, err
	}
	score, err := strconv.ParseInt(strings.TrimSpace(string(data)), 10, 32)
	if err != nil {
		return h, fmt.Errorf("oom_score_adj: %w", err)
	}
	h.oomScore = int32(score)
	return h, nil
}

func (n *node) runKubelet(ctx context.Context) error {
	h, err := inspectHost()
	if err != nil {
		return err
	}
	server, err := n.kubeletServer(h)
	if err != nil {
		return err
	}
	deps, err := kubelet.UnsecuredDependencies(ctx, server, feature.DefaultFeatureGate)
	if err != nil {
		return fmt.Errorf("dependencies: %w", err)
	}
	return kubelet.Run(ctx, server, deps, feature.DefaultFeatureGate)
}

// kubeletServer is upstream's configuration with what differs on Cairn.
func (n *node) kubeletServer(h host) (*options.KubeletServer, error) {
	s, err := options.NewKubeletServer()
	if err != nil {
		return nil, fmt.Errorf("kubelet defaults: %w", err)
	}
	if len(n.addresses) == 0 {
		return nil, errors.New("kubelet: no node address")
	}
	s.KubeConfig = n.kubeconfig()
	s.HostnameOverride = n.Name
	s.NodeIP = nodeIP(n.addresses)
	s.NodeLabels = n.registrationLabels()
	s.RegisterWithTaints = n.Taints
	s.RootDirectory = n.KubeletDir
	s.CertDirectory = filepath.Join(n.KubeletDir, "pki")
	s.PodLogsDir = n.LogDir
	s.VolumePluginDir = filepath.Join(n.KubeletDir, "volume-plugins") // upstream's default is on the read-only root
	s.ContainerRuntimeEndpoint = "unix://" + n.Containerd
	s.ImageServiceEndpoint = s.ContainerRuntimeEndpoint
	s.ResolverConfig = n.ResolvConf

	pair := pki.PairFile(n.TLSDir, pki.KubeletServer)
	s.TLSCertFile, s.TLSPrivateKeyFile = pair, pair
	s.Authentication.Anonymous.Enabled = false
	s.Authentication.Webhook.Enabled = true
	s.Authentication.X509.ClientCAFile = pki.CertFile(n.TLSDir, pki.ClientCA)
	s.Authorization.Mode = kubeletconfig.KubeletAuthorizationModeWebhook
	s.ReadOnlyPort = 0
	s.HealthzPort = healthzPort
	s.HealthzBindAddress = "127.0.0.1"

	s.CgroupDriver = "cgroupfs" // there is no systemd
	s.FailCgroupV1 = !h.cgroupV1
	s.EnforceNodeAllocatable = []string{kubelettypes.NodeAllocatableEnforcementKey}
	s.FailSwapOn = false
	s.OOMScoreAdj = h.oomScore
	s.MakeIPTablesUtilChains = false // nothing here uses iptables

	// Cards of 4 GB are common: hold less, tidy earlier.
	s.ContainerLogMaxSize = "4Mi"
	s.ContainerLogMaxFiles = 3
	s.ImageGCHighThresholdPercent = 80
	s.ImageGCLowThresholdPercent = 70
	s.EvictionHard = map[string]string{
		"memory.available": "64Mi", "nodefs.available": "5%", "nodefs.inodesFree": "5%", "imagefs.available": "5%",
	}
	s.EvictionPressureTransitionPeriod = metav1.Duration{Duration: time.Minute}
	return s, n.applyKubeletArgs(s)
}

// nodeIP is the kubelet's spelling of one address per family.
func nodeIP(addresses []netip.Addr) string {
	var all []string
	for _, a := range addresses {
		all = append(all, a.String())
	}
	return strings.Join(all, ",")
}

// applyKubeletArgs puts the owner's arguments over everything else.
func (n *node) applyKubeletArgs(s *options.KubeletServer) error {
	if len(n.KubeletArgs) == 0 {
		return nil
	}
	fs := pflag.NewFlagSet("kubelet", pflag.ContinueOnError)
	s.KubeletFlags.AddFlags(fs)
	options.AddKubeletConfigFlags(fs, &s.KubeletConfiguration)
	if err := fs.Parse(arguments(n.KubeletArgs)); err != nil {
		return fmt.Errorf("cairn.cluster.kubelet_args: %w", err)
	}
	return nil
}

// arguments turns name=value into a command line's form.
func arguments(args []string) []string {
	var all []string
	for _, a := range args {
		all = append(all, "--"+strings.TrimLeft(a, "-"))
	}
	return all
}

// registrationLabels leaves out the labels that a kubelet may not give itself. The control plane sets those.
func (n *node) registrationLabels() map[string]string {
	labels := make(map[string]string)
	for k, v := range n.Labels {
		f := options.NewKubeletFlags()
		f.NodeLabels = map[string]string{k: v}
		if options.ValidateKubeletFlags(f) == nil {
			labels[k] = v
		}
	}
	return labels
}
