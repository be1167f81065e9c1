package store

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

const (
	// maxBatch bounds how many writes share a transaction, maxBatchBytes
	// their values: a transaction is one entry of the raft log.
	maxBatch      = 64
	maxBatchBytes = 1 << 20
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

// errAmbiguous marks a COMMIT that failed in a way that does not say whether
// the transaction was written.
var errAmbiguous = errors.New("outcome of the commit is unknown")

// write is one request to the writer: statements that are applied together.
type write struct {
	statements []statement
	bytes      int
	// revises says that a row the last statement inserts is a revision. Of
	// other statements SQLite tells the id of an earlier insertion, be it one
	// that was rolled back.
	revises bool

	ctx  context.Context
	done chan outcome // buffered, receives once
}

// outcome is what became of a write: whether the last statement changed
// anything and, when the write revises, the revision.
type outcome struct {
	id      int64
	changed bool
	err     error
}

// writer is the only one that writes to the database. It owns a connection of
// its own rather than one of database/sql's pool, because that repeats a
// statement when a connection breaks, whether or not it had been committed.
type writer struct {
	connector driver.Connector
	log       *slog.Logger
	queue     chan *write
	committed func(id int64) // called before a write's outcome is delivered

	conn     driver.Conn
	prepared map[string]driver.Stmt
}

func newWriter(connector driver.Connector, log *slog.Logger, committed func(int64)) *writer {
	return &writer{connector: connector, log: log, queue: make(chan *write, maxBatch), committed: committed}
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
// longer fits is returned apart. Writes whose callers have gone are dropped.
func (w *writer) gather(first *write) (batch []*write, next *write) {
	size := 0
	add := func(req *write) bool {
		if err := req.ctx.Err(); err != nil {
			req.done <- outcome{err: err}
			return true
		}
		if len(batch) > 0 && size+req.bytes > maxBatchBytes {
			next = req
			return false
		}
		batch = append(batch, req)
		size += req.bytes
		return true
	}
	if !add(first) {
		return batch, next
	}
	for len(batch) < maxBatch {
		select {
		case req := <-w.queue:
			if !add(req) {
				return batch, next
			}
		default:
			return batch, next
		}
	}
	return batch, next
}

// apply commits a batch, together if that works and one by one if not.
func (w *writer) apply(ctx context.Context, batch []*write) {
	if len(batch) > 1 {
		outs, err := w.transaction(ctx, batch)
		if err == nil {
			w.deliver(batch, outs)
			return
		}
		if isLost(err) || errors.Is(err, errAmbiguous) {
			w.log.Warn("store: outcome of a transaction is unknown", "writes", len(batch), "error", err)
			for _, req := range batch {
				req.done <- outcome{err: err}
			}
			return
		}
		w.log.Debug("store: transaction failed, writes are applied one by one", "writes", len(batch), "error", err)
	}
	for _, req := range batch {
		out := w.single(ctx, req)
		w.deliver([]*write{req}, []outcome{out})
	}
}

func (w *writer) deliver(batch []*write, outs []outcome) {
	for i, out := range outs {
		if batch[i].revises && out.err == nil && out.changed {
			w.committed(out.id)
		}
	}
	for i, req := range batch {
		req.done <- outs[i]
	}
}

// single applies one write, repeating it while the database is busy.
func (w *writer) single(ctx context.Context, req *write) outcome {
	deadline := time.Now().Add(busyLimit)
	for wait := busyFirst; ; wait = min(2*wait, busyMost) {
		var out outcome
		if len(req.statements) == 1 {
			out, out.err = w.exec(ctx, req.statements[0])
		} else {
			outs, err := w.transaction(ctx, []*write{req})
			if err == nil {
				return outs[0]
			}
			out.err = err
		}
		if !isBusy(out.err) || time.Now().After(deadline) {
			return out
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return outcome{err: rpctypes.ErrGRPCStopped}
		case <-timer.C:
		}
	}
}

// transaction applies the batch in one transaction. On error nothing was
// written, unless isLost or errAmbiguous.
func (w *writer) transaction(ctx context.Context, batch []*write) ([]outcome, error) {
	if _, err := w.exec(ctx, newStatement("BEGIN IMMEDIATE")); err != nil {
		return nil, err
	}
	outs := make([]outcome, len(batch))
	for i, req := range batch {
		for _, st := range req.statements {
			out, err := w.exec(ctx, st)
			if err != nil {
				return nil, w.rollback(ctx, err)
			}
			outs[i] = out
		}
	}
	_, err := w.exec(ctx, newStatement("COMMIT"))
	switch {
	case err == nil:
		return outs, nil
	case isBusy(err) || isLost(err):
		return nil, w.rollback(ctx, err)
	default:
		// Applied again, a create that was written would be told that its
		// key exists.
		w.drop()
		return nil, fmt.Errorf("%w: %w", errAmbiguous, err)
	}
}

// rollback ends a failed transaction and returns its cause.
func (w *writer) rollback(ctx context.Context, cause error) error {
	if isLost(cause) {
		return cause
	}
	if _, err := w.exec(ctx, newStatement("ROLLBACK")); err != nil {
		w.drop() // The server rolls back when the connection closes.
	}
	return cause
}

// exec runs one statement, connecting first when there is no connection.
func (w *writer) exec(ctx context.Context, st statement) (outcome, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), writeTimeout)
	defer cancel()
	if err := w.connect(ctx); err != nil {
		return outcome{}, err
	}
	stmt, ok := w.prepared[st.query]
	if !ok {
		var err error
		stmt, err = w.conn.(driver.ConnPrepareContext).PrepareContext(ctx, st.query)
		if err != nil {
			w.dropLost(err)
			return outcome{}, fmt.Errorf("prepare: %w", err)
		}
		w.prepared[st.query] = stmt
	}
	res, err := stmt.(driver.StmtExecContext).ExecContext(ctx, st.args)
	if err != nil {
		w.dropLost(err)
		return outcome{}, err
	}
	n, err := res.RowsAffected()
	if err != nil {
		return outcome{}, err
	}
	if n == 0 {
		return outcome{}, nil
	}
	id, err := res.LastInsertId()
	return outcome{id: id, changed: true}, err
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
