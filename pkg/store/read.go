package store

import (
	"bytes"
	"context"
	"database/sql"
	"database/sql/driver"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/k3s-io/kine/pkg/server"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	// readLimit is how long a read is repeated while the database is busy.
	readLimit = 5 * time.Second
	// readRows and loadIndexRows bound one query: dqlite works on one at a
	// time, and takes no checkpoint meanwhile.
	readRows      = 500
	loadIndexRows = 4096
)

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
	db     *sql.DB
	codec  *codec
	index  *index
	recent *recent

	mu    sync.Mutex
	stmts map[string]*sql.Stmt
}

func newReader(db *sql.DB, c *codec, x *index) *reader {
	return &reader{db: db, codec: c, index: x, recent: newRecent(), stmts: map[string]*sql.Stmt{}}
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
	seen := false
	return whileBusy(ctx, readLimit, func(err error) bool { return !seen && isBusy(err) }, func() (err error) {
		seen, err = r.once(ctx, query, args, scan)
		return err
	})
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

// errGone says that a row is not there: compaction has removed it.
var errGone = status.Error(codes.DataLoss, "store: a row that was not compacted is missing")

// entry reads a row of sqlRows.
func (r *reader) entry(rows *sql.Rows) (*entry, error) {
	e := new(entry)
	var name []byte
	err := rows.Scan(&e.id, &name, &e.prev, &e.created, &e.version, &e.lease, &e.deleted, &e.value)
	e.name = string(name)
	return e, err
}

// keyValue returns a row as kine has it, with its value or without.
func (r *reader) keyValue(e *entry, keysOnly bool) (kv *server.KeyValue, err error) {
	kv = &server.KeyValue{Key: e.name, ModRevision: e.id, CreateRevision: e.created, Version: e.version, Lease: e.lease}
	if kv.CreateRevision == 0 {
		kv.CreateRevision = e.id
	}
	if keysOnly {
		return kv, nil
	}
	if kv.Value, err = r.codec.decode(e.value); err != nil {
		return nil, fmt.Errorf("revision %d: %w", e.id, err)
	}
	return kv, nil
}

// rows returns the rows of the given revisions, those that are there.
func (r *reader) rows(ctx context.Context, ids []int64, keysOnly bool) (map[int64]*entry, error) {
	found := make(map[int64]*entry, len(ids))
	missing := make([]int64, 0, len(ids))
	for _, id := range ids {
		if e, ok := r.recent.get(id); ok {
			found[id] = e
		} else {
			missing = append(missing, id)
		}
	}
	query := sqlRows
	if keysOnly {
		query = sqlRowsKeys
	}
	for chunk := range slices.Chunk(missing, readRows) {
		err := r.each(ctx, query, []any{jsonList(chunk)}, func(rows *sql.Rows) error {
			e, err := r.entry(rows)
			found[e.id] = e
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return found, nil
}

func jsonList(ids []int64) string {
	list := []byte{'['}
	for i, id := range ids {
		if i > 0 {
			list = append(list, ',')
		}
		list = strconv.AppendInt(list, id, 10)
	}
	return string(append(list, ']'))
}

// get returns the key as it lived at revision, or nil.
func (r *reader) get(ctx context.Context, key string, revision int64, keysOnly bool) (*server.KeyValue, error) {
	id := r.index.get(key, revision)
	if id == 0 {
		return nil, nil
	}
	return r.revision(ctx, id, keysOnly)
}

// revision returns the row of a revision.
func (r *reader) revision(ctx context.Context, id int64, keysOnly bool) (*server.KeyValue, error) {
	found, err := r.rows(ctx, []int64{id}, false)
	if err != nil {
		return nil, err
	}
	e, ok := found[id]
	if !ok {
		return nil, errGone
	}
	r.recent.add(e)
	return r.keyValue(e, keysOnly)
}

// list returns the live keys of a range at revision, in order.
func (r *reader) list(ctx context.Context, in keyRange, limit, revision int64, keysOnly bool) ([]*server.KeyValue, error) {
	return r.live(ctx, r.index.list(in, limit, revision), keysOnly)
}

// live returns the rows of the given revisions, in that order.
func (r *reader) live(ctx context.Context, ids []int64, keysOnly bool) ([]*server.KeyValue, error) {
	found, err := r.rows(ctx, ids, keysOnly)
	if err != nil {
		return nil, err
	}
	var kvs []*server.KeyValue
	for _, id := range ids {
		e, ok := found[id]
		if !ok {
			return nil, errGone
		}
		kv, err := r.keyValue(e, keysOnly)
		if err != nil {
			return nil, err
		}
		kvs = append(kvs, kv)
	}
	return kvs, nil
}

// load makes the index from the database.
func (r *reader) load(ctx context.Context) error {
	for {
		var rows []*entry
		err := r.each(ctx, sqlIndex, []any{r.index.newest(), loadIndexRows}, func(found *sql.Rows) error {
			e := new(entry)
			var name []byte
			err := found.Scan(&e.id, &name, &e.created, &e.version, &e.lease, &e.deleted)
			e.name = string(name)
			rows = append(rows, e)
			return err
		})
		if err != nil {
			return fmt.Errorf("read the index: %w", err)
		}
		r.index.apply(rows)
		if len(rows) < loadIndexRows {
			return nil
		}
	}
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

// events returns what watches see of rows that were committed one after the
// other: the same as changes reads from the database.
func (r *reader) events(ctx context.Context, rows []committed) ([]*server.Event, error) {
	var replaced []int64
	for _, row := range rows {
		if row.prev != 0 {
			replaced = append(replaced, row.prev)
		}
	}
	before, err := r.rows(ctx, replaced, false)
	if err != nil {
		return nil, err
	}
	events := make([]*server.Event, len(rows))
	for i, row := range rows {
		if events[i], err = r.event(row, before[row.prev]); err != nil {
			return nil, err
		}
	}
	r.recent.replaced(replaced)
	return events, nil
}

func (r *reader) event(row committed, before *entry) (e *server.Event, err error) {
	e = &server.Event{Delete: row.deleted, Create: row.prev == 0}
	switch {
	case row.deleted: // As etcd's: a deletion's key-value has key and revision only.
		e.KV = &server.KeyValue{Key: row.name, ModRevision: row.id}
	default:
		if e.KV, err = r.keyValue(row.entry, row.plain != nil); err != nil {
			return nil, err
		}
		if row.plain != nil {
			e.KV.Value = row.plain
		}
	}
	if before != nil { // Not so when compaction took the previous row.
		e.PrevKV, err = r.keyValue(before, false)
	}
	return e, err
}

// scanEntry reads a row of sqlRowsAfter as the driver returns it.
func scanEntry(values []driver.Value) (*entry, error) {
	numbers := [rowParameters]int64{}
	for i, v := range values {
		if i == 1 || i == rowParameters-1 {
			continue
		}
		n, ok := v.(int64)
		if !ok {
			return nil, fmt.Errorf("column %d is %T; want an integer", i, v)
		}
		numbers[i] = n
	}
	name, isName := values[1].([]byte)
	value, isValue := values[rowParameters-1].([]byte)
	if !isName || !isValue {
		return nil, fmt.Errorf("name is %T, value is %T; want bytes", values[1], values[rowParameters-1])
	}
	return &entry{
		id: numbers[0], prev: numbers[2], created: numbers[3], version: numbers[4], lease: numbers[5], deleted: numbers[6] != 0,
		name: string(name), value: bytes.Clone(value),
	}, nil
}
