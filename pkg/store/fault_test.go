//go:build cgo

package store_test

import (
	"context"
	"database/sql/driver"
	"errors"
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
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/k3s-io/kine/pkg/server"
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

// shared tells the statement of a transaction that several writes share.
func shared(query string) bool {
	return strings.HasPrefix(query, "INSERT INTO kv") && strings.Contains(query, "?9,")
}

// TestBatchFallsBack lets every shared transaction fail: each write then
// stands for itself.
func TestBatchFallsBack(t *testing.T) {
	var failed atomic.Int64
	b := openFaulty(t, func(query string) (error, bool) {
		if shared(query) {
			failed.Add(1)
			return dqlite.Error{Code: 18, Message: "injected"}, false
		}
		return nil, false
	})
	if got := createMany(t, b, 100, func(err error) { t.Error(err) }); got != 100 {
		t.Errorf("%d of 100 writes succeeded", got)
	}
	if failed.Load() == 0 {
		t.Error("no transaction was shared: the test did not test")
	}
}

// TestAmbiguousCommit lets every shared transaction be executed and answered
// with an error of the disk: a writer is told that the outcome is unknown, and
// never that the key existed, which it did not.
func TestAmbiguousCommit(t *testing.T) {
	var failed atomic.Int64
	b := openFaulty(t, func(query string) (error, bool) {
		if shared(query) {
			failed.Add(1)
			return dqlite.Error{Code: 10, Message: "injected"}, true
		}
		return nil, false
	})
	createMany(t, b, 100, func(err error) {
		if status.Code(err) != codes.Unavailable {
			t.Errorf("create: %v; want Unavailable", err)
		}
	})
	if failed.Load() == 0 {
		t.Error("no transaction was shared: the test did not test")
	}
}

// TestUnknownOutcomes loses answers at random, of writes that were executed
// and of such that were not, while clients create, update and delete: a watch
// sees exactly what the database holds, what was acknowledged is there, and
// what was refused was refused because of a row that can be read.
func TestUnknownOutcomes(t *testing.T) {
	var on atomic.Bool
	var n, lost atomic.Int64
	b := openFaulty(t, func(query string) (error, bool) {
		if !on.Load() || !strings.HasPrefix(query, "INSERT") {
			return nil, false
		}
		k := n.Add(1)
		switch {
		case k%7 == 3:
			lost.Add(1)
			return &net.OpError{Op: "read", Err: net.ErrClosed}, k%2 == 0
		case k%11 == 5:
			lost.Add(1)
			return dqlite.Error{Code: 10, Message: "injected"}, k%2 == 0
		default:
			return nil, false
		}
	})
	watch := b.Watch(t.Context(), "/t/", "/t0", 2)
	on.Store(true)
	acknowledged := writeConcurrently(t, b, 6, 60)
	on.Store(false)
	if lost.Load() < 10 {
		t.Errorf("%d answers were lost: the test did not test", lost.Load())
	}
	last, err := b.Put(t.Context(), "/t/end", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var live, again []*server.Event
	for len(live) == 0 || live[len(live)-1].KV.ModRevision < last {
		live = append(live, <-watch.Events...)
	}
	// A watch that begins in the past reads from the database.
	past := b.Watch(t.Context(), "/t/", "/t0", 2)
	for len(again) == 0 || again[len(again)-1].KV.ModRevision < last {
		again = append(again, <-past.Events...)
	}
	if diff := cmp.Diff(again, live, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("events from the database and as they happened (-database +live):\n%s", diff)
	}
	byRevision := map[int64]*server.Event{}
	for i, e := range live {
		if e.KV.ModRevision != int64(i)+2 {
			t.Fatalf("event %d has revision %d; want %d", i, e.KV.ModRevision, i+2)
		}
		byRevision[e.KV.ModRevision] = e
	}
	for rev, value := range acknowledged {
		if e := byRevision[rev]; e == nil || string(e.KV.Value) != value {
			t.Errorf("revision %d was acknowledged with %q; the watch saw %+v", rev, value, e)
		}
	}
}

// writeConcurrently creates, updates and deletes a few keys and returns what
// was acknowledged by revision.
func writeConcurrently(t *testing.T, b *store.Backend, clients, rounds int) map[int64]string {
	t.Helper()
	var mu sync.Mutex
	acknowledged := map[int64]string{}
	note := func(rev int64, value string, ok bool, err error) {
		if err == nil && ok {
			mu.Lock()
			acknowledged[rev] = value
			mu.Unlock()
		}
		if err != nil && !errors.Is(err, server.ErrKeyExists) && status.Code(err) != codes.Unavailable {
			t.Errorf("write: %v; want success, a refusal or Unavailable", err)
		}
	}
	var wg sync.WaitGroup
	for c := range clients {
		wg.Go(func() {
			for i := range rounds {
				key := fmt.Sprintf("/t/%d", (c+i)%4)
				value := fmt.Sprintf("%d-%d-%s", c, i, strings.Repeat("x", i*10))
				_, kv, err := b.Get(t.Context(), key, 0, false)
				switch {
				case err != nil:
					t.Error(err)
				case kv == nil:
					rev, err := b.Create(t.Context(), key, []byte(value), 0)
					note(rev, value, true, err)
				case i%5 == 0:
					rev, _, ok, err := b.Delete(t.Context(), key, kv.ModRevision)
					note(rev, "", ok, err)
				default:
					rev, _, ok, err := b.Update(t.Context(), key, []byte(value), kv.ModRevision, 0)
					note(rev, value, ok, err)
				}
			}
		})
	}
	wg.Wait()
	return acknowledged
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

// TestExpiriesShareTransactions lets many leases run out at once: the keys go
// together, not in a transaction each.
func TestExpiriesShareTransactions(t *testing.T) {
	const keys = 100
	var created atomic.Bool
	var deletions atomic.Int64
	b := openFaulty(t, func(query string) (error, bool) {
		if created.Load() && strings.HasPrefix(query, "INSERT INTO kv") {
			deletions.Add(1)
		}
		return nil, false
	})
	var wg sync.WaitGroup
	for i := range keys {
		wg.Go(func() {
			if _, err := b.Create(t.Context(), fmt.Sprintf("/t/%03d", i), nil, 2); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	created.Store(true)
	deadline := time.Now().Add(30 * time.Second)
	for left := int64(keys); left > 0; time.Sleep(20 * time.Millisecond) {
		var err error
		if _, left, err = b.Count(t.Context(), "/t/", "/t0", 0); err != nil || time.Now().After(deadline) {
			t.Fatalf("%d keys are left, %v", left, err)
		}
	}
	if n := deletions.Load(); n == 0 || n > keys/2 {
		t.Errorf("%d transactions deleted %d keys; want them shared", n, keys)
	}
}

// TestFallBackSkipsWhoHasGone ends the callers' contexts while a shared
// transaction fails: what they asked for is not written afterwards.
func TestFallBackSkipsWhoHasGone(t *testing.T) {
	ctx, leave := context.WithCancel(t.Context())
	var failed, lone atomic.Int64
	b := openFaulty(t, func(query string) (error, bool) {
		switch {
		case shared(query):
			failed.Add(1)
			leave()
			return dqlite.Error{Code: 18, Message: "injected"}, false
		case failed.Load() > 0 && strings.HasPrefix(query, "INSERT INTO kv"):
			lone.Add(1)
		}
		return nil, false
	})
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			_, _ = b.Create(ctx, fmt.Sprintf("/t/%03d", i), nil, 0) // Most have gone before the answer.
		})
	}
	wg.Wait()
	if _, err := b.Create(t.Context(), "/t/last", nil, 0); err != nil {
		t.Fatal(err)
	}
	if n := lone.Load(); failed.Load() == 0 || n != 1 {
		t.Errorf("%d shared transactions failed, then %d rows were written alone; want at least one, and then only the last row", failed.Load(), n)
	}
}
