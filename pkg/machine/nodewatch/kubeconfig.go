package nodewatch

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"

	"go.yaml.in/yaml/v3"
)

// kubeconfig is the part of a kubeconfig file that a client with a certificate needs. The file is ours, written by
// `cairn-kube node`, and other tools may add to it: unknown keys are no error here. It refers to files, which are renewed
// in their place.
type kubeconfig struct {
	CurrentContext string `yaml:"current-context"`
	Contexts       []struct {
		Name    string `yaml:"name"`
		Context struct {
			Cluster string `yaml:"cluster"`
			User    string `yaml:"user"`
		} `yaml:"context"`
	} `yaml:"contexts"`
	Clusters []struct {
		Name    string  `yaml:"name"`
		Cluster cluster `yaml:"cluster"`
	} `yaml:"clusters"`
	Users []struct {
		Name string `yaml:"name"`
		User user   `yaml:"user"`
	} `yaml:"users"`
}

type cluster struct {
	Server string `yaml:"server"`
	CAData string `yaml:"certificate-authority-data"`
	CA     string `yaml:"certificate-authority"`
}

type user struct {
	CertData string `yaml:"client-certificate-data"`
	Cert     string `yaml:"client-certificate"`
	KeyData  string `yaml:"client-key-data"`
	Key      string `yaml:"client-key"`
}

// endpoint is how to reach an API server.
type endpoint struct {
	server *url.URL
	tls    *tls.Config
}

// Access returns a client that the API server knows by the kubeconfig at path, and the server's address; server, unless
// it is "", is taken in the place of the file's. The client keeps no connection, so that nobody has to close it.
func Access(path, server string) (*http.Client, *url.URL, error) {
	e, err := loadKubeconfig(path)
	if err != nil {
		return nil, nil, err
	}
	if server != "" {
		if e.server, err = url.Parse(server); err != nil {
			return nil, nil, fmt.Errorf("API server: %w", err)
		}
	}
	return &http.Client{Transport: &http.Transport{TLSClientConfig: e.tls, DisableKeepAlives: true}}, e.server, nil
}

// loadKubeconfig reads the current context of the file at path. A missing file wraps fs.ErrNotExist.
func loadKubeconfig(path string) (endpoint, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return endpoint{}, fmt.Errorf("read kubeconfig: %w", err)
	}
	e, err := parseKubeconfig(data, filepath.Dir(path))
	if err != nil {
		return endpoint{}, fmt.Errorf("kubeconfig %s: %w", path, err)
	}
	return e, nil
}

// parseKubeconfig reads data with the files that it refers to, whose paths are relative to dir.
func parseKubeconfig(data []byte, dir string) (endpoint, error) {
	var k kubeconfig
	if err := yaml.Unmarshal(data, &k); err != nil {
		return endpoint{}, fmt.Errorf("parse: %w", err)
	}
	c, u, err := k.current()
	if err != nil {
		return endpoint{}, err
	}
	server, err := url.Parse(c.Server)
	if err != nil || server.Scheme != "https" || server.Host == "" {
		return endpoint{}, fmt.Errorf("server %q is no https URL", c.Server)
	}
	ca, err := material(c.CAData, c.CA, dir)
	if err != nil {
		return endpoint{}, fmt.Errorf("certificate authority: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		return endpoint{}, errors.New("certificate authority: no certificate in it")
	}
	certPEM, err := material(u.CertData, u.Cert, dir)
	if err != nil {
		return endpoint{}, fmt.Errorf("client certificate: %w", err)
	}
	keyPEM, err := material(u.KeyData, u.Key, dir)
	if err != nil {
		return endpoint{}, fmt.Errorf("client key: %w", err)
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return endpoint{}, fmt.Errorf("client certificate: %w", err)
	}
	return endpoint{server: server, tls: &tls.Config{
		RootCAs: pool, Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12,
	}}, nil
}

// current resolves current-context.
func (k kubeconfig) current() (cluster, user, error) {
	for _, ctx := range k.Contexts {
		if ctx.Name != k.CurrentContext {
			continue
		}
		for _, c := range k.Clusters {
			for _, u := range k.Users {
				if c.Name == ctx.Context.Cluster && u.Name == ctx.Context.User {
					return c.Cluster, u.User, nil
				}
			}
		}
	}
	return cluster{}, user{}, fmt.Errorf("context %q is not complete", k.CurrentContext)
}

// material is inline base64, or the content of a file, whose path may be relative to dir.
func material(inline, path, dir string) ([]byte, error) {
	switch {
	case inline != "":
		return base64.StdEncoding.DecodeString(inline)
	case filepath.IsAbs(path):
		return os.ReadFile(path)
	case path != "":
		return os.ReadFile(filepath.Join(dir, path))
	default:
		return nil, errors.New("missing")
	}
}
