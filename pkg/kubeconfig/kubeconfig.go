// Package kubeconfig writes the client configurations of a server's own components and of its administrator.
package kubeconfig

import (
	"fmt"
	"os"
	"path/filepath"

	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"

	"github.com/cairn-os/cairn/pkg/atomicfile"
)

// Admin is where a server's administrator finds the configuration.
const Admin = "/etc/cairn/kubeconfig"

// name is that of the only cluster and context of a file.
const name = "cairn"

// Client says who connects where. Files are paths of PEM files; a pair file holds the certificate and its key.
type Client struct {
	Server   string // URL
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

func (c Client) write(path string, cluster *api.Cluster, user *api.AuthInfo) error {
	data, err := clientcmd.Write(api.Config{
		Clusters:       map[string]*api.Cluster{name: cluster},
		AuthInfos:      map[string]*api.AuthInfo{c.User: user},
		Contexts:       map[string]*api.Context{name: {Cluster: name, AuthInfo: c.User}},
		CurrentContext: name,
	})
	if err != nil {
		return fmt.Errorf("encode kubeconfig %s: %w", path, err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("write kubeconfig: %w", err)
	}
	if err := atomicfile.Write(path, data, 0o600); err != nil {
		return fmt.Errorf("write kubeconfig: %w", err)
	}
	return nil
}
