package external

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5/pgconn"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Errors of MySQL and MariaDB that concern the request and not the server.
const (
	mysqlTooBigPacket  = 1153
	mysqlDataTooLong   = 1406
	mysqlWrongString   = 1366
	mysqlCannotConvert = 3854
)

// outages tells the log once when the database is lost and when it is back.
type outages struct {
	log  *slog.Logger
	name string

	mu   sync.Mutex
	lost bool // guarded by mu
}

func (o *outages) note(cause string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case cause != "" && !o.lost:
		o.log.Error("store: the datastore does not answer; requests fail until it does", "datastore", o.name, "error", cause)
	case cause == "" && o.lost:
		o.log.Info("store: the datastore answers again", "datastore", o.name)
	}
	o.lost = cause != ""
}

// toEtcd maps an error of the database to what an etcd client expects: what the
// server says about the request itself is the client's fault, all else is
// Unavailable, upon which an apiserver tries again.
func (b *backend) toEtcd(err error) error {
	if err == nil {
		b.outages.note("")
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return status.FromContextError(err).Err()
	}
	text := b.endpoint.short(err)
	var pg *pgconn.PgError
	var my *mysql.MySQLError
	switch {
	case errors.As(err, &pg) && strings.HasPrefix(pg.Code, "22"): // data exception
		return status.Error(codes.InvalidArgument, "store: "+text)
	case errors.As(err, &pg) && (pg.Code == "53100" || pg.Code == "54000"), errors.As(err, &my) && my.Number == 1114:
		return rpctypes.ErrGRPCNoSpace
	case errors.As(err, &my) && (my.Number == mysqlDataTooLong || my.Number == mysqlWrongString || my.Number == mysqlCannotConvert):
		return status.Error(codes.InvalidArgument, "store: "+text)
	case errors.As(err, &my) && my.Number == mysqlTooBigPacket, errors.Is(err, mysql.ErrPktTooLarge):
		return rpctypes.ErrGRPCRequestTooLarge
	}
	b.outages.note(text)
	return status.Error(codes.Unavailable, "store: "+text)
}
