package store

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

const (
	// maxBatch bounds how many writes share a transaction, maxBatchBytes
	// their keys and values: a transaction is one entry of raft's log.
	maxBatch      = 64
	maxBatchBytes = 1 << 20
	// gatherMost bounds how long the writers of a transaction are waited for
	// to share the next.
	gatherMost = 2 * time.Millisecond
	// writeTimeout is how long one round trip may take before the connection
	// is given up: an SD card can stall for seconds.
	writeTimeout = 30 * time.Second
	// busyLimit is how long a write is repeated while the database is busy.
	busyLimit    = 10 * time.Second
	busyFirst    = 2 * time.Millisecond
	busyMost     = 200 * time.Millisecond
	connectLimit = 15 * time.Second
)

// statement is one SQL statement with its parameters.
type statement struct {
	query string
	args  []driver.NamedValue
}

func newStatement(query string, args ...any) statement {
	st := statement{query: query, args: make([]driver.NamedValue, len(args))}
	for i, a := range args {
		st.args[i] = driver.NamedValue{Ordinal: i + 1, Value: a}
	}
	return st
}

// operation is what a write does to its key.
type operation int

const (
	// create writes a key that must not live.
	create operation = iota + 1
	// update replaces a key whose latest row is that of a revision.
	update
	// put writes a key in either case.
	put
	// remove deletes a key that lives, and whose latest row is that of a
	// revision when one is given.
	remove
)

// write is one request to the writer: an operation on a key, or statements
// that are applied together, or neither, to learn what the database holds.
type write struct {
	operation operation
	key       string
	plain     []byte // the value
	value     []byte // the value as the column holds it
	revision  int64  // that is compared with
	lease     int64

	statements []statement

	ctx  context.Context
	done chan outcome // buffered, receives once
}

func (w *write) size() int { return len(w.key) + len(w.value) }

// outcome is what became of a write: whether it changed the key, and then the
// revision of that and of the row that was replaced, if any.
type outcome struct {
	id, prev int64
	changed  bool
	err      error
}

// committed is a row that was written, and its value if it is at hand.
type committed struct {
	*entry
	plain []byte
}

// writer is the only one that writes to the database. It owns a connection of
// its own rather than one of database/sql's pool, because that repeats a
// statement when a connection breaks, whether or not it had been committed.
//
// It decides comparisons by the index, and each row it writes says which
// revision it takes: the statement writes nothing unless all rows before are
// those that the index knows.
type writer struct {
	connector driver.Connector
	log       *slog.Logger
	index     *index
	queue     chan *write
	accepted  func([]committed) // called with new rows before outcomes are delivered

	conn     driver.Conn
	prepared map[string]driver.Stmt
	// stale says that the database may hold rows that the index lacks: those
	// of a transaction whose outcome is unknown.
	stale atomic.Bool

	// How many writes the last transaction answered, and when.
	answers  int
	answered time.Time
	patience time.Duration // how long to wait for them, from then on
}

func newWriter(connector driver.Connector, log *slog.Logger, x *index, accepted func([]committed)) *writer {
	return &writer{connector: connector, log: log, index: x, queue: make(chan *write, maxBatch), accepted: accepted}
}

// do hands req to the writer and waits for the outcome. When ctx ends first,
// the write may still happen.
func (w *writer) do(ctx context.Context, stopped <-chan struct{}, req write) (outcome, error) {
	req.ctx, req.done = ctx, make(chan outcome, 1)
	select {
	case w.queue <- &req:
	case <-ctx.Done():
		return outcome{}, ctx.Err()
	case <-stopped:
		return outcome{}, rpctypes.ErrGRPCStopped
	}
	select {
	case out := <-req.done:
		return out, out.err
	case <-ctx.Done():
		return outcome{}, ctx.Err()
	case <-stopped:
		// The writer answers what it had begun before it stops.
		select {
		case out := <-req.done:
			return out, out.err
		default:
			return outcome{}, rpctypes.ErrGRPCStopped
		}
	}
}

// run serves the queue until ctx ends. Writes that arrive while one
// transaction commits share the next.
func (w *writer) run(ctx context.Context) {
	defer w.drop()
	var held *write
	for {
		first := held
		held = nil
		if first == nil {
			select {
			case <-ctx.Done():
				return
			case first = <-w.queue:
			}
		}
		var batch []*write
		batch, held = w.gather(first)
		w.apply(ctx, batch)
	}
}

// gather takes what waits in the queue, up to the bounds; the one that no
// longer fits, or that stands for itself, is returned apart. Writes whose
// callers have gone are dropped.
func (w *writer) gather(first *write) (batch []*write, next *write) {
	size := 0
	add := func(req *write) bool {
		if err := req.ctx.Err(); err != nil {
			req.done <- outcome{err: err}
			return true
		}
		if len(batch) > 0 && (req.operation == 0 || size+req.size() > maxBatchBytes) {
			next = req
			return false
		}
		batch = append(batch, req)
		size += req.size()
		return req.operation != 0
	}
	if !add(first) {
		return batch, next
	}
	for len(batch) < maxBatch {
		req := w.another(len(batch))
		if req == nil || !add(req) {
			break
		}
	}
	return batch, next
}

// another returns the next write for a batch of n, nil for none. Writers who
// were answered together a moment ago tend to come again together: for as many
// as those were it waits a little, or they would take turns in halves. A lone
// writer never waits.
func (w *writer) another(n int) *write {
	select {
	case req := <-w.queue:
		return req
	default:
	}
	left := w.patience - time.Since(w.answered)
	if n >= w.answers || left <= 0 {
		return nil
	}
	timer := time.NewTimer(left)
	defer timer.Stop()
	select {
	case req := <-w.queue:
		return req
	case <-timer.C:
		return nil
	}
}

// apply commits a batch, together if that works and one by one if not.
func (w *writer) apply(ctx context.Context, batch []*write) {
	switch {
	case len(batch) == 0:
		return
	case batch[0].operation == 0:
		batch[0].done <- outcome{err: w.patiently(ctx, func() error { return w.transaction(ctx, batch[0].statements) })}
		return
	}
	err := w.commit(ctx, batch)
	if err == nil {
		return
	}
	if len(batch) > 1 && !isLost(err) && !isBusy(err) && w.unwritten(ctx) {
		w.log.Debug("store: transaction failed, writes are applied one by one", "writes", len(batch), "error", err)
		for _, req := range batch {
			err := req.ctx.Err() // Who has gone while the others were tried is not served.
			if err == nil {
				err = w.commit(ctx, []*write{req})
			}
			if err != nil {
				req.done <- outcome{err: err}
			}
		}
		return
	}
	if len(batch) > 1 {
		w.log.Warn("store: outcome of a transaction is unknown", "writes", len(batch), "error", err)
	}
	for _, req := range batch {
		req.done <- outcome{err: err}
	}
}

// commit applies a batch in one transaction and delivers the outcomes, or
// returns an error and delivers none. Then it may have been written or not,
// unless the error isBusy.
func (w *writer) commit(ctx context.Context, batch []*write) error {
	return w.patiently(ctx, func() error {
		if err := w.sync(ctx); err != nil {
			return err
		}
		rows, outs := plan(w.index, batch)
		if len(rows) > 0 {
			began := time.Now()
			if err := w.insert(ctx, rows); err != nil {
				return err
			}
			took := time.Since(began)
			commitSeconds.Observe(took.Seconds())
			commitWrites.Add(float64(len(rows)))
			w.patience = min(took/2, gatherMost)
			w.accept(rows)
		}
		for i, req := range batch {
			req.done <- outs[i]
		}
		w.answers, w.answered = len(batch), time.Now()
		return nil
	})
}

// accept makes rows known that are in the database.
func (w *writer) accept(rows []committed) {
	entries := make([]*entry, len(rows))
	for i, r := range rows {
		entries[i] = r.entry
	}
	w.index.apply(entries)
	w.accepted(rows)
}

// plan decides what each write of a batch does, given what the index knows and
// the writes before it in the batch: the rows to insert and the outcomes.
func plan(x *index, batch []*write) (rows []committed, outs []outcome) {
	next := x.newest() + 1
	known := make(map[string]latest, len(batch))
	outs = make([]outcome, len(batch))
	for i, req := range batch {
		was, ok := known[req.key]
		if !ok {
			was = x.latest(req.key)
		}
		e := req.row(next, was)
		if e == nil {
			continue
		}
		next++
		known[req.key] = latest{id: e.id, created: e.created, version: e.version, deleted: e.deleted}
		rows = append(rows, committed{entry: e, plain: req.plain})
		outs[i] = outcome{id: e.id, prev: e.prev, changed: true}
	}
	return rows, outs
}

// row returns the row that the write makes of the latest one, nil for none.
func (w *write) row(id int64, was latest) *entry {
	e := &entry{id: id, version: 1, lease: w.lease, name: w.key, value: w.value}
	replaces := was.lives()
	switch w.operation {
	case create:
		if replaces {
			return nil
		}
	case update, remove:
		compares := w.operation == update || w.revision != 0
		if !replaces || compares && was.id != w.revision {
			return nil
		}
	}
	if replaces {
		e.prev, e.version, e.created = was.id, was.version+1, was.created
		if e.created == 0 {
			e.created = was.id
		}
	}
	if w.operation == remove {
		e.created, e.version, e.lease, e.deleted, e.value = 0, 0, 0, true, []byte{}
	}
	return e
}

// errBehind says that nothing was written because the database holds rows that
// the index lacked.
var errBehind = errors.New("store: the database has other rows than expected")

// insert writes rows in one transaction.
func (w *writer) insert(ctx context.Context, rows []committed) error {
	// A power of two: few statements are prepared. The rest is filled with
	// rows that are not written.
	n := 1
	for n < len(rows) {
		n *= 2
	}
	args := make([]any, 0, n*rowParameters)
	for _, r := range rows {
		args = append(args, r.id, []byte(r.name), r.prev, r.created, r.version, r.lease, r.deleted, r.value)
	}
	for range (n - len(rows)) * rowParameters {
		args = append(args, nil)
	}
	out, err := w.exec(ctx, newStatement(sqlInsert(n), args...))
	switch {
	case err != nil && !isBusy(err):
		w.stale.Store(true)
	case err == nil && !out.changed:
		w.stale.Store(true)
		return errBehind
	}
	return err
}

// unwritten learns what the database holds and reports whether it is what was
// known: a transaction of unknown outcome was not written.
func (w *writer) unwritten(ctx context.Context) bool {
	was := w.index.newest()
	return w.sync(ctx) == nil && w.index.newest() == was
}

// sync reads rows that the index lacks, if there may be any.
func (w *writer) sync(ctx context.Context) error {
	if !w.stale.Load() {
		return nil
	}
	// In a transaction that writes: it waits for one that is on its way.
	if _, err := w.exec(ctx, newStatement("BEGIN IMMEDIATE")); err != nil {
		return err
	}
	var rows []committed
	err := w.query(ctx, newStatement(sqlRowsAfter, w.index.newest()), func(values []driver.Value) error {
		e, err := scanEntry(values)
		rows = append(rows, committed{entry: e})
		return err
	})
	if err = w.rollback(ctx, err); err != nil {
		return fmt.Errorf("read rows of unknown outcome: %w", err)
	}
	if len(rows) > 0 {
		w.log.Info("store: rows whose outcome was unknown are there", "rows", len(rows), "revision", rows[len(rows)-1].id)
		w.accept(rows)
	}
	w.stale.Store(false)
	return nil
}

// patiently repeats what fails because the database is busy.
func (w *writer) patiently(ctx context.Context, do func() error) error {
	err := whileBusy(ctx, busyLimit, func(err error) bool { return isBusy(err) || errors.Is(err, errBehind) }, do)
	if err != nil && errors.Is(err, ctx.Err()) {
		return rpctypes.ErrGRPCStopped // The writer's own context ends with the Backend.
	}
	return err
}

// transaction applies statements in one transaction. Each of those that come
// here may be repeated, so whether one of unknown outcome was applied is of no
// account.
func (w *writer) transaction(ctx context.Context, statements []statement) error {
	if len(statements) == 0 {
		return w.sync(ctx)
	}
	if len(statements) == 1 {
		_, err := w.exec(ctx, statements[0])
		return err
	}
	if _, err := w.exec(ctx, newStatement("BEGIN IMMEDIATE")); err != nil {
		return err
	}
	for _, st := range statements {
		if _, err := w.exec(ctx, st); err != nil {
			return w.rollback(ctx, err)
		}
	}
	if _, err := w.exec(ctx, newStatement("COMMIT")); err != nil {
		return w.rollback(ctx, err)
	}
	return nil
}

// rollback ends a transaction and returns the cause, if any.
func (w *writer) rollback(ctx context.Context, cause error) error {
	if cause != nil && isLost(cause) {
		return cause
	}
	if _, err := w.exec(ctx, newStatement("ROLLBACK")); err != nil {
		w.drop() // The server rolls back when the connection closes.
	}
	return cause
}

// exec runs one statement.
func (w *writer) exec(ctx context.Context, st statement) (outcome, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), writeTimeout)
	defer cancel()
	stmt, err := w.prepare(ctx, st.query)
	if err != nil {
		return outcome{}, err
	}
	res, err := stmt.(driver.StmtExecContext).ExecContext(ctx, st.args)
	if err != nil {
		w.dropLost(err)
		return outcome{}, err
	}
	n, err := res.RowsAffected()
	return outcome{changed: n > 0}, err
}

// query runs one statement and calls fn for each row.
func (w *writer) query(ctx context.Context, st statement, fn func([]driver.Value) error) (err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), writeTimeout)
	defer cancel()
	stmt, err := w.prepare(ctx, st.query)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			w.dropLost(err)
		}
	}()
	rows, err := stmt.(driver.StmtQueryContext).QueryContext(ctx, st.args)
	if err != nil {
		return err
	}
	defer rows.Close()
	values := make([]driver.Value, len(rows.Columns()))
	for {
		switch err := rows.Next(values); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
		if err := fn(values); err != nil {
			return err
		}
	}
}

// prepare returns the statement of a query, connecting first when there is no
// connection.
func (w *writer) prepare(ctx context.Context, query string) (driver.Stmt, error) {
	if err := w.connect(ctx); err != nil {
		return nil, err
	}
	if stmt, ok := w.prepared[query]; ok {
		return stmt, nil
	}
	stmt, err := w.conn.(driver.ConnPrepareContext).PrepareContext(ctx, query)
	if err != nil {
		w.dropLost(err)
		return nil, fmt.Errorf("prepare: %w", err)
	}
	w.prepared[query] = stmt
	return stmt, nil
}

func (w *writer) connect(ctx context.Context) error {
	if w.conn != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, connectLimit)
	defer cancel()
	conn, err := w.connector.Connect(ctx)
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	if _, ok := conn.(driver.ConnPrepareContext); !ok {
		return errors.Join(errors.New("connect: driver without contexts"), conn.Close())
	}
	w.conn, w.prepared = conn, map[string]driver.Stmt{}
	return nil
}

func (w *writer) dropLost(err error) {
	if isLost(err) {
		w.drop()
	}
}

// drop closes the connection; its statements go with it.
func (w *writer) drop() {
	if w.conn == nil {
		return
	}
	if err := w.conn.Close(); err != nil {
		w.log.Debug("store: close the writer's connection", "error", err)
	}
	w.conn, w.prepared = nil, nil
}
