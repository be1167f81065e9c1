package config

import (
	"net/url"
	"regexp"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Datastore names where a server keeps Kubernetes' state when that is not the
// machine's own store. The keys are k3s's --datastore-endpoint, --datastore-cafile,
// --datastore-certfile and --datastore-keyfile.
type Datastore struct {
	// Endpoint is https://HOST:2379,... of an etcd cluster, postgres://USER:PASSWORD@HOST:PORT/DATABASE, or
	// mysql://USER:PASSWORD@tcp(HOST:PORT)/DATABASE. Secret, for it holds the password.
	Endpoint string `yaml:"endpoint,omitempty" check:"endpoint" secret:""`
	// CAFile is a PEM file: who signed the datastore's certificate. Empty: the authorities that the system knows.
	CAFile string `yaml:"ca_file,omitempty" check:"path"`
	// CertFile and KeyFile are PEM files with which the machine shows itself to the datastore.
	CertFile string `yaml:"cert_file,omitempty" check:"path"`
	KeyFile  string `yaml:"key_file,omitempty" check:"path"`
}

// DatastoreKind says which process talks to the datastore.
type DatastoreKind int

// Own is the store on the machine, Etcd a cluster that the apiserver asks itself, SQL a database that the store process
// serves as if it were etcd.
const (
	Own DatastoreKind = iota
	Etcd
	SQL
)

// Kind of an endpoint that has been checked.
func (d Datastore) Kind() DatastoreKind {
	switch {
	case d.Endpoint == "":
		return Own
	case strings.HasPrefix(d.Endpoint, "http"):
		return Etcd
	}
	return SQL
}

// EtcdServers are the endpoints of an etcd cluster.
func (d Datastore) EtcdServers() []string {
	if d.Kind() != Etcd {
		return nil
	}
	servers := strings.Split(d.Endpoint, ",")
	for i := range servers {
		servers[i] = strings.TrimSuffix(strings.TrimSpace(servers[i]), "/")
	}
	return servers
}

// mysqlTail is the end of a data source name: the user before it, and his password, may hold any sign.
var mysqlTail = regexp.MustCompile(`(^|@)(tcp|unix)\([^()]+\)/[^/]*$`)

// endpoint checks the form. Its words never quote the value.
func endpoint(v string) string {
	scheme, rest, _ := strings.Cut(v, "://")
	switch scheme {
	case "http", "https":
		for _, one := range strings.Split(v, ",") {
			u, err := url.Parse(strings.TrimSpace(one))
			if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.Port() == "" ||
				u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" {
				return "want https://HOST:2379 of each member of the etcd cluster, separated by commas, and nothing else"
			}
		}
		return ""
	case "postgres", "postgresql":
		u, err := url.Parse(v)
		return unless(err == nil && (u.Hostname() != "" || u.Query().Get("host") != ""),
			"want postgres://USER:PASSWORD@HOST:5432/DATABASE; write signs of the password as %XX")
	case "mysql":
		return unless(mysqlTail.MatchString(rest), "want mysql://USER:PASSWORD@tcp(HOST:3306)/DATABASE")
	}
	return "want an endpoint of etcd (https://), PostgreSQL (postgres://), or MySQL or MariaDB (mysql://)"
}

func wholeDatastore(r *reader, n *yaml.Node, path string) {
	cert, key := get(n, "cert_file"), get(n, "key_file")
	switch {
	case cert != nil && key == nil:
		r.problem(cert, join(path, "cert_file"), "want key_file as well, the key of the certificate")
	case key != nil && cert == nil:
		r.problem(key, join(path, "key_file"), "want cert_file as well, the certificate of the key")
	}
}
