package cluster

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

// pinLimit is how long the first connection may take to answer.
const pinLimit = 15 * time.Second

// pin is a Connector whose connections all belong to one unbroken time of
// leadership. dqlite takes the database from every connection when its member
// stops being the leader, and does not give it back (conn__on_leadership_lost).
// So a connection that was opened first and still answers proves that
// whatever was opened after it belongs to the same leadership.
type pin struct {
	driver.Connector
	ended func() // called once, when the leadership turns out to be over

	mu    sync.Mutex
	first driver.Conn
	over  bool
}

// newPin opens the first connection. It fails when the member does not lead.
func newPin(ctx context.Context, connector driver.Connector, ended func()) (*pin, error) {
	first, err := connector.Connect(ctx)
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	p := &pin{Connector: connector, ended: ended, first: first}
	if err := p.check(ctx); err != nil {
		return nil, errors.Join(err, p.close())
	}
	return p, nil
}

// check returns nil if the leadership was unbroken until now.
func (p *pin) check(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.over {
		return rpctypes.ErrGRPCLeaderChanged
	}
	// Not the caller's deadline: a request that is cut off would spoil the
	// connection, and with it the leadership's end would be announced.
	asking, cancel := context.WithTimeout(context.WithoutCancel(ctx), pinLimit)
	defer cancel()
	if err := answers(asking, p.first); err == nil {
		return nil
	}
	p.over = true
	p.ended()
	return rpctypes.ErrGRPCLeaderChanged
}

// answers asks the database for something.
func answers(ctx context.Context, conn driver.Conn) error {
	q, ok := conn.(driver.QueryerContext)
	if !ok {
		return errors.New("pin: driver without queries")
	}
	rows, err := q.QueryContext(ctx, "SELECT 1", nil)
	if err != nil {
		return fmt.Errorf("pin: %w", err)
	}
	defer rows.Close()
	value := make([]driver.Value, 1)
	if err := rows.Next(value); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("pin: %w", err)
	}
	return nil
}

// Connect implements driver.Connector.
func (p *pin) Connect(ctx context.Context) (driver.Conn, error) {
	conn, err := p.Connector.Connect(ctx)
	if err == nil {
		if err = p.check(ctx); err == nil {
			return conn, nil
		}
		return nil, errors.Join(err, conn.Close())
	}
	// Why it failed is told by the first connection.
	if lost := p.check(ctx); lost != nil {
		return nil, lost
	}
	return nil, err
}

func (p *pin) close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.over = true
	if err := p.first.Close(); err != nil {
		return fmt.Errorf("pin: %w", err)
	}
	return nil
}
