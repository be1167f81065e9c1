//go:build cgo && linux

package member

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"

	"github.com/canonical/go-dqlite/v3/client"
	dqlitedriver "github.com/canonical/go-dqlite/v3/driver"
)

// settings are made on each connection.
var settings = []string{
	// Debian's SQLite overwrites what is deleted with zeros: compaction would
	// send every page that it frees through raft's log. Kubernetes' secrets are
	// encrypted before they come here.
	"PRAGMA secure_delete = OFF",
	// KiB. The pages are in memory already, in dqlite's file system: SQLite's
	// cache, 2 MB for each connection, holds them once more.
	"PRAGMA cache_size = -256",
}

// Connector opens connections to this member's own database server. Connecting
// fails at once unless it leads.
//
// dqlite takes the database from all connections when its member stops
// leading, and does not give it back: one that still answers has
// belonged to the same, unbroken leadership since it was opened.
func (m *Member) Connector() (driver.Connector, error) {
	store := client.NewInmemNodeStore()
	info := client.NodeInfo{ID: m.identity.ID, Address: m.identity.Address, Role: client.Voter}
	if err := store.Set(context.Background(), []client.NodeInfo{info}); err != nil {
		return nil, fmt.Errorf("member connector: %w", err)
	}
	d, err := dqlitedriver.New(store, dqlitedriver.WithDialFunc(m.dialClient), dqlitedriver.WithLogFunc(m.logf),
		dqlitedriver.WithRetryLimit(1))
	if err != nil {
		return nil, fmt.Errorf("member connector: %w", err)
	}
	c, err := d.OpenConnector(database)
	if err != nil {
		return nil, fmt.Errorf("member connector: %w", err)
	}
	return connector{c}, nil
}

// connector makes settings on the connections that it opens.
type connector struct{ driver.Connector }

// Connect implements driver.Connector.
func (c connector) Connect(ctx context.Context) (driver.Conn, error) {
	conn, err := c.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	for _, s := range settings {
		if err := set(ctx, conn, s); err != nil {
			return nil, errors.Join(fmt.Errorf("%s: %w", s, err), conn.Close())
		}
	}
	return conn, nil
}

// set runs a statement as a query: some settings answer with their value.
func set(ctx context.Context, conn driver.Conn, statement string) error {
	q, ok := conn.(driver.QueryerContext)
	if !ok {
		return errors.New("driver without queries")
	}
	rows, err := q.QueryContext(ctx, statement, nil)
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
	}
}
