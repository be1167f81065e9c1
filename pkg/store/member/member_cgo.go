//go:build cgo && linux

package member

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"

	"github.com/canonical/go-dqlite/v3"
	"github.com/canonical/go-dqlite/v3/client"
)

const (
	// database is the name of the one database.
	database = "cairn"
	// bindAddress lets the kernel choose a free abstract name.
	bindAddress = "@"
)

// Member is a running dqlite member. Its methods may be called from several
// goroutines.
type Member struct {
	identity Identity
	options  Options
	node     *dqlite.Node
	private  *privateNet
	bridges  *bridges
	log      *slog.Logger

	ctx    context.Context // Ends with Close.
	cancel context.CancelFunc

	// turn holds the connection to the own member that is kept for
	// questions, nil if none is open. Who takes it out asks.
	turn chan *client.Client
}

// Start runs the member whose data is in o.Dir.
func Start(o Options) (*Member, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("start member: %w", err)
	}
	if err := makeDir(o.Dir); err != nil {
		return nil, fmt.Errorf("start member: %w", err)
	}
	identity, err := loadIdentity(o.Dir, o.Join)
	if err != nil {
		return nil, fmt.Errorf("start member: %w", err)
	}
	if o.NewTerm {
		if err := beginTerm(o.Dir); err != nil {
			return nil, fmt.Errorf("start member: %w", err)
		}
	}
	private, err := newPrivateNet()
	if errors.Is(err, os.ErrPermission) {
		o.Logger.Warn("store: no right to make a network namespace: the database's socket is open to every process of this one", "error", err)
		private = nil
	} else if err != nil {
		return nil, fmt.Errorf("start member: %w", err)
	}
	m := &Member{
		identity: identity, options: o, private: private, bridges: newBridges(), log: o.Logger,
		turn: make(chan *client.Client, 1),
	}
	m.turn <- nil
	m.ctx, m.cancel = context.WithCancel(context.Background())
	if err := m.start(); err != nil {
		m.cancel()
		m.bridges.close()
		private.close()
		return nil, fmt.Errorf("start member %s: %w", o.Dir, err)
	}
	return m, nil
}

func (m *Member) start() (err error) {
	if err := resumeBootstrap(m.options.Dir); err != nil {
		return err
	}
	m.private.do(func() {
		m.node, err = dqlite.New(m.identity.ID, m.identity.Address, m.options.Dir,
			dqlite.WithBindAddress(bindAddress),
			dqlite.WithDialFunc(m.dial),
			// Recovery deletes what it takes for corrupt: an operator's
			// decision, or a healthy majority's.
			dqlite.WithAutoRecovery(false),
			dqlite.WithNetworkLatency(m.options.Latency),
			dqlite.WithFailureDomain(m.options.FailureDomain),
			dqlite.WithSnapshotParams(dqlite.SnapshotParams{
				Threshold: uint64(m.options.Snapshot.Threshold),
				Trailing:  uint64(m.options.Snapshot.Trailing),
				Strategy:  dqlite.TrailingStrategyDynamic,
			}))
	})
	if err != nil {
		return err
	}
	if err := m.node.Start(); err != nil {
		return err
	}
	if err := endBootstrap(m.options.Dir); err != nil {
		return errors.Join(err, m.node.Close())
	}
	m.log.Info("store: member runs", "id", fmt.Sprintf("%016x", m.identity.ID), "socket", m.node.BindAddress())
	return nil
}

// ID returns the member's number.
func (m *Member) ID() uint64 { return m.identity.ID }

// Term returns the raft term that this member has stored, see [ReadTerm].
func (m *Member) Term() (uint64, error) { return ReadTerm(m.options.Dir) }

// dial connects dqlite to another member. The context ends with the call.
func (m *Member) dial(_ context.Context, address string) (net.Conn, error) {
	id, err := ParseName(address)
	if err != nil {
		return nil, fmt.Errorf("dial: %w", err)
	}
	if m.options.Dial == nil || id == m.identity.ID {
		return nil, fmt.Errorf("dial %s: no other member", address)
	}
	return m.bridges.dial(id, m.options.Dial)
}

// dialClient connects a client to this member. A client that is told of
// another leader may not follow: it would take the way of raft's messages.
func (m *Member) dialClient(ctx context.Context, address string) (net.Conn, error) {
	if address != m.identity.Address {
		return nil, fmt.Errorf("%w: %s is", ErrNotLeader, address)
	}
	return m.dialSelf(ctx)
}

// dialSelf connects to the member's own socket.
func (m *Member) dialSelf(ctx context.Context) (conn net.Conn, err error) {
	running := m.private.do(func() {
		var d net.Dialer
		conn, err = d.DialContext(ctx, "unix", m.node.BindAddress())
	})
	if !running {
		return nil, fmt.Errorf("dial %s: %w", m.identity.Address, net.ErrClosed)
	}
	return conn, err
}

func (m *Member) logf(level client.LogLevel, format string, args ...any) {
	to := map[client.LogLevel]slog.Level{
		client.LogDebug: slog.LevelDebug, client.LogInfo: slog.LevelDebug,
		client.LogWarn: slog.LevelWarn, client.LogError: slog.LevelError,
	}
	m.log.Log(context.Background(), to[level], "dqlite: "+strings.TrimSpace(fmt.Sprintf(format, args...)))
}

// Close stops the member. Connections break.
func (m *Member) Close() error {
	m.cancel()
	if c := <-m.turn; c != nil {
		_ = c.Close()
	}
	err := m.node.Close()
	m.bridges.close()
	m.private.close()
	if err != nil {
		return fmt.Errorf("stop member: %w", err)
	}
	return nil
}
