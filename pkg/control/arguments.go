package control

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cairn-os/cairn/pkg/atomicfile"
	"github.com/cairn-os/cairn/pkg/pki"
)

// issuer names the cluster in service account tokens.
const issuer = "https://kubernetes.default.svc.cluster.local"

// authenticationConfig lets requests without credentials see the health endpoints and nothing else.
const authenticationConfig = `apiVersion: apiserver.config.k8s.io/v1
kind: AuthenticationConfiguration
anonymous:
  enabled: true
  conditions:
  - path: /livez
  - path: /readyz
  - path: /healthz
`

func writeRuntime(path, text string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("create %s: %w", filepath.Dir(path), err)
	}
	return atomicfile.Write(path, []byte(text), 0o600)
}

func (o Options) apiserverArguments() []string {
	store := []string{"--etcd-servers=" + o.Store}
	if len(o.Etcd.Servers) > 0 {
		store = append([]string{"--etcd-servers=" + strings.Join(o.Etcd.Servers, ",")}, o.Etcd.arguments()...)
	}
	return append([]string{
		"--advertise-address=" + o.addresses[0].String(),
		"--secure-port=" + strconv.Itoa(o.Port),
		"--encryption-provider-config=" + o.encryption(),
		"--service-cluster-ip-range=" + o.ServiceCIDR.String(),
		"--allow-privileged=true",
		"--profiling=false",

		"--tls-cert-file=" + o.pair(pki.APIServer),
		"--tls-private-key-file=" + o.pair(pki.APIServer),
		"--client-ca-file=" + o.authority(pki.ClientCA),
		"--authentication-config=" + o.authentication(),
		"--authorization-mode=Node,RBAC",
		"--enable-admission-plugins=NodeRestriction",
		"--service-account-issuer=" + issuer,
		"--service-account-key-file=" + pki.ServiceAccountKey(o.tls()),
		"--service-account-signing-key-file=" + pki.ServiceAccountKey(o.tls()),

		"--kubelet-certificate-authority=" + o.authority(pki.ServerCA),
		"--kubelet-client-certificate=" + o.pair(pki.APIServerKubeletClient),
		"--kubelet-client-key=" + o.pair(pki.APIServerKubeletClient),
		"--kubelet-preferred-address-types=InternalIP,Hostname",

		// The aggregation layer. A node's apiserver reaches Services because kube-proxy runs on it too.
		"--requestheader-client-ca-file=" + o.authority(pki.RequestHeaderCA),
		"--requestheader-allowed-names=" + pki.FrontProxyUser,
		"--requestheader-username-headers=X-Remote-User",
		"--requestheader-group-headers=X-Remote-Group",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-",
		"--proxy-client-cert-file=" + o.pair(pki.FrontProxy),
		"--proxy-client-key-file=" + o.pair(pki.FrontProxy),
	}, store...)
}

func (o Options) controllerManagerArguments() []string {
	args := []string{
		"--kubeconfig=" + o.componentConfig(pki.ControllerManager),
		"--leader-elect=false",
		"--secure-port=0", // no port at all: the supervisor watches the process, not a health endpoint
		"--profiling=false",
		"--controllers=*,-cloud-node-lifecycle-controller,-service-lb-controller,-node-route-controller",
		"--controller-shutdown-timeout=" + (controllersGrace * 3 / 5).String(),
		"--use-service-account-credentials=true", // each controller with the rights of its own role
		"--kube-api-qps=200",                     // the default of 20 delays the start by seconds: 40 accounts get tokens
		"--kube-api-burst=300",
		"--service-account-private-key-file=" + pki.ServiceAccountKey(o.tls()),
		"--root-ca-file=" + o.authority(pki.ServerCA),
		"--allocate-node-cidrs=true",
		"--cluster-cidr=" + o.ClusterCIDR.String(),
		"--service-cluster-ip-range=" + o.ServiceCIDR.String(),
	}
	for _, s := range []struct{ signer, authority string }{
		{"kube-apiserver-client", pki.ClientCA}, {"kubelet-client", pki.ClientCA},
		{"kubelet-serving", pki.ServerCA}, {"legacy-unknown", pki.ServerCA},
	} {
		args = append(args,
			"--cluster-signing-"+s.signer+"-cert-file="+o.pair(s.authority),
			"--cluster-signing-"+s.signer+"-key-file="+o.pair(s.authority))
	}
	return args
}

func (o Options) schedulerArguments() []string {
	return []string{
		"--kubeconfig=" + o.componentConfig(pki.Scheduler),
		"--leader-elect=false",
		"--secure-port=0",
		"--profiling=false",
	}
}
