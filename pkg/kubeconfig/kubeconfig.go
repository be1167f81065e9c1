// Package kubeconfig makes the client configurations of Cairn's own components and of administrators.
package kubeconfig

import (
	"crypto/tls"
	"fmt"
	"net/url"
	"os"
	"path/filepath"

	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"
	"k8s.io/client-go/util/cert"

	"github.com/cairn-os/cairn/pkg/atomicfile"
)

// Admin is where a server's administrator finds the configuration.
const Admin = "/etc/cairn/kubeconfig"

// name is that of the only cluster and context of a file.
const name = "cairn"

// Client says who connects where. Files are paths of PEM files; a pair file holds the certificate and its key.
type Client struct {
	Server   string // URL; a node's parts go through its balancer
	CAFile   string
	PairFile string
	User     string
}

// WriteReference writes at path a configuration that refers to c's files. Clients reread these files when they change,
// so a renewed certificate reaches them without a restart.
func (c Client) WriteReference(path string) error {
	return c.write(path, &api.Cluster{Server: c.Server, CertificateAuthority: c.CAFile},
		&api.AuthInfo{ClientCertificate: c.PairFile, ClientKey: c.PairFile})
}

// WriteEmbedded writes at path a configuration that holds the content of c's files, so that it can be copied to another
// machine.
func (c Client) WriteEmbedded(path string) error {
	ca, err := os.ReadFile(c.CAFile)
	if err != nil {
		return fmt.Errorf("write kubeconfig %s: %w", path, err)
	}
	certs, key, err := splitPair(c.PairFile)
	if err != nil {
		return fmt.Errorf("write kubeconfig %s: %w", path, err)
	}
	return c.write(path, &api.Cluster{Server: c.Server, CertificateAuthorityData: ca},
		&api.AuthInfo{ClientCertificateData: certs, ClientKeyData: key})
}

// Embedded is a configuration that needs no files. All but Server and User is PEM.
type Embedded struct {
	Server string // URL
	User   string // what the user is called in the file; the certificate says who it is
	CA     []byte
	Cert   []byte
	Key    []byte
}

// Bytes returns the configuration's text, with the key in it. It refuses what no client could use: a key that is not the
// certificate's, or a URL that is not of https.
func (e Embedded) Bytes() ([]byte, error) {
	if u, err := url.Parse(e.Server); err != nil || u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf("kubeconfig of %s: server %q: want a URL such as https://192.0.2.1:6443", e.User, e.Server)
	}
	if _, err := cert.ParseCertsPEM(e.CA); err != nil {
		return nil, fmt.Errorf("kubeconfig of %s: authority: %w", e.User, err)
	}
	if _, err := tls.X509KeyPair(e.Cert, e.Key); err != nil {
		return nil, fmt.Errorf("kubeconfig of %s: %w", e.User, err)
	}
	return encode(e.User, &api.Cluster{Server: e.Server, CertificateAuthorityData: e.CA},
		&api.AuthInfo{ClientCertificateData: e.Cert, ClientKeyData: e.Key})
}

func encode(who string, cluster *api.Cluster, user *api.AuthInfo) ([]byte, error) {
	data, err := clientcmd.Write(api.Config{
		Clusters:       map[string]*api.Cluster{name: cluster},
		AuthInfos:      map[string]*api.AuthInfo{who: user},
		Contexts:       map[string]*api.Context{name: {Cluster: name, AuthInfo: who}},
		CurrentContext: name,
	})
	if err != nil {
		return nil, fmt.Errorf("encode kubeconfig of %s: %w", who, err)
	}
	return data, nil
}

func (c Client) write(path string, cluster *api.Cluster, user *api.AuthInfo) error {
	data, err := encode(c.User, cluster, user)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("write kubeconfig: %w", err)
	}
	if err := atomicfile.Write(path, data, 0o600); err != nil {
		return fmt.Errorf("write kubeconfig: %w", err)
	}
	return nil
}
