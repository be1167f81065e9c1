package external

import (
	"context"
	"crypto/tls"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
)

const (
	// probeTimeout bounds one attempt to reach the database.
	probeTimeout = 10 * time.Second
	// Pauses between attempts double from the first to the last; what is said
	// twice in a row is logged again after repeatAfter.
	firstPause, lastPause = time.Second, 30 * time.Second
	repeatAfter           = 5 * time.Minute
)

// await returns when the database can be used, creating it if it must and may.
// Until then it says what is wrong, by the log and by say, and tries again: a
// database that boots slower than this machine, or a password that its
// administrator is about to set, needs no restart. It ends early with ctx only.
func (e *endpoint) await(ctx context.Context, log *slog.Logger, say func(string)) error {
	pause, said, at := firstPause, "", time.Time{}
	for {
		err := e.probe(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if message := err.Error(); message != said || time.Since(at) > repeatAfter {
			log.Error("store: waiting for the datastore", "error", message)
			say(message)
			said, at = message, time.Now()
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
		pause = min(2*pause, lastPause)
	}
}

// probe connects once and returns what is wrong in words for the owner of the
// machine, without the password.
func (e *endpoint) probe(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	err := e.ask(ctx, e.database)
	if e.lacksDatabase(err) {
		if cause := e.createDatabase(ctx); cause != nil {
			return fmt.Errorf("%s: database %q does not exist, and user %q cannot create it: %s; create it, or correct the endpoint",
				e, e.database, e.user, e.short(cause))
		}
		err = e.ask(ctx, e.database)
	}
	if err != nil {
		return e.explain(ctx, err)
	}
	return nil
}

// open returns a database of that server; nothing is connected yet.
func (e *endpoint) open(database string) (*sql.DB, error) {
	if e.postgres != nil {
		config := e.postgres.Copy()
		config.Database = database
		return sql.OpenDB(stdlib.GetConnector(*config)), nil
	}
	config := e.mysql.Clone()
	config.DBName = database
	config.Logger = &mysql.NopLogger{}
	connector, err := mysql.NewConnector(config)
	if err != nil {
		return nil, err
	}
	return sql.OpenDB(connector), nil
}

// errReadOnly says that a server answers which takes no writes.
var errReadOnly = errors.New("read only")

// ask connects and sees whether the server takes writes.
func (e *endpoint) ask(ctx context.Context, database string) (err error) {
	db, err := e.open(database)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	question := "SELECT current_setting('transaction_read_only') = 'on'"
	if e.mysql != nil {
		question = "SELECT @@global.read_only"
	}
	var readOnly bool
	if err := db.QueryRowContext(ctx, question).Scan(&readOnly); err != nil {
		return err
	}
	if readOnly {
		return errReadOnly
	}
	return nil
}

// createDatabase creates the database, as kine would: its own attempt swallows
// the reason of a failure.
func (e *endpoint) createDatabase(ctx context.Context) (err error) {
	maintenance, statement := "postgres", `CREATE DATABASE "`+strings.ReplaceAll(e.database, `"`, `""`)+`"`
	if e.mysql != nil {
		maintenance, statement = "", "CREATE DATABASE IF NOT EXISTS `"+strings.ReplaceAll(e.database, "`", "``")+"`"
	}
	db, err := e.open(maintenance)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	_, err = db.ExecContext(ctx, statement)
	var pg *pgconn.PgError
	if errors.As(err, &pg) && pg.Code == "42P04" { // Another server was faster.
		return nil
	}
	return err
}

// lacksDatabase reports that the server knows no such database.
func (e *endpoint) lacksDatabase(err error) bool {
	var pg *pgconn.PgError
	var my *mysql.MySQLError
	return errors.As(err, &pg) && pg.Code == "3D000" || errors.As(err, &my) && my.Number == 1049
}

// explain puts an error of a connection into words. Codes are those of
// PostgreSQL's appendix A and of MariaDB's error list.
func (e *endpoint) explain(ctx context.Context, err error) error {
	var pg *pgconn.PgError
	var my *mysql.MySQLError
	var dial *net.OpError
	var name *net.DNSError
	var untrusted *tls.CertificateVerificationError
	answer := func(format string, args ...any) error {
		return fmt.Errorf("%s: "+format, append([]any{e}, args...)...)
	}
	switch {
	case errors.Is(err, errReadOnly):
		return answer("the server is read only; the endpoint must name the primary")
	case errors.As(err, &pg) && (pg.Code == "28P01" || pg.Code == "28000"), errors.As(err, &my) && (my.Number == 1045 || my.Number == 1698):
		return answer("the server refuses user %q: %s; check user and password, and that the server lets this machine in", e.user, e.short(err))
	case errors.As(err, &pg) && pg.Code == "42501", errors.As(err, &my) && my.Number == 1044:
		return answer("user %q has no right to database %q: %s", e.user, e.database, e.short(err))
	case errors.As(err, &pg), errors.As(err, &my):
		return answer("%s", e.short(err))
	case errors.As(err, &untrusted):
		return answer("the server's certificate is not trusted: %v; check ca_file, and that the endpoint names the host as the certificate does", untrusted.Err)
	case errors.As(err, &name):
		return answer("the name %s cannot be resolved; check the endpoint and this machine's name servers", name.Name)
	case errors.As(err, &dial) && dial.Op == "dial" && !dial.Timeout():
		return answer("not reachable: %v; check that the server runs and that no firewall is in between", dial.Err)
	case errors.Is(err, context.DeadlineExceeded), ctx.Err() != nil, errors.As(err, &dial) && dial.Timeout():
		return answer("no answer within %s; check the address and that no firewall is in between", probeTimeout)
	}
	return answer("%s", e.short(err))
}

// short is an error in one line, without what repeats the endpoint.
func (e *endpoint) short(err error) string {
	var pg *pgconn.PgError
	var my *mysql.MySQLError
	switch {
	case errors.As(err, &pg):
		return e.redact(fmt.Sprintf("%s (%s)", pg.Message, pg.Code))
	case errors.As(err, &my):
		return e.redact(fmt.Sprintf("%s (%d)", my.Message, my.Number))
	}
	lines := strings.FieldsFunc(err.Error(), func(r rune) bool { return r == '\n' || r == '\t' })
	return e.redact(strings.Join(lines, " "))
}
