package control

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/cairn-os/cairn/pkg/membership"
	"github.com/cairn-os/cairn/pkg/pki"
)

// issuer names the cluster in service account tokens.
func (o Options) issuer() string {
	return "https://kubernetes.default.svc." + o.Settings.ClusterDomain
}

// apiserverArguments leave on every admission plug-in that upstream has on, with upstream's own settings, as conformance
// asks: among them PodSecurity, which enforces nothing until a namespace asks for a level, and the webhooks. Added is
// NodeRestriction alone: without it each kubelet could change any node and any pod.
//
// GOAWAY at random stays off, though it would spread clients over servers again after one came back: they connect
// through the balancers of their nodes, which decide that, and each GOAWAY costs a small board a TLS handshake.
//
// A server that died leaves the endpoints of default/kubernetes by upstream's lease there: it ends after 15 s, and the
// others look every 10 s.
func (o Options) apiserverArguments() []string {
	args := []string{
		"--advertise-address=" + o.addresses[0].String(),
		"--bind-address=" + o.bindAddress(),
		"--secure-port=" + strconv.Itoa(o.Port),
		"--encryption-provider-config=" + o.encryption(),
		"--service-cluster-ip-range=" + prefixes(o.Settings.ServiceCIDRs),
		"--allow-privileged=true",
		"--profiling=false",

		"--tls-cert-file=" + o.pair(pki.APIServer),
		"--tls-private-key-file=" + o.pair(pki.APIServer),
		"--client-ca-file=" + o.authority(pki.ClientCA),
		"--authorization-mode=Node,RBAC",
		"--enable-admission-plugins=NodeRestriction",
		"--service-account-issuer=" + o.issuer(),
		"--service-account-key-file=" + pki.ServiceAccountKey(o.tls()),
		"--service-account-signing-key-file=" + pki.ServiceAccountKey(o.tls()),

		"--kubelet-certificate-authority=" + o.authority(pki.KubeletCA),
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
	}
	// Upstream takes OpenID Connect by a configuration file or by arguments, not by both. With arguments, requests
	// without credentials get as far as RBAC, which shows them the health endpoints and the version.
	if !o.Arguments.names(apiserverName, "oidc-") {
		args = append(args, "--authentication-config="+o.runtime("authentication.yaml"))
	}
	if o.Tunnels {
		args = append(args, "--egress-selector-config-file="+o.runtime("egress.yaml"))
	}
	return slices.Concat(args, o.storeArguments(), o.auditArguments())
}

func (o Options) storeArguments() []string {
	if len(o.Etcd.Servers) > 0 {
		return append([]string{"--etcd-servers=" + strings.Join(o.Etcd.Servers, ",")}, o.Etcd.arguments()...)
	}
	return []string{"--etcd-servers=" + o.Store}
}

// bindAddress is that of all addresses of the families in use. A machine whose kernel has no IPv6 could not listen on
// the address for both.
func (o Options) bindAddress() string {
	if o.listen.IsValid() {
		return o.listen.String()
	}
	if o.addresses[0].Is6() || slices.ContainsFunc(o.Settings.ServiceCIDRs, func(p netip.Prefix) bool { return p.Addr().Is6() }) {
		return "::"
	}
	return "0.0.0.0"
}

func prefixes(all []netip.Prefix) string {
	var texts []string
	for _, p := range all {
		texts = append(texts, p.String())
	}
	return strings.Join(texts, ",")
}

func (o Options) controllerManagerArguments() []string {
	args := []string{
		"--kubeconfig=" + o.componentConfig(pki.ControllerManager),
		"--leader-elect=false", // Cairn's own lease decides; upstream would end the process
		"--secure-port=0",      // no port at all: the apiserver's /metrics tells about the whole process
		"--profiling=false",
		"--controllers=*,-cloud-node-lifecycle-controller,-service-lb-controller,-node-route-controller",
		"--controller-shutdown-timeout=" + (controllersGrace * 3 / 5).String(),
		"--use-service-account-credentials=true", // each controller with the rights of its own role
		"--kube-api-qps=200",                     // the default of 20 delays the start by seconds: 40 accounts get tokens
		"--kube-api-burst=300",
		"--service-account-private-key-file=" + pki.ServiceAccountKey(o.tls()),
		"--root-ca-file=" + o.authority(pki.ServerCA),
		"--allocate-node-cidrs=true",
		"--cluster-cidr=" + prefixes(o.Settings.PodCIDRs),
		"--service-cluster-ip-range=" + prefixes(o.Settings.ServiceCIDRs),
	}
	if !o.Arguments.names(managerName, "node-cidr-mask-size") {
		args = append(args, maskArguments(o.Settings.PodCIDRs)...)
	}
	if o.Life > 0 {
		args = append(args, "--cluster-signing-duration="+o.Life.String())
	}
	for _, s := range []struct{ signer, authority string }{
		{"kube-apiserver-client", pki.ClientCA}, {"kubelet-client", pki.ClientCA},
		{"kubelet-serving", pki.KubeletCA}, {"legacy-unknown", pki.ServerCA},
	} {
		args = append(args,
			"--cluster-signing-"+s.signer+"-cert-file="+o.pair(s.authority),
			"--cluster-signing-"+s.signer+"-key-file="+o.pair(s.authority))
	}
	return args
}

// maskArguments say how much of the pod networks a node gets.
func maskArguments(pods []netip.Prefix) []string {
	var args []string
	for _, p := range pods {
		family := "ipv4"
		if p.Addr().Is6() {
			family = "ipv6"
		}
		args = append(args, "--node-cidr-mask-size-"+family+"="+strconv.Itoa(membership.NodeMask(p)))
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
