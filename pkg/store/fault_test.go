//go:build cgo

package store_test

import (
	"context"
	"database/sql/driver"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

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
	// prepare, if any, decides whether a statement cannot even be prepared.
	prepare func(query string) error
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
	if c.f.prepare != nil {
		if err := c.f.prepare(query); err != nil {
			return nil, err
		}
	}
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
	return openFaults(t, filepath.Join(t.TempDir(), "data"), faults{fail: fail})
}

func openFaults(t *testing.T, dir string, f faults) *store.Backend {
	t.Helper()
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelError}))
	m, err := member.Start(member.Options{Dir: dir, Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	connector, err := m.Connector()
	if err != nil {
		t.Fatal(err)
	}
	f.Connector = connector
	b, err := store.Open(t.Context(), store.Options{Connector: &f, Logger: log})
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
			return dqlite.Error{Code: dqlite.ErrBusy, Message: "injected"}, false
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

// TestAmbiguousCommit lets the commit of every shared transaction be executed
// and answered with an error of the disk: a writer is told that the outcome is
// unknown, and never that the key existed, which it did not.
func TestAmbiguousCommit(t *testing.T) {
	var failed atomic.Int64
	b := openFaulty(t, func(query string) (error, bool) {
		if query == "COMMIT" && failed.Add(1) > 1 { // The first is the schema's.
			return dqlite.Error{Code: 10, Message: "injected"}, true
		}
		return nil, false
	})
	createMany(t, b, 100, func(err error) {
		if status.Code(err) != codes.Unavailable {
			t.Errorf("create: %v; want Unavailable", err)
		}
	})
	if failed.Load() < 2 {
		t.Error("no transaction was shared: the test did not test")
	}
}

// TestRolledBackRevision lets a compaction share a transaction that is rolled
// back with a creation: the revision that the creation had in it must not
// become the current one with the compaction, or watches pass by the row that
// gets it later.
func TestRolledBackRevision(t *testing.T) {
	gate, held, checked := make(chan struct{}), make(chan struct{}), make(chan struct{})
	var hold, armed, rolledBack atomic.Bool
	b := openFaulty(t, func(query string) (error, bool) {
		switch {
		case hold.CompareAndSwap(true, false):
			close(held)
			<-gate
		case query == "COMMIT" && armed.CompareAndSwap(true, false):
			rolledBack.Store(true)
			return dqlite.Error{Code: dqlite.ErrBusy, Message: "injected"}, false
		case strings.HasPrefix(query, "INSERT") && rolledBack.Load():
			<-checked
		}
		return nil, false
	})
	before := createMany(t, b, 3, func(err error) { t.Error(err) }) + 1
	hold.Store(true)
	armed.Store(true)
	var wg sync.WaitGroup
	create := func(key string) {
		if _, err := b.Create(t.Context(), key, nil, 0); err != nil {
			t.Error(err)
		}
	}
	wg.Go(func() { create("/t/held") })
	<-held
	wg.Go(func() {
		defer close(checked)
		if _, err := b.Compact(t.Context(), 2); err != nil {
			t.Error(err)
		}
		if rev, err := b.CurrentRevision(t.Context()); err != nil || rev != before+1 {
			t.Errorf("revision after a compaction = %d, %v; want %d", rev, err, before+1)
		}
	})
	time.Sleep(100 * time.Millisecond) // until the compaction is queued, before the next creation
	wg.Go(func() { create("/t/next") })
	time.Sleep(100 * time.Millisecond)
	close(gate)
	wg.Wait()
	if !rolledBack.Load() {
		t.Error("no transaction was shared: the test did not test")
	}
}

// TestRefusalIsReadable updates a key whose last update was written without
// an answer: who is refused because of it is shown it, and can go on from it.
func TestRefusalIsReadable(t *testing.T) {
	var lose atomic.Bool
	b := openFaulty(t, func(string) (error, bool) {
		if lose.CompareAndSwap(true, false) {
			return &net.OpError{Op: "read", Err: net.ErrClosed}, true
		}
		return nil, false
	})
	rev, err := b.Create(t.Context(), "/t/a", []byte("1"), 0)
	if err != nil {
		t.Fatal(err)
	}
	lose.Store(true)
	if _, _, _, err := b.Update(t.Context(), "/t/a", []byte("2"), rev, 0); status.Code(err) != codes.Unavailable {
		t.Fatalf("update whose answer is lost: %v; want Unavailable", err)
	}
	_, kv, ok, err := b.Update(t.Context(), "/t/a", []byte("3"), rev, 0)
	if err != nil || ok || kv == nil || string(kv.Value) != "2" {
		t.Errorf("update at the old revision = %+v, %t, %v; want a refusal that shows the value 2", kv, ok, err)
	}
}

// TestLeasesAreReadAgain lets the first look at the leases fail: they expire
// nevertheless.
func TestLeasesAreReadAgain(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	t.Run("write", func(t *testing.T) {
		b := openFaults(t, dir, faults{fail: func(string) (error, bool) { return nil, false }})
		if _, err := b.Create(t.Context(), "/t/leased", nil, 1); err != nil {
			t.Fatal(err)
		}
	})
	var failed atomic.Bool
	b := openFaults(t, dir, faults{
		fail: func(string) (error, bool) { return nil, false },
		prepare: func(query string) error {
			if strings.Contains(query, "lease > 0") && failed.CompareAndSwap(false, true) {
				return dqlite.Error{Code: 1, Message: "injected"}
			}
			return nil
		},
	})
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		_, kv, err := b.Get(t.Context(), "/t/leased", 0, true)
		if err != nil {
			t.Fatal(err)
		}
		if kv == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("a key with a lease of 1 s is there after 10 s")
		}
	}
	if !failed.Load() {
		t.Error("leases were not read: the test did not test")
	}
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
