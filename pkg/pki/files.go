package pki

import "path/filepath"

// Names of the certificates.
const (
	ServerCA        = "server-ca"         // signs what serves
	ClientCA        = "client-ca"         // signs who asks
	RequestHeaderCA = "request-header-ca" // signs the aggregation layer's proxy

	APIServer              = "apiserver"
	APIServerKubeletClient = "apiserver-kubelet-client"
	ControllerManager      = "controller-manager"
	Scheduler              = "scheduler"
	Admin                  = "admin"
	KubeletServer          = "kubelet-server"
	KubeletClient          = "kubelet-client"
	KubeProxy              = "kube-proxy"
	FrontProxy             = "front-proxy"
)

const (
	// APIServerUser is who the apiserver is to a kubelet.
	APIServerUser = "kube-apiserver-kubelet-client"
	// FrontProxyUser is who the aggregation layer is to an aggregated apiserver.
	FrontProxyUser = "system:auth-proxy"
)

// PairFile is the file of the certificate name and its key, below dir.
func PairFile(dir, name string) string { return filepath.Join(dir, name+".pem") }

// CertFile is the file of an authority's certificate without its key.
func CertFile(dir, name string) string { return filepath.Join(dir, name+".crt") }

// ServiceAccountKey is the file of the key that signs service account tokens.
func ServiceAccountKey(dir string) string { return filepath.Join(dir, "service-account.key") }
