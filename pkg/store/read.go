package store

import (
	"bytes"
	"context"
	"database/sql"
	"fmt"
	"sync"
	"time"

	"github.com/k3s-io/kine/pkg/server"
)

// readLimit is how long a read is repeated while the database is busy.
const readLimit = 5 * time.Second

// keyRange is a set of keys as etcd's requests spell it.
type keyRange struct {
	start, end []byte // end nil: the single key start
	open       bool   // no upper bound
	all        bool
}

// newRange reads the pair of key and end as etcd defines it: no end is one
// key, an end of "\0" is every key from start on. kine adds one form: no key
// and no end is everything.
func newRange(key, end string) keyRange {
	switch {
	case key == "" && end == "":
		return keyRange{all: true, open: true, end: []byte{}}
	case end == "":
		return keyRange{start: []byte(key)}
	case end == "\x00":
		return keyRange{start: []byte(key), open: true, end: []byte{}}
	default:
		return keyRange{start: []byte(key), end: []byte(end)}
	}
}

func (r keyRange) single() bool { return r.end == nil && !r.open }

// contains reports whether the range holds key.
func (r keyRange) contains(key string) bool {
	switch {
	case r.all:
		return true
	case r.single():
		return key == string(r.start)
	default:
		return key >= string(r.start) && (r.open || key < string(r.end))
	}
}

// bounds returns the range as parameters of sqlBetween, or sqlFrom when open.
func (r keyRange) bounds() (start, end []byte) {
	switch {
	case r.all:
		return []byte{}, []byte{}
	case r.single():
		return r.start, append(bytes.Clone(r.start), 0)
	default:
		return r.start, r.end
	}
}

// condition is the range as SQL over column, its bounds being ?1 and ?2: both
// are used in either case, so that callers bind the same parameters.
func (r keyRange) condition(column string) string {
	if r.open {
		return column + " >= ?1 AND length(?2) >= 0"
	}
	return column + " >= ?1 AND " + column + " < ?2"
}

// reader runs queries on a pool of connections; statements are prepared once.
type reader struct {
	db    *sql.DB
	codec *codec

	mu    sync.Mutex
	stmts map[string]*sql.Stmt
}

func newReader(db *sql.DB, c *codec) *reader {
	return &reader{db: db, codec: c, stmts: map[string]*sql.Stmt{}}
}

func (r *reader) statement(ctx context.Context, query string) (*sql.Stmt, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if st, ok := r.stmts[query]; ok {
		return st, nil
	}
	st, err := r.db.PrepareContext(ctx, query)
	if err != nil {
		return nil, err
	}
	r.stmts[query] = st
	return st, nil
}

// each calls scan for every row of the query. Until the first row is seen it
// repeats the query while the database is busy.
func (r *reader) each(ctx context.Context, query string, args []any, scan func(*sql.Rows) error) error {
	deadline := time.Now().Add(readLimit)
	for wait := busyFirst; ; wait = min(2*wait, busyMost) {
		seen, err := r.once(ctx, query, args, scan)
		if err == nil || seen || !isBusy(err) || time.Now().After(deadline) {
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

func (r *reader) once(ctx context.Context, query string, args []any, scan func(*sql.Rows) error) (seen bool, err error) {
	st, err := r.statement(ctx, query)
	if err != nil {
		return false, fmt.Errorf("prepare: %w", err)
	}
	rows, err := st.QueryContext(ctx, args...)
	if err != nil {
		return false, err
	}
	defer rows.Close()
	for rows.Next() {
		seen = true
		if err := scan(rows); err != nil {
			return seen, err
		}
	}
	return seen, rows.Err()
}

func (r *reader) number(ctx context.Context, query string) (int64, error) {
	var n sql.NullInt64
	err := r.each(ctx, query, nil, func(rows *sql.Rows) error { return rows.Scan(&n) })
	return n.Int64, err
}

// row is a row of kv.
type row struct {
	server.KeyValue
	deleted bool
}

func (r *row) scan(rows *sql.Rows, c *codec) (err error) {
	var name, value []byte
	if err := rows.Scan(&r.ModRevision, &name, &r.CreateRevision, &r.Version, &r.Lease, &r.deleted, &value); err != nil {
		return err
	}
	if r.Value, err = c.decode(value); err != nil {
		return fmt.Errorf("revision %d: %w", r.ModRevision, err)
	}
	r.Key = string(name)
	if r.CreateRevision == 0 {
		r.CreateRevision = r.ModRevision
	}
	return nil
}

// get returns the row of key that was the latest at revision, tombstones
// included, or nil.
func (r *reader) get(ctx context.Context, key string, revision int64) (*row, error) {
	var found *row
	err := r.each(ctx, sqlGet, []any{[]byte(key), revision}, func(rows *sql.Rows) error {
		found = new(row)
		return found.scan(rows, r.codec)
	})
	return found, err
}

// list returns the live keys of a range at revision, in order.
func (r *reader) list(ctx context.Context, in keyRange, limit, revision int64, keysOnly bool) ([]*server.KeyValue, error) {
	if limit <= 0 {
		limit = -1
	}
	value := "kv.value"
	if keysOnly {
		value = "NULL"
	}
	start, end := in.bounds()
	var kvs []*server.KeyValue
	err := r.each(ctx, sqlListHead+value+sqlListTail+in.condition("name")+sqlListEnd, []any{start, end, revision, limit}, func(rows *sql.Rows) error {
		found := new(row)
		if err := found.scan(rows, r.codec); err != nil {
			return err
		}
		kvs = append(kvs, &found.KeyValue)
		return nil
	})
	return kvs, err
}

func (r *reader) count(ctx context.Context, in keyRange, revision int64) (int64, error) {
	var n int64
	start, end := in.bounds()
	err := r.each(ctx, sqlCountHead+in.condition("name")+sqlCountTail, []any{start, end, revision}, func(rows *sql.Rows) error {
		return rows.Scan(&n)
	})
	return n, err
}

// changes calls fn for at most limit changes to a range that came after one
// revision, up to and including another, in order.
func (r *reader) changes(ctx context.Context, in keyRange, after, upTo int64, limit int, fn func(*server.Event) error) error {
	start, end := in.bounds()
	query := sqlAfterHead + in.condition("+e.name") + sqlAfterTail
	return r.each(ctx, query, []any{start, end, after, upTo, limit}, func(rows *sql.Rows) error {
		e, err := scanEvent(rows, r.codec)
		if err != nil {
			return err
		}
		return fn(e)
	})
}

func scanEvent(rows *sql.Rows, c *codec) (*server.Event, error) {
	var (
		name                            []byte
		prev                            int64
		prevCreated, prevVersion, lease sql.NullInt64
		value, prevValue                []byte
		e                               = &server.Event{KV: &server.KeyValue{}}
	)
	kv := e.KV
	err := rows.Scan(&kv.ModRevision, &name, &prev, &kv.CreateRevision, &kv.Version, &kv.Lease, &e.Delete, &value,
		&prevCreated, &prevVersion, &lease, &prevValue)
	if err != nil {
		return nil, err
	}
	if kv.Value, err = c.decode(value); err != nil {
		return nil, fmt.Errorf("revision %d: %w", kv.ModRevision, err)
	}
	if prevValue, err = c.decode(prevValue); err != nil {
		return nil, fmt.Errorf("revision %d: %w", prev, err)
	}
	kv.Key = string(name)
	e.Create = prev == 0
	switch {
	case e.Delete: // As etcd's: a deletion's key-value has key and revision only.
		kv.CreateRevision, kv.Version, kv.Lease, kv.Value = 0, 0, 0, nil
	case kv.CreateRevision == 0:
		kv.CreateRevision = kv.ModRevision
	}
	if prevCreated.Valid { // Not so when compaction took the previous row.
		e.PrevKV = &server.KeyValue{
			Key: kv.Key, ModRevision: prev, CreateRevision: prevCreated.Int64,
			Version: prevVersion.Int64, Lease: lease.Int64, Value: prevValue,
		}
		if e.PrevKV.CreateRevision == 0 {
			e.PrevKV.CreateRevision = prev
		}
	}
	return e, nil
}
