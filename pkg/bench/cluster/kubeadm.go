package cluster

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"path"
	"strings"

	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"

	"github.com/cairn-os/cairn/pkg/bench/cluster/peer"
	"github.com/cairn-os/cairn/pkg/pki"
	"github.com/cairn-os/cairn/pkg/supervise"
)

// Where a vanilla node has its files.
const (
	tlsDir           = "/etc/kubernetes/pki"
	manifests        = "/etc/kubernetes/manifests"
	managerConfig    = "/etc/kubernetes/controller-manager.conf"
	schedulerConfig  = "/etc/kubernetes/scheduler.conf"
	kubeletAccess    = "/etc/kubernetes/kubelet.conf"
	proxyAccess      = "/etc/kubernetes/kube-proxy.conf"
	kubeletConfig    = "/var/lib/kubelet/config.yaml"
	containerdConfig = "/etc/containerd/config.toml"
	containerdSocket = "/run/containerd/containerd.sock"
	cniFile          = "/etc/cni/net.d/10-bridge.conflist"
	etcdData         = "/var/lib/etcd"
	podNets          = "10.44.0.0/16"
	// pauseImage is pkg/containerd's, which would bring all of containerd along.
	pauseImage = "cairn.local/pause:3.10.2"
)

// serviceNet is the network of Services.
func serviceNet() netip.Prefix { return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 45, 0, 0}), 16) }

// kubeconfigs are the files of clients on the node, and whose certificate they
// name.
func kubeconfigs() map[string]string {
	return map[string]string{
		managerConfig: pki.ControllerManager, schedulerConfig: pki.Scheduler, kubeletAccess: pki.KubeletClient, proxyAccess: proxyPair,
	}
}

// kubeconfigText is a configuration of a client on a node.
func kubeconfigText(url, pair string) ([]byte, error) {
	const name = "kubernetes"
	file := pki.PairFile(tlsDir, pair)
	return clientcmd.Write(api.Config{
		Clusters:       map[string]*api.Cluster{name: {Server: url, CertificateAuthority: pki.CertFile(tlsDir, pki.ServerCA)}},
		AuthInfos:      map[string]*api.AuthInfo{pair: {ClientCertificate: file, ClientKey: file}},
		Contexts:       map[string]*api.Context{name: {Cluster: name, AuthInfo: pair}},
		CurrentContext: name,
	})
}

// containerdText is what the Kubernetes documentation changes of containerd's
// defaults, but for the cgroup driver: there is no systemd here.
func containerdText() []byte {
	return fmt.Appendf(nil, `version = 3

[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = %q

[plugins.'io.containerd.cri.v1.runtime']
  # Namespaces of a container may not lower the score.
  restrict_oom_score_adj = true

[plugins.'io.containerd.cri.v1.runtime'.cni]
  bin_dirs = ['/usr/libexec/cni']
  conf_dir = %q
`, pauseImage, path.Dir(cniFile))
}

// kubeletText is what kubeadm writes. Where it trusts the defaults and the
// lane needs another value, that is Cairn's as well: a disk that is nearly full
// or cgroup v1 must not count against one side.
func kubeletText() []byte {
	return fmt.Appendf(nil, `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication:
  anonymous: {enabled: false}
  webhook: {enabled: true, cacheTTL: 0s}
  x509: {clientCAFile: %s}
authorization: {mode: Webhook}
cgroupDriver: cgroupfs
clusterDNS: [%s]
clusterDomain: cluster.local
containerRuntimeEndpoint: unix://%s
evictionHard: {memory.available: 64Mi, nodefs.available: 5%%, nodefs.inodesFree: 5%%, imagefs.available: 5%%}
failCgroupV1: false
failSwapOn: false
healthzBindAddress: 127.0.0.1
healthzPort: 10248
resolvConf: /etc/resolv.conf
staticPodPath: %s
tlsCertFile: %s
tlsPrivateKeyFile: %[5]s
volumePluginDir: /var/lib/kubelet/volume-plugins
`, pki.CertFile(tlsDir, pki.ClientCA), serviceNet().Addr().Next().Next(), containerdSocket, manifests, pki.PairFile(tlsDir, pki.KubeletServer))
}

// cniText connects the pods of one node.
func cniText(share netip.Prefix) []byte {
	type object = map[string]any
	text, err := json.MarshalIndent(object{
		"cniVersion": "1.0.0",
		"name":       "bridge",
		"plugins": []object{
			{
				"type": "bridge", "bridge": "cni0", "isDefaultGateway": true, "hairpinMode": true, "ipMasq": false,
				"ipam": object{"type": "host-local", "dataDir": "/run/cni", "ranges": [][]object{{{"subnet": share.String()}}}},
			},
			{"type": "portmap", "backend": "nftables", "capabilities": object{"portMappings": true}},
		},
	}, "", "  ")
	if err != nil {
		return nil // cannot be: all of it are strings
	}
	return text
}

// spec is what runs on m.
func (k *vanilla) spec(m *machine) peer.Spec {
	s := peer.Spec{
		Address: m.address, Gateway: m.gateway(),
		Directories: []string{"/var/lib/kubelet", "/var/log/pods", "/var/log/containers", "/run/containerd", path.Dir(cniFile), manifests},
		Services:    []supervise.Service{{Name: "containerd", Argv: []string{"containerd"}, Notify: true, MainOnly: true}},
	}
	if m.role == server {
		s.Directories = append(s.Directories, etcdData)
		s.Services = append(s.Services,
			supervise.Service{Name: "etcd", Argv: k.etcd(m), Notify: true},
			supervise.Service{Name: "kube-apiserver", Argv: k.apiserver(m), After: []string{"etcd"}},
		)
	}
	s.Services = append(s.Services,
		supervise.Service{Name: "api", Argv: peer.Await(k.serverOf(m) + "/readyz"), Oneshot: true, ReadyTimeout: -1},
		supervise.Service{Name: "kubelet", Argv: kubelet(m), After: []string{"api", "containerd"}, MainOnly: true},
		supervise.Service{Name: "kube-proxy", Argv: kubeProxy(m), After: []string{"api"}},
	)
	if m.role == server {
		s.Services = append(s.Services,
			supervise.Service{Name: "kube-controller-manager", Argv: controllerManager(), After: []string{"api"}},
			supervise.Service{Name: "kube-scheduler", Argv: scheduler(), After: []string{"api"}},
		)
	}
	return s
}

// etcd and the others below have kubeadm's flags.
func (k *vanilla) etcd(m *machine) []string {
	var members []string
	for _, s := range k.servers {
		members = append(members, fmt.Sprintf("%s=https://%s:2380", s.name, s.address.Addr()))
	}
	self := m.address.Addr().String()
	pair, ca := pki.PairFile(tlsDir, etcdPair), pki.CertFile(tlsDir, pki.StoreCA)
	return []string{
		"etcd", "--name=" + m.name, "--data-dir=" + etcdData,
		"--listen-client-urls=https://127.0.0.1:2379,https://" + self + ":2379", "--advertise-client-urls=https://" + self + ":2379",
		"--listen-peer-urls=https://" + self + ":2380", "--initial-advertise-peer-urls=https://" + self + ":2380",
		"--listen-metrics-urls=http://127.0.0.1:2381",
		"--initial-cluster=" + strings.Join(members, ","),
		"--cert-file=" + pair, "--key-file=" + pair, "--client-cert-auth=true", "--trusted-ca-file=" + ca,
		"--peer-cert-file=" + pair, "--peer-key-file=" + pair, "--peer-client-cert-auth=true", "--peer-trusted-ca-file=" + ca,
		"--snapshot-count=10000", "--watch-progress-notify-interval=5s", "--feature-gates=InitialCorruptCheck=true",
	}
}

func (k *vanilla) apiserver(m *machine) []string {
	pair := func(name string) string { return pki.PairFile(tlsDir, name) }
	ca := func(name string) string { return pki.CertFile(tlsDir, name) }
	return []string{
		"kube-apiserver", "--advertise-address=" + m.address.Addr().String(), "--secure-port=6443", "--allow-privileged=true",
		"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction", "--enable-bootstrap-token-auth=true",
		"--client-ca-file=" + ca(pki.ClientCA), "--tls-cert-file=" + pair(pki.APIServer), "--tls-private-key-file=" + pair(pki.APIServer),
		"--etcd-servers=https://127.0.0.1:2379", "--etcd-cafile=" + ca(pki.StoreCA), "--etcd-certfile=" + pair(etcdPair), "--etcd-keyfile=" + pair(etcdPair),
		"--kubelet-client-certificate=" + pair(pki.APIServerKubeletClient), "--kubelet-client-key=" + pair(pki.APIServerKubeletClient),
		"--kubelet-preferred-address-types=InternalIP,ExternalIP,Hostname",
		"--proxy-client-cert-file=" + pair(pki.FrontProxy), "--proxy-client-key-file=" + pair(pki.FrontProxy),
		"--requestheader-client-ca-file=" + ca(pki.RequestHeaderCA), "--requestheader-allowed-names=" + pki.FrontProxyUser,
		"--requestheader-username-headers=X-Remote-User", "--requestheader-group-headers=X-Remote-Group",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-",
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file=" + pki.ServiceAccountKey(tlsDir), "--service-account-signing-key-file=" + pki.ServiceAccountKey(tlsDir),
		"--service-cluster-ip-range=" + serviceNet().String(),
	}
}

func controllerManager() []string {
	ca := pki.PairFile(tlsDir, pki.ClientCA)
	return []string{
		"kube-controller-manager", "--kubeconfig=" + managerConfig,
		"--authentication-kubeconfig=" + managerConfig, "--authorization-kubeconfig=" + managerConfig,
		"--bind-address=127.0.0.1", "--leader-elect=true", "--use-service-account-credentials=true",
		"--controllers=*,bootstrapsigner,tokencleaner", "--cluster-name=kubernetes",
		"--allocate-node-cidrs=true", "--cluster-cidr=" + podNets, "--service-cluster-ip-range=" + serviceNet().String(),
		"--client-ca-file=" + pki.CertFile(tlsDir, pki.ClientCA), "--cluster-signing-cert-file=" + ca, "--cluster-signing-key-file=" + ca,
		"--requestheader-client-ca-file=" + pki.CertFile(tlsDir, pki.RequestHeaderCA),
		"--root-ca-file=" + pki.CertFile(tlsDir, pki.ServerCA), "--service-account-private-key-file=" + pki.ServiceAccountKey(tlsDir),
	}
}

func scheduler() []string {
	return []string{
		"kube-scheduler", "--kubeconfig=" + schedulerConfig,
		"--authentication-kubeconfig=" + schedulerConfig, "--authorization-kubeconfig=" + schedulerConfig,
		"--bind-address=127.0.0.1", "--leader-elect=true",
	}
}

func kubelet(m *machine) []string {
	return []string{
		"kubelet", "--kubeconfig=" + kubeletAccess, "--config=" + kubeletConfig,
		"--hostname-override=" + m.name, "--node-ip=" + m.address.Addr().String(),
	}
}

// kubeProxy leaves the machine's connection tracking alone, which has no
// namespace.
func kubeProxy(m *machine) []string {
	return []string{
		"kube-proxy", "--kubeconfig=" + proxyAccess, "--hostname-override=" + m.name, "--proxy-mode=nftables", "--cluster-cidr=" + podNets,
		"--conntrack-max-per-core=0", "--conntrack-min=0", "--conntrack-tcp-timeout-established=0", "--conntrack-tcp-timeout-close-wait=0",
	}
}
