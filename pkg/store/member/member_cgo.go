//go:build cgo && linux

package member

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"

	"github.com/canonical/go-dqlite/v3"
	"github.com/canonical/go-dqlite/v3/client"
	dqlitedriver "github.com/canonical/go-dqlite/v3/driver"
)

const (
	// A snapshot every 128 entries with at least 256 kept bounds memory and
	// disk: entries are whole pages, and the library's defaults of 1024 and
	// 8192 keep hundreds of megabytes of them.
	snapshotThreshold = 128
	snapshotTrailing  = 256
	// database is the name of the one database.
	database = "cairn"
	// bindAddress lets the kernel choose a free abstract name.
	bindAddress = "@"
)

// Member is a running dqlite member.
type Member struct {
	identity Identity
	node     *dqlite.Node
	private  *privateNet
	log      *slog.Logger
}

// Start runs the member whose data is in dir, which is created when missing.
// A directory without data becomes the first member of a new cluster.
func Start(dir string, log *slog.Logger) (*Member, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("start member: %w", err)
	}
	identity, err := loadIdentity(dir)
	if err != nil {
		return nil, fmt.Errorf("start member: %w", err)
	}
	private, err := newPrivateNet()
	if errors.Is(err, os.ErrPermission) {
		log.Warn("store: no right to make a network namespace: the database's socket is open to every process of this one", "error", err)
		private = nil
	} else if err != nil {
		return nil, fmt.Errorf("start member: %w", err)
	}
	m := &Member{identity: identity, private: private, log: log}
	if err := m.start(dir); err != nil {
		private.close()
		return nil, fmt.Errorf("start member %s: %w", dir, err)
	}
	return m, nil
}

func (m *Member) start(dir string) (err error) {
	m.private.do(func() {
		m.node, err = dqlite.New(m.identity.ID, m.identity.Address, dir,
			dqlite.WithBindAddress(bindAddress),
			dqlite.WithDialFunc(m.dial),
			// Recovery deletes what it takes for corrupt: an operator's
			// decision, or a healthy majority's.
			dqlite.WithAutoRecovery(false),
			dqlite.WithSnapshotParams(dqlite.SnapshotParams{
				Threshold: snapshotThreshold, Trailing: snapshotTrailing, Strategy: dqlite.TrailingStrategyDynamic,
			}))
	})
	if err != nil {
		return err
	}
	if err := m.node.Start(); err != nil {
		return err
	}
	m.log.Info("store: member runs", "id", fmt.Sprintf("%016x", m.identity.ID), "socket", m.node.BindAddress())
	return nil
}

// dial connects to the member with the given address.
func (m *Member) dial(ctx context.Context, address string) (conn net.Conn, err error) {
	if address != m.identity.Address {
		return nil, fmt.Errorf("dial member %s: unknown", address)
	}
	running := m.private.do(func() {
		var d net.Dialer
		conn, err = d.DialContext(ctx, "unix", m.node.BindAddress())
	})
	if !running {
		return nil, fmt.Errorf("dial member %s: %w", address, net.ErrClosed)
	}
	return conn, err
}

// Connector opens connections to the database at the cluster's leader.
func (m *Member) Connector() (driver.Connector, error) {
	store := client.NewInmemNodeStore()
	info := client.NodeInfo{ID: m.identity.ID, Address: m.identity.Address, Role: client.Voter}
	if err := store.Set(context.Background(), []client.NodeInfo{info}); err != nil {
		return nil, fmt.Errorf("member connector: %w", err)
	}
	d, err := dqlitedriver.New(store, dqlitedriver.WithDialFunc(m.dial), dqlitedriver.WithLogFunc(m.logf))
	if err != nil {
		return nil, fmt.Errorf("member connector: %w", err)
	}
	return d.OpenConnector(database)
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
	err := m.node.Close()
	m.private.close()
	if err != nil {
		return fmt.Errorf("stop member: %w", err)
	}
	return nil
}
