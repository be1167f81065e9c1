//go:build !cgo || !linux

package member

import (
	"database/sql/driver"
	"errors"
	"log/slog"
)

// ErrNoCgo says that this program was built without libdqlite.
var ErrNoCgo = errors.New("store member: built without cgo; build with CGO_ENABLED=1 and libdqlite")

// Member cannot run without cgo.
type Member struct{}

// Start returns ErrNoCgo.
func Start(string, *slog.Logger) (*Member, error) { return nil, ErrNoCgo }

// Connector returns ErrNoCgo.
func (m *Member) Connector() (driver.Connector, error) { return nil, ErrNoCgo }

// Close returns ErrNoCgo.
func (m *Member) Close() error { return ErrNoCgo }
