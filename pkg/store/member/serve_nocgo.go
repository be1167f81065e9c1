//go:build !cgo || !linux

package member

import "net"

// ServeFrom closes conn.
func (m *Member) ServeFrom(_ uint64, conn net.Conn) { _ = conn.Close() }
