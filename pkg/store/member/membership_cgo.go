//go:build cgo && linux

package member

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"reflect"

	"github.com/canonical/go-dqlite/v3/client"
	dqlitedriver "github.com/canonical/go-dqlite/v3/driver"
)

// errClosed is the cause of what Close interrupts.
var errClosed = fmt.Errorf("member closes: %w", net.ErrClosed)

// sqliteError is SQLITE_ERROR, to which dqlite reduces most of raft's errors.
const sqliteError = 1

// Leader returns the leader as this member knows it, and nothing if it knows
// none: dqlite tells the leader to voters only, and to nobody while leadership
// is being transferred.
func (m *Member) Leader(ctx context.Context) (Info, error) {
	var leader *client.NodeInfo
	err := m.ask(ctx, func(ctx context.Context, c *client.Client) (err error) {
		leader, err = c.Leader(ctx)
		return err
	})
	if err != nil {
		return Info{}, fmt.Errorf("leader: %w", err)
	}
	return Info{ID: leader.ID, Address: leader.Address, Role: Voter}, nil
}

// Members returns the configuration as this member knows it, empty for one
// that waits to be added. It may hold a change that is not committed yet.
func (m *Member) Members(ctx context.Context) ([]Info, error) {
	var nodes []client.NodeInfo
	err := m.ask(ctx, func(ctx context.Context, c *client.Client) (err error) {
		nodes, err = c.Cluster(ctx)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("members: %w", err)
	}
	members := make([]Info, 0, len(nodes))
	for _, n := range nodes {
		members = append(members, Info{ID: n.ID, Address: n.Address, Role: Role(n.Role)})
	}
	return members, nil
}

// Add adds a member, as a spare. This member must lead: else the error is
// ErrNotLeader, as it is for the other changes.
func (m *Member) Add(ctx context.Context, id uint64) error {
	err := m.change(ctx, func(c *client.Client) error {
		return c.Add(ctx, client.NodeInfo{ID: id, Address: Name(id), Role: client.Spare})
	})
	if err != nil {
		return fmt.Errorf("add %s: %w", Name(id), err)
	}
	return nil
}

// Assign gives a member a role; that it has it already is no error. A voter to
// be has to catch up first, which dqlite waits for, up to 50 s if it does
// not answer. No other change is possible meanwhile, and when ctx ends
// earlier dqlite goes on nevertheless.
func (m *Member) Assign(ctx context.Context, id uint64, r Role) error {
	if err := m.assign(ctx, id, r); err != nil {
		return fmt.Errorf("make %s a %v: %w", Name(id), r, err)
	}
	return nil
}

func (m *Member) assign(ctx context.Context, id uint64, r Role) error {
	if r < Voter || r > Spare {
		return errors.New("no such role") // dqlite would make it a voter.
	}
	if id == m.identity.ID && r != Voter {
		return errors.New("the leader must vote: transfer leadership first")
	}
	err := m.change(ctx, func(c *client.Client) error { return c.Assign(ctx, id, client.NodeRole(r)) })
	if errorCode(err) != sqliteError {
		return err
	}
	// It tells "has the role" (RAFT_BADROLE) from other errors in words only,
	// and no change is pending or the code would have been SQLITE_BUSY.
	members, membersErr := m.Members(ctx)
	if membersErr != nil {
		return errors.Join(err, membersErr)
	}
	for _, info := range members {
		if info.ID == id && info.Role == r {
			return nil
		}
	}
	return err
}

// Remove removes a member other than the leader.
func (m *Member) Remove(ctx context.Context, id uint64) error {
	if id == m.identity.ID {
		return fmt.Errorf("remove %s: the leader cannot: transfer leadership first", Name(id))
	}
	err := m.change(ctx, func(c *client.Client) error { return c.Remove(ctx, id) })
	if err != nil {
		return fmt.Errorf("remove %s: %w", Name(id), err)
	}
	return nil
}

// Transfer makes another voter the leader. It returns when this member no
// longer leads; who does then is not certain. Writes fail meanwhile.
func (m *Member) Transfer(ctx context.Context, id uint64) error {
	err := m.change(ctx, func(c *client.Client) error { return c.Transfer(ctx, id) })
	if err != nil {
		return fmt.Errorf("transfer leadership to %s: %w", Name(id), err)
	}
	return nil
}

// change calls f with a connection of its own: dqlite answers a change when
// it is done, and nothing else on the same connection meanwhile.
func (m *Member) change(ctx context.Context, f func(*client.Client) error) error {
	ctx, cancel := m.untilClose(ctx)
	defer cancel()
	c, err := m.connect(ctx)
	if err != nil {
		return explain(ctx, err)
	}
	defer context.AfterFunc(ctx, func() { _ = c.Close() })() // go-dqlite heeds deadlines only.
	defer c.Close()
	return explain(ctx, f(c))
}

// ask calls f with the connection that is kept for questions.
func (m *Member) ask(ctx context.Context, f func(context.Context, *client.Client) error) error {
	ctx, cancel := m.untilClose(ctx)
	defer cancel()
	var c *client.Client
	select {
	case c = <-m.turn:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { m.turn <- c }()
	if c == nil {
		fresh, err := m.connect(ctx)
		if err != nil {
			return explain(ctx, err)
		}
		c = fresh
	}
	used := c
	stop := context.AfterFunc(ctx, func() { _ = used.Close() })
	err := f(ctx, used)
	if !stop() || err != nil {
		_ = used.Close()
		c = nil // An answer may still be on its way.
	}
	return explain(ctx, err)
}

// untilClose ends with ctx or with the member.
func (m *Member) untilClose(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(m.ctx, func() { cancel(errClosed) })
	return ctx, func() {
		stop()
		cancel(nil)
	}
}

// connect opens a client connection to the own member.
func (m *Member) connect(ctx context.Context) (*client.Client, error) {
	return client.New(ctx, m.identity.Address, client.WithDialFunc(m.dialClient), client.WithLogFunc(m.logf))
}

// explain turns what callers test for into errors that they can test for.
func explain(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) { // The context's, which tells so a moment later.
		return fmt.Errorf("%w: %w", context.DeadlineExceeded, err)
	}
	switch errorCode(err) {
	case dqlitedriver.ErrIoErrNotLeader, dqlitedriver.ErrIoErrLeadershipLost:
		return fmt.Errorf("%w: %w", ErrNotLeader, err)
	}
	return err
}

// errorCode returns the code in an error of dqlite's, 0 if there is none.
// go-dqlite keeps the type, protocol.ErrRequest, to itself.
func errorCode(err error) int {
	for ; err != nil; err = errors.Unwrap(err) {
		v := reflect.ValueOf(err)
		if v.Kind() != reflect.Struct {
			continue
		}
		if f := v.FieldByName("Code"); f.IsValid() && f.CanUint() {
			return int(f.Uint())
		}
	}
	return 0
}
