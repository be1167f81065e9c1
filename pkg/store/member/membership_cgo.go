//go:build cgo && linux

package member

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/canonical/go-dqlite/v3/client"
	dqlitedriver "github.com/canonical/go-dqlite/v3/driver"
)

// Leader returns the leader as this member knows it, and nothing if it knows
// none: dqlite tells the leader to voters only.
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
	var members []Info
	for _, n := range nodes {
		members = append(members, Info{ID: n.ID, Address: n.Address, Role: Role(n.Role)})
	}
	return members, nil
}

// Add adds a member, as a spare.
func (m *Member) Add(ctx context.Context, id uint64) error {
	err := m.change(ctx, func(ctx context.Context, c *client.Client) error {
		return c.Add(ctx, client.NodeInfo{ID: id, Address: Name(id), Role: client.Spare})
	})
	if err != nil {
		return fmt.Errorf("add %s: %w", Name(id), err)
	}
	return nil
}

// Assign gives a member a role.
func (m *Member) Assign(ctx context.Context, id uint64, r Role) error {
	err := m.change(ctx, func(ctx context.Context, c *client.Client) error {
		return c.Assign(ctx, id, client.NodeRole(r))
	})
	if err != nil {
		return fmt.Errorf("make %s a %v: %w", Name(id), r, err)
	}
	return nil
}

// Remove removes a member.
func (m *Member) Remove(ctx context.Context, id uint64) error {
	err := m.change(ctx, func(ctx context.Context, c *client.Client) error { return c.Remove(ctx, id) })
	if err != nil {
		return fmt.Errorf("remove %s: %w", Name(id), err)
	}
	return nil
}

// Transfer makes another voter the leader.
func (m *Member) Transfer(ctx context.Context, id uint64) error {
	err := m.change(ctx, func(ctx context.Context, c *client.Client) error { return c.Transfer(ctx, id) })
	if err != nil {
		return fmt.Errorf("transfer leadership to %s: %w", Name(id), err)
	}
	return nil
}

// change calls f with a connection of its own: dqlite answers a change when
// it is done, and nothing else on the same connection meanwhile.
func (m *Member) change(ctx context.Context, f func(context.Context, *client.Client) error) error {
	c, err := m.connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { _ = c.Close() })() // go-dqlite heeds deadlines only.
	return explain(ctx, f(ctx, c))
}

// ask calls f with the connection kept for questions.
func (m *Member) ask(ctx context.Context, f func(context.Context, *client.Client) error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.poll == nil {
		c, err := m.connect(ctx)
		if err != nil {
			return err
		}
		m.poll = c
	}
	c := m.poll
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	err := f(ctx, c)
	if !stop() || err != nil {
		_ = c.Close()
		m.poll = nil // An answer may still be on its way.
	}
	return explain(ctx, err)
}

func (m *Member) connect(ctx context.Context) (*client.Client, error) {
	return client.New(ctx, m.identity.Address, client.WithDialFunc(func(ctx context.Context, _ string) (net.Conn, error) {
		return m.dialSelf(ctx)
	}), client.WithLogFunc(m.logf))
}

func (m *Member) closePoll() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.poll != nil {
		_ = m.poll.Close()
		m.poll = nil
	}
}

// explain turns dqlite's codes into errors that callers can test for.
func explain(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var sqlite dqlitedriver.Error
	if errors.As(err, &sqlite) && (sqlite.Code == dqlitedriver.ErrIoErrNotLeader || sqlite.Code == dqlitedriver.ErrIoErrLeadershipLost) {
		return fmt.Errorf("%w: %w", ErrNotLeader, err)
	}
	return err
}
