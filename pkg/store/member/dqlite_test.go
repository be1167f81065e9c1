//go:build cgo && linux

package member

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"fmt"
	"path/filepath"
	"testing"
	"time"
)

// TestUncommittedPages changes 2000 pages, more than SQLite's automatic
// checkpoint waits for, in a transaction that raft cannot accept because the
// majority is gone. Nobody may see any of it before, and of what becomes of it
// all or nothing.
func TestUncommittedPages(t *testing.T) {
	const rows = 2000
	n, nodes := three(t)
	a := nodes[0]
	db := openDB(t, a)
	exec(t, db, "CREATE TABLE t (id INTEGER PRIMARY KEY, x BLOB)")
	exec(t, db, "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM c WHERE x<?) INSERT INTO t SELECT x, zeroblob(900) FROM c", rows)
	reading := openDB(t, a)
	untouched := func(db *sql.DB) (count int, check string, err error) {
		if err := db.QueryRow("SELECT count(*) FROM t WHERE x = zeroblob(900)").Scan(&count); err != nil {
			return 0, "", err
		}
		return count, check, db.QueryRow("PRAGMA integrity_check").Scan(&check)
	}
	if count, check, err := untouched(reading); count != rows || check != "ok" || err != nil {
		t.Fatalf("before: %d rows, check %q, %v", count, check, err)
	}

	n.lose(nodes[1])
	n.lose(nodes[2])
	updated := make(chan error, 1)
	go func() {
		_, err := db.Exec("UPDATE t SET x = randomblob(900)")
		updated <- err
	}()
	reads := 0
	for begin := time.Now(); time.Since(begin) < time.Second; time.Sleep(20 * time.Millisecond) {
		count, check, err := untouched(reading)
		if err != nil {
			t.Logf("no longer the leader after %v: %v", time.Since(begin), err)
			break
		}
		if reads++; count != rows || check != "ok" {
			t.Fatalf("while the transaction waits for the majority: %d rows of %d are as before, check %q", count, rows, check)
		}
	}
	n.find(nodes[1])
	n.find(nodes[2])
	t.Logf("%d reads while it waited, then: %v", reads, <-updated)
	if reads == 0 {
		t.Error("nothing was read while the transaction waited")
	}
	count, check, err := untouched(openDB(t, leaderOf(t, nodes...)))
	if err != nil || check != "ok" || count != 0 && count != rows {
		t.Errorf("at last: %d rows of %d are as before, check %q, %v; want all or none", count, rows, check, err)
	}
}

// TestSnapshotBySize expects a snapshot once the log is large, and none for
// many small entries.
func TestSnapshotBySize(t *testing.T) {
	n := newNetwork(t)
	o := n.options("a")
	o.Snapshot = SnapshotParams{}
	a := n.startWith(o)
	db := openDB(t, a)
	snapshots := func() int {
		names, err := filepath.Glob(filepath.Join(o.Dir, "snapshot-*.meta"))
		if err != nil {
			t.Fatal(err)
		}
		return len(names)
	}
	exec(t, db, "CREATE TABLE t (x BLOB)")
	for range 300 {
		exec(t, db, "UPDATE t SET x = x")
	}
	if n := snapshots(); n != 0 {
		t.Errorf("%d snapshots after 300 small entries; want none", n)
	}
	for range 9 {
		exec(t, db, "INSERT INTO t VALUES (zeroblob(1 << 20))")
	}
	eventually(t, func(context.Context) error {
		if n := snapshots(); n != 1 {
			return fmt.Errorf("%d snapshots after 9 MB; want 1", n)
		}
		return nil
	})
}

// TestAbandonedQuery lets clients go while the answers to their queries are on
// the way. Their queries must end, or the member could never stop, nor move
// what is in the write-ahead log into the database.
func TestAbandonedQuery(t *testing.T) {
	n := newNetwork(t)
	a := n.start("a")
	connector, err := a.Connector()
	if err != nil {
		t.Fatal(err)
	}
	for range 5 {
		conn, err := connector.Connect(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		// More than the sockets between hold.
		const query = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM c WHERE x<20000) SELECT x, zeroblob(1000) FROM c"
		rows, err := conn.(driver.QueryerContext).QueryContext(ctx, query, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := rows.Next(make([]driver.Value, 2)); err != nil {
			t.Error(err)
		}
		<-ctx.Done()
		t.Log(rows.Close(), conn.Close())
		cancel()
	}
	exec(t, openDB(t, a), "CREATE TABLE t (x)")
	a.stop()
}
