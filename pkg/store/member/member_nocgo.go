//go:build !cgo || !linux

package member

import (
	"context"
	"database/sql/driver"
	"errors"
	"net"
)

// ErrNoCgo says that this program was built without libdqlite.
var ErrNoCgo = errors.New("store member: built without cgo; build with CGO_ENABLED=1 and libdqlite")

// Member cannot run without cgo.
type Member struct{}

// Start returns ErrNoCgo.
func Start(Options) (*Member, error) { return nil, ErrNoCgo }

// ID returns 0.
func (m *Member) ID() uint64 { return 0 }

// ServeFrom closes conn.
func (m *Member) ServeFrom(_ uint64, conn net.Conn) { _ = conn.Close() }

// Leader returns ErrNoCgo.
func (m *Member) Leader(context.Context) (Info, error) { return Info{}, ErrNoCgo }

// Members returns ErrNoCgo.
func (m *Member) Members(context.Context) ([]Info, error) { return nil, ErrNoCgo }

// Add returns ErrNoCgo.
func (m *Member) Add(context.Context, uint64) error { return ErrNoCgo }

// Assign returns ErrNoCgo.
func (m *Member) Assign(context.Context, uint64, Role) error { return ErrNoCgo }

// Remove returns ErrNoCgo.
func (m *Member) Remove(context.Context, uint64) error { return ErrNoCgo }

// Transfer returns ErrNoCgo.
func (m *Member) Transfer(context.Context, uint64) error { return ErrNoCgo }

// Term returns ErrNoCgo.
func (m *Member) Term() (uint64, error) { return 0, ErrNoCgo }

// Connector returns ErrNoCgo.
func (m *Member) Connector() (driver.Connector, error) { return nil, ErrNoCgo }

// Close returns ErrNoCgo.
func (m *Member) Close() error { return ErrNoCgo }

// ReadLast returns ErrNoCgo.
func ReadLast(string) (term, index uint64, err error) { return 0, 0, ErrNoCgo }

// Reconfigure returns ErrNoCgo.
func Reconfigure(string, []Info) error { return ErrNoCgo }
