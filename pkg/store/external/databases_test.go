package external

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cairn-os/cairn/pkg/build/cache"
	"github.com/cairn-os/cairn/pkg/build/debian"
)

// password is the database user's, in both databases. It needs escaping in a
// URL, and no message may hold it in either spelling.
const (
	user            = "shop"
	password        = "hun:ter/2@x"
	passwordEscaped = "hun%3Ater%2F2%40x"
	nobody          = 65534
)

// product is a database server as Debian packages it, unpacked for the test
// alone: nothing is installed on the machine.
type product struct {
	name     string
	packages []string // see debian.Archive.Resolve: a minus leaves one out
	prepare  func(t *testing.T, d *database)
	argv     []string // the server; %d is the port
	endpoint string   // %s is the password and the address
}

var products = []product{
	{
		name:     "postgresql",
		packages: []string{"postgresql-17", "base-files", "dash", "coreutils", "libllvm19-", "postgresql-common-", "ssl-cert-", "locales-"},
		prepare:  preparePostgres,
		argv: []string{
			"/usr/lib/postgresql/17/bin/postgres", "-D", "/home/data", "-p", "%d", "-k", "/home", "-c", "listen_addresses=127.0.0.1",
			"-c", "dynamic_shared_memory_type=mmap", "-c", "fsync=off",
			"-c", "ssl=on", "-c", "ssl_cert_file=/home/cert.pem", "-c", "ssl_key_file=/home/key.pem",
		},
		endpoint: "postgres://" + user + ":%s@%s/shop",
	},
	{
		name:     "mariadb",
		packages: []string{"mariadb-server-core", "base-files", "dash"},
		prepare:  prepareMariaDB,
		argv: []string{
			"/usr/sbin/mariadbd", "--no-defaults", "--datadir=/home/data", "--basedir=/usr", "--lc-messages-dir=/usr/share/mariadb", "--port=%d",
			"--bind-address=127.0.0.1", "--socket=/home/sock", "--pid-file=/home/pid", "--init-file=/home/init.sql", "--innodb-flush-log-at-trx-commit=2",
			"--ssl-cert=/home/cert.pem", "--ssl-key=/home/key.pem",
		},
		endpoint: "mysql://" + user + ":%s@tcp(%s)/shop",
	},
}

// database is a server of the test's own on a loopback port.
type database struct {
	product
	tree    string
	dir     string // the server's /home
	address string
	cmd     *exec.Cmd
	ended   chan error
}

// serve starts a fresh server for the test.
func (p product) serve(t *testing.T) *database {
	t.Helper()
	if testing.Short() {
		t.Skip("short: starts a database server")
	}
	if os.Getuid() != 0 {
		t.Skip("not root: the database server runs as nobody in a tree of its own")
	}
	for _, tool := range []string{"apt-get", "unshare", "chroot"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("cannot unpack and start a database server here: %v", err)
		}
	}
	c, err := cache.Open("")
	if err != nil {
		t.Fatal(err)
	}
	arch, err := debian.MachineArch()
	if err != nil {
		t.Fatal(err)
	}
	a, err := debian.Open(t.Context(), c, arch)
	if err != nil {
		t.Fatal(err)
	}
	tree, _, err := a.Tree(t.Context(), p.packages...)
	if err != nil {
		t.Fatal(err)
	}
	d := &database{product: p, tree: tree, dir: t.TempDir(), address: freePort(t)}
	d.write(t, "etc/passwd", "nobody:x:65534:65534::/:/bin/sh\n")
	d.write(t, "etc/group", "nogroup:x:65534:\n")
	if err := os.Mkdir(filepath.Join(d.dir, "data"), 0o700); err != nil {
		t.Fatal(err)
	}
	d.certify(t)
	p.prepare(t, d)
	d.start(t)
	return d
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func (d *database) write(t *testing.T, name, text string) {
	t.Helper()
	path := filepath.Join(d.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// command is a program of the tree, run there as nobody, with the directory of
// the test as /home. The mounts are the process's own and end with it.
func (d *database) command(argv ...string) *exec.Cmd {
	const script = `mount --bind "$2" "$1/home" && mount --bind "$2/etc" "$1/etc" && mount --bind /dev "$1/dev" || exit 70
tree=$1; shift 2; chroot --userspec=65534:65534 "$tree" "$@"; exit $?`
	// A PID namespace, whose first process stays root: one that becomes another
	// user no longer dies with its parent, and the server would outlive the test.
	cmd := exec.Command("unshare", append([]string{"--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "sh", "-c", script, "sh", d.tree, d.dir}, argv...)...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

func (d *database) run(t *testing.T, input string, argv ...string) {
	t.Helper()
	if err := chown(d.dir); err != nil {
		t.Fatal(err)
	}
	cmd := d.command(argv...)
	cmd.Stdin = strings.NewReader(input)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", argv[0], err, out)
	}
}

func chown(dir string) error {
	return filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Chown(path, nobody, nobody)
	})
}

// preparePostgres gives the user a database of its own and no other right.
func preparePostgres(t *testing.T, d *database) {
	d.write(t, "pw", password)
	d.run(t, "", "/usr/lib/postgresql/17/bin/initdb", "-D", "/home/data", "-U", "postgres", "--auth=scram-sha-256", "--pwfile=/home/pw",
		"--no-sync", "-E", "UTF8", "--locale=C")
	sql := "CREATE ROLE " + user + " LOGIN PASSWORD '" + password + "';\nCREATE DATABASE shop OWNER " + user + ";\n"
	d.run(t, sql, "/usr/lib/postgresql/17/bin/postgres", "--single", "-D", "/home/data", "postgres")
}

// prepareMariaDB gives the user the rights that the README names, and DROP, which
// the tests need to begin with an empty table.
func prepareMariaDB(t *testing.T, d *database) {
	script := "CREATE DATABASE mysql;\nUSE mysql;\n"
	for _, name := range []string{"mariadb_system_tables.sql", "mariadb_performance_tables.sql", "mariadb_system_tables_data.sql"} {
		text, err := os.ReadFile(filepath.Join(d.tree, "usr/share/mariadb", name))
		if err != nil {
			t.Fatal(err)
		}
		script += string(text) + "\n"
	}
	d.run(t, script, "/usr/sbin/mariadbd", "--no-defaults", "--bootstrap", "--datadir=/home/data", "--basedir=/usr", "--lc-messages-dir=/usr/share/mariadb",
		"--innodb-log-file-size=8M", "--skip-networking")
	d.write(t, "init.sql", "CREATE DATABASE IF NOT EXISTS shop;\n"+
		"CREATE USER IF NOT EXISTS '"+user+"'@'%' IDENTIFIED BY '"+password+"';\nGRANT SELECT, INSERT, UPDATE, DELETE, CREATE, INDEX, DROP ON shop.* TO '"+user+"'@'%';\n")
}

// start starts the server, which may have been stopped, and waits until it
// takes connections.
func (d *database) start(t *testing.T) {
	t.Helper()
	if err := chown(d.dir); err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(d.address)
	var argv []string
	for _, a := range d.argv {
		argv = append(argv, strings.ReplaceAll(a, "%d", port))
	}
	var output bytes.Buffer
	cmd := d.command(argv...)
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	d.cmd, d.ended = cmd, make(chan error, 1)
	go func() { d.ended <- cmd.Wait() }()
	t.Cleanup(func() {
		if d.cmd == cmd {
			d.stop(t, syscall.SIGKILL)
		}
	})
	e, err := Config{Endpoint: d.url()}.parse()
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		err := e.probe(t.Context())
		if err == nil {
			return
		}
		if len(d.ended) > 0 || time.Now().After(deadline) {
			d.stop(t, syscall.SIGKILL)
			t.Fatalf("%s does not start: %v\n%s", d.name, err, output.String())
		}
	}
}

// stop ends the server: by SIGKILL with all its processes, else as its
// administrator would.
func (d *database) stop(t *testing.T, signal syscall.Signal) {
	if d.cmd == nil {
		return
	}
	if err := d.cmd.Process.Signal(signal); err != nil && len(d.ended) == 0 {
		t.Error(err)
	}
	<-d.ended
	d.cmd = nil
}

func (d *database) url() string { return d.with(password, d.address) }

// with is the endpoint with another password or address.
func (d *database) with(password, address string) string {
	if d.name == "postgresql" {
		password = strings.NewReplacer(":", "%3A", "/", "%2F", "@", "%40").Replace(password)
	}
	return fmt.Sprintf(d.endpoint, password, address)
}

// sql runs statements as the database's user.
func (d *database) sql(t *testing.T, statements ...string) {
	t.Helper()
	e, err := Config{Endpoint: d.url()}.parse()
	if err != nil {
		t.Fatal(err)
	}
	db, err := e.open(e.database)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for _, s := range statements {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		_, err := db.ExecContext(ctx, s)
		cancel()
		if err != nil {
			t.Fatalf("%s: %v", s, err)
		}
	}
}
