package pki

import "path/filepath"

// Names of the certificates.
const (
	ServerCA        = "server-ca"         // signs what serves
	ClientCA        = "client-ca"         // signs who asks
	RequestHeaderCA = "request-header-ca" // signs the aggregation layer's proxy
	KubeletCA       = "kubelet-ca"        // signs what kubelets serve with: none of them can pass as an apiserver
	StoreCA         = "store-ca"          // signs the members of the store

	APIServer              = "apiserver"
	APIServerKubeletClient = "apiserver-kubelet-client"
	ControllerManager      = "controller-manager"
	Scheduler              = "scheduler"
	Admin                  = "admin"
	KubeletServer          = "kubelet-server"
	KubeletClient          = "kubelet-client" // also of kube-proxy and of the pod network
	FrontProxy             = "front-proxy"
	Store                  = "store"
)

const (
	// APIServerUser is who the apiserver is to a kubelet.
	APIServerUser = "kube-apiserver-kubelet-client"
	// FrontProxyUser is who the aggregation layer is to an aggregated apiserver.
	FrontProxyUser = "system:auth-proxy"
	// NodeGroup is the group of all kubelets.
	NodeGroup = "system:nodes"
)

// NodeUser is who the kubelet of a node of that name is.
func NodeUser(node string) string { return "system:node:" + node }

// Authorities lists the names of the cluster's authorities in the order of their creation.
func Authorities() []string {
	return []string{ServerCA, ClientCA, RequestHeaderCA, KubeletCA, StoreCA}
}

// retired lists the leaves of earlier releases that nothing uses any more.
func retired() []string { return []string{"kube-proxy"} }

// PairFile is the file of the certificate name and its key, below dir.
func PairFile(dir, name string) string { return filepath.Join(dir, name+".pem") }

// CertFile is the file of an authority's certificate without its key, for who trusts it. While the authority is replaced it
// holds the certificates of both, the one that signs first. All of them are signed by themselves.
func CertFile(dir, name string) string { return filepath.Join(dir, name+".crt") }

// CrossFile is the file of the certificate by which the authority before vouches for the one that signs; see Succeed. It is
// there after an authority was replaced.
func CrossFile(dir, name string) string { return filepath.Join(dir, name+".cross") }

// ServiceAccountKey is the file of the key that signs service account tokens.
func ServiceAccountKey(dir string) string { return filepath.Join(dir, "service-account.key") }
