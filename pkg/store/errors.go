package store

import (
	"context"
	"database/sql/driver"
	"errors"
	"time"

	dqlite "github.com/canonical/go-dqlite/v3/driver"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Primary result codes of SQLite (https://sqlite.org/rescode.html); extended
// ones keep them in the low byte.
const (
	sqliteBusy   = 5
	sqliteIOErr  = 10
	sqliteFull   = 13
	sqliteTooBig = 18
)

func resultCode(err error) (int, bool) {
	var e dqlite.Error
	if errors.As(err, &e) {
		return e.Code & 0xff, true
	}
	return 0, false
}

// isBusy reports an error that says: nothing was written, try again. dqlite
// answers so while it takes a checkpoint.
func isBusy(err error) bool {
	code, ok := resultCode(err)
	return ok && code == sqliteBusy
}

// whileBusy repeats what fails because the database is busy, with growing
// pauses, for at most limit. again says which errors mean that nothing was
// done; it ends early with ctx's error.
func whileBusy(ctx context.Context, limit time.Duration, again func(error) bool, do func() error) error {
	deadline := time.Now().Add(limit)
	for wait := busyFirst; ; wait = min(2*wait, busyMost) {
		err := do()
		if err == nil || !again(err) || time.Now().After(deadline) {
			return err
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-timer.C:
		}
	}
}

// isLost reports that the connection is of no more use. What was sent on it
// last may or may not have been committed. dqlite answers SQLITE_IOERR when
// the leader could not store an entry, which followers may have by then
// (appendLeaderCb in raft/replication.c), and when it lost leadership.
func isLost(err error) bool {
	code, answered := resultCode(err)
	return !answered || code == sqliteIOErr || errors.Is(err, driver.ErrBadConn)
}

// toEtcd maps an error of the database to what an etcd client expects. Codes
// of gRPC matter more than texts: the apiserver retries on Unavailable.
func toEtcd(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return status.FromContextError(err).Err()
	}
	code, answered := resultCode(err)
	switch {
	case !answered || code == sqliteIOErr:
		return rpctypes.ErrGRPCTimeoutDueToLeaderFail
	case code == sqliteFull:
		return rpctypes.ErrGRPCNoSpace
	case code == sqliteTooBig:
		return rpctypes.ErrGRPCRequestTooLarge
	default:
		return status.Error(codes.Unavailable, "store: "+err.Error())
	}
}
