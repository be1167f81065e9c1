package external

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/sirupsen/logrus"
)

// TestParse reads endpoints as k3s' users write them.
func TestParse(t *testing.T) {
	const (
		plain      = "may be unencrypted"
		unverified = "is not verified"
	)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, []byte(authority), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		config                        Config
		name, address, user, database string
		warning                       string
	}{
		{Config{Endpoint: "postgres://u:hunter2@db.shop:5433/K8S"}, "postgres at db.shop:5433", "db.shop:5433", "u", "k8s", plain},
		{Config{Endpoint: "postgresql://u:hunter2@db.shop"}, "postgres at db.shop:5432", "db.shop:5432", "u", "kubernetes", plain},
		{Config{Endpoint: "postgres://u:hunter2@db.shop/x?sslmode=disable"}, "postgres at db.shop:5432", "db.shop:5432", "u", "x", plain},
		{Config{Endpoint: "postgres://u:hunter2@db.shop/x?sslmode=require"}, "postgres at db.shop:5432", "db.shop:5432", "u", "x", unverified},
		{Config{Endpoint: "postgres://u:hunter2@db.shop/x?sslmode=verify-full"}, "postgres at db.shop:5432", "db.shop:5432", "u", "x", ""},
		{Config{Endpoint: "postgres://u:hunter2@db.shop/x", CAFile: ca}, "postgres at db.shop:5432", "db.shop:5432", "u", "x", ""},
		{Config{Endpoint: "postgres://u:hunter2@127.0.0.1/x"}, "postgres at 127.0.0.1:5432", "127.0.0.1:5432", "u", "x", ""},
		{Config{Endpoint: "postgres://u:hunter2@[::1]:1/x"}, "postgres at [::1]:1", "[::1]:1", "u", "x", ""},
		{Config{Endpoint: "postgres://u:hunter2@/x?host=/run/postgresql"}, "postgres at /run/postgresql", "/run/postgresql", "u", "x", ""},
		{Config{Endpoint: "mysql://u:hunter2@tcp(db.shop:3307)/x"}, "mysql at db.shop:3307", "db.shop:3307", "u", "x", plain},
		{Config{Endpoint: "mysql://u:hunter2@tcp(db.shop)/"}, "mysql at db.shop:3306", "db.shop:3306", "u", "kubernetes", plain},
		{Config{Endpoint: "mysql://u:hunter2@tcp(db.shop)/x?tls=skip-verify"}, "mysql at db.shop:3306", "db.shop:3306", "u", "x", unverified},
		{Config{Endpoint: "mysql://u:hunter2@tcp(db.shop)/x?tls=preferred"}, "mysql at db.shop:3306", "db.shop:3306", "u", "x", plain},
		{Config{Endpoint: "mysql://u:hunter2@tcp(db.shop)/x?tls=true"}, "mysql at db.shop:3306", "db.shop:3306", "u", "x", ""},
		{Config{Endpoint: "mysql://u:hunter2@tcp(db.shop)/x", CAFile: ca}, "mysql at db.shop:3306", "db.shop:3306", "u", "x", ""},
		{Config{Endpoint: "mysql://u:hunter2@unix(/run/mysqld/mysqld.sock)/x"}, "mysql at /run/mysqld/mysqld.sock", "/run/mysqld/mysqld.sock", "u", "x", ""},
	} {
		e, err := tt.config.parse()
		if err != nil {
			t.Errorf("parse(%s): %v", tt.config.Endpoint, err)
			continue
		}
		want := []string{tt.name, tt.address, tt.user, tt.database}
		if diff := cmp.Diff(want, []string{e.String(), e.address, e.user, e.database}); diff != "" {
			t.Errorf("parse(%s): %s", tt.config.Endpoint, diff)
		}
		if tt.warning == "" && e.warning != "" || !strings.Contains(e.warning, tt.warning) {
			t.Errorf("parse(%s) warns %q; want %q", tt.config.Endpoint, e.warning, tt.warning)
		}
	}
}

// TestParseBad wants errors that do not quote the endpoint.
func TestParseBad(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "none.pem")
	for _, tt := range []struct {
		config Config
		want   string
	}{
		{Config{Endpoint: "hunter2"}, errEndpoint.Error()},
		{Config{Endpoint: "sqlite:///hunter2"}, errEndpoint.Error()},
		{Config{Endpoint: "postgres://u:hunter2%zz@db/x"}, errEndpoint.Error()},
		{Config{Endpoint: "postgres://u:hunter2@db:port/x"}, errEndpoint.Error()},
		{Config{Endpoint: "postgres://u:hunter2@db/x?sslmode=maybe"}, errEndpoint.Error()},
		{Config{Endpoint: "mysql://u:hunter2@db:3306"}, errEndpoint.Error()},
		{Config{Endpoint: "mysql://u:hunter2@tcp(db:3306)/x", CertFile: missing}, "cert_file and key_file belong together; only one of them is given"},
		{Config{Endpoint: "postgres://u:hunter2@db/x", CAFile: missing}, "certificate file " + missing + " cannot be used; see that it exists and holds PEM"},
		{Config{Endpoint: "mysql://u:hunter2@tcp(db:3306)/x", CAFile: missing}, "certificate files: open " + missing + ": no such file or directory"},
	} {
		_, err := tt.config.parse()
		if err == nil || err.Error() != tt.want {
			t.Errorf("parse(%s) = %v; want %s", tt.config.Endpoint, err, tt.want)
			continue
		}
		noSecrets(t, err.Error())
		if err := Run(t.Context(), tt.config, "/nonexistent", slog.New(slog.DiscardHandler)); err == nil {
			t.Errorf("Run with %s: no error", tt.config.Endpoint)
		} else {
			noSecrets(t, err.Error())
		}
	}
}

// TestBridge sees to it that what kine logs is passed on without the password,
// and that what it would die of ends a goroutine only.
func TestBridge(t *testing.T) {
	e, err := Config{Endpoint: "postgres://u:" + passwordEscaped + "@db/x"}.parse()
	if err != nil {
		t.Fatal(err)
	}
	b := &buffer{}
	detach := Attach(slog.New(slog.NewTextHandler(b, nil)), e.redact)
	defer detach()
	logrus.Errorf("cannot use %q or %q", password, "u:"+passwordEscaped+"@db/x")
	logrus.Errorf("error in txn %v", "everything")
	logrus.Infof("COMPACT what nobody needs")
	if isolate(func() { logrus.Fatalf("Transaction commit failed: %v", context.Canceled) }) {
		t.Error("isolate reports that a fatal end was none")
	}
	if !isolate(func() {}) {
		t.Error("isolate reports a fatal end where there was none")
	}
	noSecrets(t, b.String())
	if n := strings.Count(b.String(), "\n"); n != 2 || !strings.Contains(b.String(), "commit failed") || !strings.Contains(b.String(), "***") {
		t.Errorf("log = %q; want one line of two secrets and one of a failed commit", b.String())
	}
}

// authority is a certificate of no use but to be parsed; its key was thrown away.
const authority = `-----BEGIN CERTIFICATE-----
MIIBcjCCARmgAwIBAgIUVtxUK2SBY3H0pkwRDmuZ+oqZ6qEwCgYIKoZIzj0EAwIw
DzENMAsGA1UEAwwEdGVzdDAeFw0yNjExMjExMjQ3NTNaFw0yNjExMjMxMjQ3NTNa
MA8xDTALBgNVBAMMBHRlc3QwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAASJpaaA
7kMo/0wQqUvPjLYw+BA1t4moBm1k6uHMcTBslO/gPMXe56Qj7+caLbx8EJWEjPke
Mb0R/3cDMYTm9odbo1MwUTAdBgNVHQ4EFgQU/Is3Llb60MyxBs0zUO+UlKQRmAww
HwYDVR0jBBgwFoAU/Is3Llb60MyxBs0zUO+UlKQRmAwwDwYDVR0TAQH/BAUwAwEB
/zAKBggqhkjOPQQDAgNHADBEAiBFPhszOXEQMLb8UGH9nffr21oEFbG32LOrebuL
vzLHWQIgKYLou//gzT9on8eW/XVyGQ7/tSxYn8BnMWqkdA0BUKY=
-----END CERTIFICATE-----
`
