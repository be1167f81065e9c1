package external

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/k3s-io/kine/pkg/server"
)

const (
	// historyConnections are for reading changes, beside kine's own.
	historyConnections = 4
	// observeInterval is how often the database is asked for what other servers
	// have written; kine's own is the same.
	observeInterval = time.Second
	// gapPause is how soon a revision that is missing is looked for again. It is
	// that of a transaction about to be committed, or of one that was undone: for
	// the latter kine writes a row of its own (Fill).
	gapPause = 5 * time.Millisecond
	// gapPatience is after what time a missing revision is taken for one that
	// never comes. No insert of kine's takes this long.
	gapPatience = 10 * time.Second
	// startPatience is the same for revisions from before the start, whose
	// writers may be gone.
	startPatience = time.Second
	// idChunk is how many revisions are looked at at once.
	idChunk = 5000
	// compactName is kine's own record of compactions, fillPrefix marks the rows
	// that stand for revisions never written.
	compactName = "compact_rev_key"
	fillPrefix  = "gap-"
)

// history reads the changes of kine's table. Unlike kine's own watches it
// promises a revision only when all before it are there: rows take their ids
// when they are inserted and appear when they are committed, so 5 may be seen
// before 4.
type history struct {
	db       *sql.DB
	endpoint *endpoint
	log      *slog.Logger
	poke     chan struct{}
	notify   func()      // tells the feed that head has moved
	report   func(error) // takes the outcome of asking the database

	mu        sync.Mutex
	head      int64         // every revision up to it is visible
	compacted int64         // of it and above, everything is there
	moved     chan struct{} // closed and replaced when head moves
}

func newHistory(e *endpoint, log *slog.Logger) (*history, error) {
	db, err := e.open(e.database)
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(historyConnections)
	db.SetMaxIdleConns(historyConnections)
	return &history{db: db, endpoint: e, log: log, poke: make(chan struct{}, 1), notify: func() {}, report: func(error) {}, moved: make(chan struct{})}, nil
}

// number asks for one number; NULL is 0.
func (h *history) number(ctx context.Context, query string) (int64, error) {
	var n sql.NullInt64
	err := h.db.QueryRowContext(ctx, query).Scan(&n)
	return n.Int64, err
}

// Head is store.History's.
func (h *history) Head() int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.head
}

// Compacted is store.History's.
func (h *history) Compacted() int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.compacted
}

// begin reads where the table stands.
func (h *history) begin(ctx context.Context) error {
	if err := h.readCompacted(ctx); err != nil {
		return err
	}
	newest, err := h.number(ctx, "SELECT MAX(id) FROM kine")
	if err != nil {
		return err
	}
	h.advance(max(h.Compacted(), newest-idChunk))
	for deadline := time.Now().Add(startPatience); h.Head() < newest; {
		missing, err := h.follow(ctx)
		if err != nil {
			return err
		}
		if missing != 0 && time.Now().After(deadline) {
			h.advance(newest)
		}
		if missing != 0 && !pause(ctx, gapPause) {
			return ctx.Err()
		}
	}
	return nil
}

func (h *history) readCompacted(ctx context.Context) error {
	n, err := h.number(ctx, "SELECT MAX(prev_revision) FROM kine WHERE name = '"+compactName+"'")
	if err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.compacted = max(h.compacted, n)
	return nil
}

// observe tells that revision rev exists. own says that this process wrote it
// and has been told of its commit.
func (h *history) observe(rev int64, own bool) {
	h.mu.Lock()
	known, next := h.head >= rev, h.head+1 == rev
	h.mu.Unlock()
	switch {
	case known:
	case own && next: // Nothing is missing before it: no need to look.
		h.advance(rev)
	default:
		select {
		case h.poke <- struct{}{}:
		default:
		}
	}
}

// advance moves the head to rev, never back.
func (h *history) advance(rev int64) {
	h.mu.Lock()
	if rev > h.head {
		h.head = rev
		close(h.moved)
		h.moved = make(chan struct{})
	}
	h.mu.Unlock()
	h.notify()
}

// settle returns when every revision up to rev is visible.
func (h *history) settle(ctx context.Context, rev int64) error {
	for {
		h.mu.Lock()
		ready, moved := h.head >= rev, h.moved
		h.mu.Unlock()
		if ready {
			return nil
		}
		h.observe(rev, false)
		select {
		case <-moved:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// run follows the table until ctx ends.
func (h *history) run(ctx context.Context) {
	ticker := time.NewTicker(observeInterval)
	defer ticker.Stop()
	var since time.Time // when the revision after the head was first missed
	for {
		select {
		case <-ctx.Done():
			return
		case <-h.poke:
		case <-ticker.C:
			if err := h.readCompacted(ctx); err != nil && ctx.Err() == nil {
				h.report(err)
				continue
			}
		}
		for {
			before := h.Head()
			missing, err := h.follow(ctx)
			if ctx.Err() == nil {
				h.report(err)
			}
			if err != nil || missing == 0 {
				since = time.Time{}
				break
			}
			if since.IsZero() || h.Head() > before {
				since = time.Now()
			}
			if time.Since(since) > gapPatience {
				h.log.Warn("store: revisions are missing in the datastore", "after", h.Head(), "before", missing)
				h.advance(missing - 1)
				since = time.Time{}
				continue
			}
			if !pause(ctx, gapPause) {
				return
			}
		}
	}
}

// pause waits for d and reports whether ctx goes on.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// follow moves the head over the revisions that are visible without a gap. It
// returns the first revision beyond a gap, or 0.
func (h *history) follow(ctx context.Context) (missing int64, err error) {
	for {
		head := h.Head()
		ids, err := h.ids(ctx, head)
		if err != nil {
			return 0, err
		}
		for _, id := range ids {
			if id != head+1 {
				missing = id
				break
			}
			head = id
		}
		h.advance(head)
		if missing != 0 || len(ids) < idChunk {
			break
		}
	}
	// A server that was cut off may find that others have compacted since.
	if compacted := h.Compacted(); missing != 0 && h.Head() < compacted {
		h.advance(compacted)
	}
	return missing, nil
}

func (h *history) ids(ctx context.Context, after int64) (ids []int64, err error) {
	rows, err := h.db.QueryContext(ctx, fmt.Sprintf("SELECT id FROM kine WHERE id > %d ORDER BY id LIMIT %d", after, idChunk))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		var id int64
		if err := rows.Scan(&id); err != nil {
			return nil, err
		}
		ids = append(ids, id)
	}
	return ids, rows.Err()
}

// Changes is store.History's. Ranges are compared by bytes here as well: MySQL's
// collation of kine's table takes capitals and small letters for equal.
func (h *history) Changes(ctx context.Context, key, end string, after, upTo int64, limit int, each func(*server.Event) error) error {
	var stopped error
	err := h.changes(ctx, key, end, after, upTo, limit, func(e *server.Event) error {
		stopped = each(e)
		return stopped
	})
	if err == nil && limit >= 0 {
		// A watch that is behind: another server may have removed what it needed.
		err = h.readCompacted(ctx)
	}
	if err != nil && stopped == nil {
		return errors.New(h.endpoint.short(err))
	}
	return stopped
}

func (h *history) changes(ctx context.Context, key, end string, after, upTo int64, limit int, each func(*server.Event) error) (err error) {
	query, args := h.query(key, end, after, upTo, limit)
	rows, err := h.db.QueryContext(ctx, query, args...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		e, err := scan(rows)
		if err != nil {
			return err
		}
		if e.KV.Key == compactName || strings.HasPrefix(e.KV.Key, fillPrefix) {
			continue
		}
		if inRange := key == "" && end == "" || end == "\x00" && e.KV.Key >= key || e.InRange(key, end); !inRange {
			continue
		}
		if err := each(e); err != nil {
			return err
		}
	}
	return rows.Err()
}

// query is the statement of Changes, in the dialect of the database.
func (h *history) query(key, end string, after, upTo int64, limit int) (string, []any) {
	args := []any{after, upTo}
	condition := "id > ? AND id <= ?"
	switch {
	case key == "" && end == "":
	case end == "":
		condition += " AND name = ?"
		args = append(args, key)
	case end == "\x00":
		condition += " AND name >= ?"
		args = append(args, key)
	default:
		condition += " AND name >= ? AND name < ?"
		args = append(args, key, end)
	}
	query := "SELECT id, name, created, deleted, create_revision, prev_revision, lease, value, old_value FROM kine WHERE " + condition + " ORDER BY id"
	if limit >= 0 {
		query += fmt.Sprintf(" LIMIT %d", limit)
	}
	if h.endpoint.postgres != nil {
		for n := 1; strings.Contains(query, "?"); n++ {
			query = strings.Replace(query, "?", fmt.Sprintf("$%d", n), 1)
		}
	}
	return query, args
}

// scan reads a row as the change that it is. kine keeps no count of a key's
// versions, and of the row before only the value and, for an update, when the
// key was created.
func scan(rows *sql.Rows) (*server.Event, error) {
	e := &server.Event{KV: &server.KeyValue{}}
	var prev server.KeyValue
	if err := rows.Scan(&e.KV.ModRevision, &e.KV.Key, &e.Create, &e.Delete, &e.KV.CreateRevision, &prev.ModRevision, &e.KV.Lease, &e.KV.Value, &prev.Value); err != nil {
		return nil, err
	}
	switch {
	case e.Create:
		e.KV.CreateRevision = e.KV.ModRevision
		return e, nil
	case e.Delete:
		e.KV.Lease, e.KV.Value = 0, nil
	}
	prev.Key, prev.CreateRevision, prev.Lease = e.KV.Key, e.KV.CreateRevision, e.KV.Lease
	e.PrevKV = &prev
	return e, nil
}
