//go:build cgo

package store_test

import (
	"context"
	"database/sql/driver"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	dqlite "github.com/canonical/go-dqlite/v3/driver"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cairn-os/cairn/pkg/store"
	"github.com/cairn-os/cairn/pkg/store/member"
)

// faults wraps dqlite's connections: fail decides for each statement that
// would write whether it fails instead, or after it was executed.
type faults struct {
	driver.Connector
	fail func(query string) (err error, executed bool)
}

func (f *faults) Connect(ctx context.Context) (driver.Conn, error) {
	c, err := f.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	return &faultyConn{c.(*dqlite.Conn), f}, nil
}

type faultyConn struct {
	*dqlite.Conn
	f *faults
}

func (c *faultyConn) PrepareContext(ctx context.Context, query string) (driver.Stmt, error) {
	st, err := c.Conn.PrepareContext(ctx, query)
	if err != nil {
		return nil, err
	}
	return &faultyStmt{st.(*dqlite.Stmt), query, c.f}, nil
}

type faultyStmt struct {
	*dqlite.Stmt
	query string
	f     *faults
}

func (s *faultyStmt) ExecContext(ctx context.Context, args []driver.NamedValue) (driver.Result, error) {
	err, executed := s.f.fail(s.query)
	if err != nil && !executed {
		return nil, err
	}
	res, execErr := s.Stmt.ExecContext(ctx, args)
	if err != nil {
		return nil, err
	}
	return res, execErr
}

func openFaulty(t *testing.T, fail func(string) (error, bool)) *store.Backend {
	t.Helper()
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelError}))
	m, err := member.Start(filepath.Join(t.TempDir(), "data"), log)
	if err != nil {
		t.Fatal(err)
	}
	connector, err := m.Connector()
	if err != nil {
		t.Fatal(err)
	}
	b, err := store.Open(t.Context(), store.Options{Connector: &faults{connector, fail}, Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

// createMany creates n keys at once and returns how many succeeded.
func createMany(t *testing.T, b *store.Backend, n int, onError func(error)) int64 {
	var ok atomic.Int64
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			if _, err := b.Create(t.Context(), fmt.Sprintf("/t/%03d", i), []byte("1"), 0); err != nil {
				onError(err)
				return
			}
			ok.Add(1)
		})
	}
	wg.Wait()
	return ok.Load()
}

// TestBusyIsRepeated lets some statements meet a checkpoint.
func TestBusyIsRepeated(t *testing.T) {
	var n atomic.Int64
	b := openFaulty(t, func(query string) (error, bool) {
		if query != "ROLLBACK" && n.Add(1)%11 == 0 {
			return dqlite.Error{Code: dqlite.ErrBusy, Message: "checkpoint in progress"}, false
		}
		return nil, false
	})
	if got := createMany(t, b, 200, func(err error) { t.Error(err) }); got != 200 {
		t.Errorf("%d of 200 writes succeeded while busy at times", got)
	}
	rev, count, err := b.Count(t.Context(), "/t/", "/t0", 0)
	if err != nil || count != 200 || rev != 201 {
		t.Errorf("count = %d at %d, %v; want 200 at 201", count, rev, err)
	}
}

// TestBatchFallsBack lets every shared transaction fail at its commit: each
// write then stands for itself.
func TestBatchFallsBack(t *testing.T) {
	var failed atomic.Int64
	var open atomic.Bool
	b := openFaulty(t, func(query string) (error, bool) {
		if query == "COMMIT" && open.Load() {
			failed.Add(1)
			return dqlite.Error{Code: 1, Message: "injected"}, false
		}
		return nil, false
	})
	open.Store(true)
	if got := createMany(t, b, 100, func(err error) { t.Error(err) }); got != 100 {
		t.Errorf("%d of 100 writes succeeded", got)
	}
	if failed.Load() == 0 {
		t.Error("no transaction was shared: the test did not test")
	}
	open.Store(false)
}

// TestLostAnswer breaks connections after the commit was executed: the caller
// is told that the outcome is unknown, the row appears once, and watches see
// it.
func TestLostAnswer(t *testing.T) {
	var lose atomic.Bool
	b := openFaulty(t, func(query string) (error, bool) {
		if lose.Load() && query != "ROLLBACK" && query != "BEGIN IMMEDIATE" {
			lose.Store(false)
			return &net.OpError{Op: "read", Err: net.ErrClosed}, true
		}
		return nil, false
	})
	watch := b.Watch(t.Context(), "/t/", "/t0", 0)
	lose.Store(true)
	if _, err := b.Create(t.Context(), "/t/lost", []byte("1"), 0); status.Code(err) != codes.Unavailable {
		t.Errorf("create whose answer is lost: %v; want Unavailable", err)
	}
	if _, err := b.Create(t.Context(), "/t/next", []byte("1"), 0); err != nil {
		t.Fatal(err)
	}
	var seen []string
	for len(seen) < 2 {
		for _, e := range <-watch.Events {
			seen = append(seen, e.KV.Key)
		}
	}
	if seen[0] != "/t/lost" || seen[1] != "/t/next" {
		t.Errorf("watch saw %q; want /t/lost, then /t/next", seen)
	}
	rev, kvs, err := b.List(t.Context(), "/t/", "/t0", 0, 0, true)
	if err != nil || len(kvs) != 2 || rev != 3 {
		t.Errorf("list = %d keys at %d, %v; want 2 at 3", len(kvs), rev, err)
	}
}
