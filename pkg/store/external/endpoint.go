package external

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strings"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5"
)

// defaultDatabase is kine's, for an endpoint that names none.
const defaultDatabase = "kubernetes"

// endpoint is a database as the configuration names it. Its text forms hold no
// password.
type endpoint struct {
	scheme   string // postgres or mysql
	dsn      string // what follows "://", as kine's drivers take it; a secret
	network  string // tcp or unix
	address  string // HOST:PORT, or a socket's path
	user     string
	database string
	secrets  []string // what must not appear in a message, longest first
	warning  string   // what is unsafe about the connection, or ""

	postgres *pgx.ConnConfig // one of the two is set
	mysql    *mysql.Config
}

func (e *endpoint) String() string { return e.scheme + " at " + e.address }

// errEndpoint is all that is said about an endpoint that cannot be read: the
// parsers' own words quote it, and with it the password.
var errEndpoint = errors.New("want postgres://USER:PASSWORD@HOST:PORT/DATABASE or mysql://USER:PASSWORD@tcp(HOST:PORT)/DATABASE; " +
	"in the first, write signs of the password as %XX")

// parse reads the endpoint of c. It does not connect.
func (c Config) parse() (*endpoint, error) {
	scheme, dsn, ok := strings.Cut(c.Endpoint, "://")
	if !ok {
		return nil, errEndpoint
	}
	if (c.CertFile == "") != (c.KeyFile == "") {
		return nil, errors.New("cert_file and key_file belong together; only one of them is given")
	}
	switch scheme {
	case "postgres", "postgresql":
		return c.parsePostgres(dsn)
	case "mysql":
		return c.parseMySQL(dsn)
	}
	return nil, errEndpoint
}

// parsePostgres follows kine's prepareConfig (v0.16.4, drivers/pgsql), which
// takes certificate files to mean sslmode=verify-full.
func (c Config) parsePostgres(dsn string) (*endpoint, error) {
	u, err := url.Parse("postgres://" + dsn)
	if err != nil {
		return nil, errEndpoint
	}
	if u.Path == "" || u.Path == "/" {
		u.Path = "/" + defaultDatabase
	}
	u.Path = strings.ToLower(u.Path)
	query := u.Query()
	for key, file := range map[string]string{"sslrootcert": c.CAFile, "sslcert": c.CertFile, "sslkey": c.KeyFile} {
		if file == "" || query.Has(key) {
			continue
		}
		query.Set(key, file)
		if !query.Has("sslmode") {
			query.Set("sslmode", "verify-full")
		}
	}
	u.RawQuery = query.Encode()
	config, err := pgx.ParseConfig(u.String())
	if err != nil {
		if file := missingFile(c, err); file != nil {
			return nil, file
		}
		return nil, errEndpoint
	}
	e := &endpoint{scheme: "postgres", dsn: dsn, user: config.User, database: config.Database, postgres: config, secrets: secrets(dsn, config.Password)}
	e.network, e.address = "tcp", net.JoinHostPort(config.Host, fmt.Sprint(config.Port))
	if strings.HasPrefix(config.Host, "/") {
		e.network, e.address = "unix", config.Host
	}
	plain := config.TLSConfig == nil
	for _, f := range config.Fallbacks {
		plain = plain || f.TLSConfig == nil
	}
	e.warn(plain, config.TLSConfig, "sslmode=verify-full")
	return e, nil
}

// parseMySQL follows kine's prepareConfig (v0.16.4, drivers/mysql), in which
// certificate files replace the endpoint's tls parameter.
func (c Config) parseMySQL(dsn string) (*endpoint, error) {
	config, err := mysql.ParseDSN(dsn)
	if err != nil {
		return nil, errEndpoint
	}
	files, err := c.tls().ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("certificate files: %w", err)
	}
	if files != nil {
		if host, _, err := net.SplitHostPort(config.Addr); err == nil {
			files.ServerName = host
		}
		config.TLS = files
	}
	if config.DBName == "" {
		config.DBName = defaultDatabase
	}
	e := &endpoint{
		scheme: "mysql", dsn: dsn, network: config.Net, address: config.Addr, user: config.User, database: config.DBName, mysql: config,
		secrets: secrets(dsn, config.Passwd),
	}
	e.warn(config.TLS == nil || config.AllowFallbackToPlaintext, config.TLS, "ca_file, or tls=true")
	return e, nil
}

// warn notes what is unsafe about a connection over a network.
func (e *endpoint) warn(plain bool, config *tls.Config, better string) {
	host, _, _ := net.SplitHostPort(e.address) // a socket has no host
	address, err := netip.ParseAddr(host)
	switch {
	case e.network == "unix", host == "localhost", err == nil && address.IsLoopback():
	case plain:
		e.warning = "the connection to the datastore may be unencrypted, password and secrets included; set " + better
	case config.InsecureSkipVerify && config.VerifyPeerCertificate == nil && config.VerifyConnection == nil:
		e.warning = "the datastore's certificate is not verified: whoever is in between can read and change everything; set " + better
	}
}

// secrets are the texts that give a password away: it, in the spelling of the
// endpoint as well, and the endpoint.
func secrets(dsn, password string) []string {
	all := []string{dsn}
	front := dsn
	if at := strings.LastIndexByte(dsn, '@'); at >= 0 {
		front = dsn[:at]
	}
	if _, spelled, ok := strings.Cut(front, ":"); ok && spelled != "" {
		all = append(all, spelled)
	}
	if password != "" {
		all = append(all, password)
	}
	return all
}

// redact removes secrets from a message.
func (e *endpoint) redact(text string) string {
	for _, s := range e.secrets {
		text = strings.ReplaceAll(text, s, "***")
	}
	return text
}

// missingFile names the certificate file that err is about, if it is about one.
func missingFile(c Config, err error) error {
	for _, file := range []string{c.CAFile, c.CertFile, c.KeyFile} {
		if file != "" && strings.Contains(err.Error(), file) {
			return fmt.Errorf("certificate file %s cannot be used; see that it exists and holds PEM", file)
		}
	}
	return nil
}
