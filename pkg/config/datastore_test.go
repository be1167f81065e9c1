package config

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestDatastore(t *testing.T) {
	for _, tt := range []struct {
		endpoint string
		kind     DatastoreKind
		servers  []string
	}{
		{"", Own, nil},
		{"https://a:2379", Etcd, []string{"https://a:2379"}},
		{"https://a:2379,https://[2001:db8::1]:2379/", Etcd, []string{"https://a:2379", "https://[2001:db8::1]:2379"}},
		{"http://127.0.0.1:2379", Etcd, []string{"http://127.0.0.1:2379"}},
		{"postgres://u:p%40@db:5432/shop?sslmode=verify-full", SQL, nil},
		{"postgresql://u@db/shop", SQL, nil},
		{"postgres:///shop?host=/run/postgresql&user=u", SQL, nil},
		{"mysql://u:p@/)(@tcp(db:3306)/shop?tls=true", SQL, nil},
		{"mysql://u@unix(/run/mysqld/mysqld.sock)/", SQL, nil},
	} {
		if message := endpoint(tt.endpoint); message != "" && tt.endpoint != "" {
			t.Errorf("endpoint(%q) = %q; want no problem", tt.endpoint, message)
		}
		d := Datastore{Endpoint: tt.endpoint}
		if d.Kind() != tt.kind {
			t.Errorf("kind of %q = %v; want %v", tt.endpoint, d.Kind(), tt.kind)
		}
		if diff := cmp.Diff(tt.servers, d.EtcdServers()); diff != "" {
			t.Errorf("servers of %q: %s", tt.endpoint, diff)
		}
	}
}

// TestBadDatastore wants each problem with its place, and no password in any.
func TestBadDatastore(t *testing.T) {
	const (
		other    = "f:2: cairn.datastore.endpoint: want an endpoint of etcd (https://), PostgreSQL (postgres://), or MySQL or MariaDB (mysql://)"
		etcd     = "f:2: cairn.datastore.endpoint: want https://HOST:2379 of each member of the etcd cluster, separated by commas, and nothing else"
		postgres = "f:2: cairn.datastore.endpoint: want postgres://USER:PASSWORD@HOST:5432/DATABASE; write signs of the password as %XX"
		mysql    = "f:2: cairn.datastore.endpoint: want mysql://USER:PASSWORD@tcp(HOST:3306)/DATABASE"
	)
	for _, tt := range []struct{ values, want string }{
		{"endpoint: ''", other},
		{"endpoint: 'u:hunter2@db'", other},
		{"endpoint: 'sqlite:///hunter2'", other},
		{"endpoint: 'nats://u:hunter2@db'", other},
		{"endpoint: 'https://a'", etcd},
		{"endpoint: 'https://a:2379,b:2379'", etcd},
		{"endpoint: 'https://u:hunter2@a:2379'", etcd},
		{"endpoint: 'https://a:2379/prefix'", etcd},
		{"endpoint: 'https://a:2379,postgres://u:hunter2@db/x'", etcd},
		{"endpoint: 'postgres://u:hunter2%zz@db/x'", postgres},
		{"endpoint: 'postgres://u:hunter2/@db/x'", postgres},
		{"endpoint: 'postgres:///x'", postgres},
		{"endpoint: 'mysql://u:hunter2@db:3306/x'", mysql},
		{"endpoint: 'mysql://u:hunter2@tcp(db:3306)'", mysql},
		{"endpont: 'postgres://u:hunter2@db/x'", "f:2: cairn.datastore.endpont: unknown key; did you mean endpoint?"},
		{"endpoint: [hunter2]", "f:2: cairn.datastore.endpoint: want text, got a list"},
		{"ca_file: 'ca.pem'", `f:2: cairn.datastore.ca_file: want an absolute path without . and .., got "ca.pem"`},
		{"cert_file: '/cert.pem'", "f:2: cairn.datastore.cert_file: want key_file as well, the key of the certificate"},
		{"key_file: '/key.pem'", "f:2: cairn.datastore.key_file: want cert_file as well, the certificate of the key"},
	} {
		_, err := Parse("f", []byte("cairn:\n  datastore: {"+tt.values+"}\n"))
		if err == nil || err.Error() != tt.want {
			t.Errorf("%s: error = %v; want %s", tt.values, err, tt.want)
		}
		if err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("a secret in %v", err)
		}
	}
}
