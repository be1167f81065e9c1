package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"iter"
	"slices"
	"time"

	"github.com/k3s-io/kine/pkg/server"
)

// scanRows and scanBytes bound what one query of a scan looks at and returns.
// A query holds up the others, and a checkpoint.
const (
	scanRows  = 256
	scanBytes = 1 << 20
)

// Scan calls fn for every live key as of one revision, which it returns: the
// current one when it began. The order is that of mod revisions. It reads a
// page at a time, so memory stays small and writers go on between pages. When
// the revision is compacted before the end it returns server.ErrCompacted,
// and what fn has been given is of no use.
func (b *Backend) Scan(ctx context.Context, fn func(*server.KeyValue) error) (int64, error) {
	var ids []int64
	var revision int64
	_, err := b.read(ctx, 0, func(at int64) error {
		revision, ids = at, b.index.list(keyRange{all: true, open: true}, 0, at)
		return nil
	})
	slices.Sort(ids)
	for err == nil && len(ids) > 0 {
		var page []*server.KeyValue
		_, err = b.read(ctx, revision, func(int64) (err error) {
			page, err = b.reader.scanPage(ctx, ids)
			return err
		})
		for _, kv := range page {
			if err != nil {
				break
			}
			err = fn(kv)
		}
		ids = ids[len(page):]
	}
	if err != nil {
		return 0, err
	}
	return revision, nil
}

// scanPage returns the first rows of the given revisions, as many as make a
// page.
func (r *reader) scanPage(ctx context.Context, ids []int64) ([]*server.KeyValue, error) {
	ids = ids[:min(len(ids), scanRows)]
	rows, bytes := 0, int64(0)
	err := r.each(ctx, sqlLengths, []any{jsonList(ids)}, func(found *sql.Rows) error {
		var id, size int64
		err := found.Scan(&id, &size)
		if bytes += size; rows == 0 || bytes <= scanBytes {
			rows++
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return r.live(ctx, ids[:max(rows, 1)], false)
}

const (
	// loading is the format of a database that Load has not finished: Open
	// refuses it.
	loading = -1
	// restoredName is the key of the deletion that takes the revision after a
	// load. Such a key has never existed.
	restoredName = "/cairn/restored"
	// maxRevision leaves room for what SQLite calculates with revisions.
	maxRevision = 1 << 61

	loadRows  = 500
	loadBytes = 1 << 20
	busyLoad  = time.Minute

	// ?1 id, ?2 name, ?3 created, ?4 version, ?5 lease, ?6 value
	sqlLoad = `INSERT INTO kv (id, name, prev, created, version, lease, deleted, value) VALUES (?1, ?2, 0, ?3, ?4, ?5, 0, ?6)`
	// ?1 id, ?2 name
	sqlLoadMark   = `INSERT INTO kv (id, name, prev, created, version, lease, deleted, value) VALUES (?1, ?2, 0, 0, 0, 0, 1, x'')`
	sqlLoadFinish = `UPDATE meta SET format = ?2, compacted = ?1, swept = ?1`
)

// Loaded says what Load did.
type Loaded struct {
	Keys int64
	// Moved is the number of keys that got a mod revision of their own,
	// after all others, because an etcd's transaction had given several the
	// same.
	Moved int64
	// Revision is the current one afterwards, and the compact revision.
	Revision int64
}

// Load fills an empty database with rows that were live at revision, each with
// its create revision, mod revision, version and lease, in the order of mod
// revisions. No Backend may be open.
//
// The revision becomes at least bump greater than it was: revisions between
// were perhaps given out after the rows had been read, to clients that must
// never see them again with other content. All before is marked as compacted,
// so that watches and caches which know such a revision begin anew. Both is
// what etcd recommends after a restore (--bump-revision, --mark-compacted).
//
// A load that ends early leaves a database that Open refuses.
func Load(ctx context.Context, connector driver.Connector, rows iter.Seq2[*server.KeyValue, error], revision, bump int64) (Loaded, error) {
	if revision < 0 || bump < 0 || revision > maxRevision || bump > maxRevision-revision {
		return Loaded{}, fmt.Errorf("load: revision %d plus %d; want at most %d", revision, bump, int64(maxRevision))
	}
	values, err := newCodec()
	if err != nil {
		return Loaded{}, fmt.Errorf("load: %w", err)
	}
	db := sql.OpenDB(connector)
	conn, err := db.Conn(ctx)
	if err != nil {
		return Loaded{}, fmt.Errorf("load: %w", errors.Join(err, db.Close()))
	}
	l := loader{conn: conn, codec: values, revision: revision}
	err = l.load(ctx, rows, bump)
	if err = errors.Join(err, conn.Close(), db.Close()); err != nil {
		return Loaded{}, fmt.Errorf("load: %w", err)
	}
	return l.done, nil
}

// loader holds rows until they make a transaction.
type loader struct {
	conn     *sql.Conn
	codec    *codec
	revision int64 // of the rows
	last     int64 // mod revision of the last row
	batch    []statement
	bytes    int
	done     Loaded
}

func (l *loader) load(ctx context.Context, rows iter.Seq2[*server.KeyValue, error], bump int64) error {
	if err := l.begin(ctx); err != nil {
		return err
	}
	for kv, err := range rows {
		if err != nil {
			return err
		}
		if err := l.add(kv); err != nil {
			return fmt.Errorf("key %q: %w", kv.Key, err)
		}
		if len(l.batch) >= loadRows || l.bytes >= loadBytes {
			if err := l.flush(ctx); err != nil {
				return err
			}
		}
	}
	if err := l.flush(ctx); err != nil {
		return err
	}
	var keys int64
	if err := l.conn.QueryRowContext(ctx, `SELECT count(DISTINCT name) FROM kv`).Scan(&keys); err != nil {
		return err
	}
	if keys != l.done.Keys {
		return fmt.Errorf("%d rows of %d keys: a key came twice", l.done.Keys, keys)
	}
	// After the rows that were moved, in any case.
	l.done.Revision = l.revision + max(bump, l.done.Moved+1)
	l.batch = append(l.batch,
		newStatement(sqlLoadMark, l.done.Revision, []byte(restoredName)),
		newStatement(sqlLoadFinish, l.done.Revision, int64(format)))
	return l.flush(ctx)
}

// begin makes the schema in a database that has none, and marks it as not
// complete.
func (l *loader) begin(ctx context.Context) error {
	var tables int64
	if err := l.conn.QueryRowContext(ctx, `SELECT count(*) FROM sqlite_master`).Scan(&tables); err != nil {
		return err
	}
	if tables > 0 {
		return errors.New("the database is not empty")
	}
	for _, query := range schema {
		l.batch = append(l.batch, newStatement(query))
	}
	l.batch = append(l.batch, newStatement(`DELETE FROM kv`), newStatement(`UPDATE meta SET format = ?1`, int64(loading)))
	return l.flush(ctx)
}

func (l *loader) add(kv *server.KeyValue) error {
	if kv.Key == "" || kv.Version <= 0 || kv.Lease < 0 || kv.CreateRevision <= 0 || kv.CreateRevision > kv.ModRevision || kv.ModRevision > l.revision {
		return fmt.Errorf("created at revision %d, changed at %d of %d, version %d, lease %d: no such row is possible",
			kv.CreateRevision, kv.ModRevision, l.revision, kv.Version, kv.Lease)
	}
	id, created := kv.ModRevision, kv.CreateRevision
	switch {
	case id < l.last:
		return fmt.Errorf("revision %d after %d: not in order", id, l.last)
	case id == l.last:
		l.done.Moved++
		id = l.revision + l.done.Moved
	default:
		l.last = id
	}
	if created == id {
		created = 0
	}
	l.batch = append(l.batch, newStatement(sqlLoad, id, []byte(kv.Key), created, kv.Version, kv.Lease, l.codec.encode(kv.Value)))
	l.bytes += len(kv.Key) + len(kv.Value)
	l.done.Keys++
	return nil
}

// flush writes the batch in one transaction, again while the database is
// busy with a checkpoint.
func (l *loader) flush(ctx context.Context) error {
	if err := whileBusy(ctx, busyLoad, isBusy, func() error { return l.transaction(ctx) }); err != nil {
		return err
	}
	l.batch, l.bytes = l.batch[:0], 0
	return nil
}

// transaction writes the batch. When COMMIT is refused because of a
// checkpoint the transaction is still open: it is rolled back like the others.
func (l *loader) transaction(ctx context.Context) error {
	if _, err := l.conn.ExecContext(ctx, "BEGIN IMMEDIATE"); err != nil {
		return err
	}
	for _, st := range append(l.batch, newStatement("COMMIT")) {
		args := make([]any, len(st.args))
		for i, a := range st.args {
			args[i] = a.Value
		}
		if _, err := l.conn.ExecContext(ctx, st.query, args...); err != nil {
			_, rollback := l.conn.ExecContext(context.WithoutCancel(ctx), "ROLLBACK")
			if isBusy(err) {
				return err
			}
			return errors.Join(err, rollback)
		}
	}
	return nil
}
