//go:build cgo && linux

package member

import (
	"errors"
	"io"
	"log/slog"
	"net"
)

// ServeFrom carries a raft connection that the member with the ID from opened,
// which must greet as itself. It returns when the connection ends, which it
// closes.
func (m *Member) ServeFrom(from uint64, conn net.Conn) {
	done := make(chan struct{})
	running := m.bridges.run(func() {
		defer close(done)
		defer conn.Close()
		if err := m.serve(from, conn); err != nil {
			level := slog.LevelWarn
			if netErr := net.Error(nil); errors.Is(err, io.EOF) || errors.As(err, &netErr) || errors.Is(err, net.ErrClosed) {
				level = slog.LevelDebug // It ended before it began.
			}
			m.log.Log(m.ctx, level, "store: raft connection refused", "from", conn.RemoteAddr(), "error", err)
		}
	})
	if !running {
		_ = conn.Close()
		return
	}
	<-done
}

func (m *Member) serve(from uint64, conn net.Conn) error {
	greeting, err := m.bridges.readGreeting(conn, from)
	if err != nil {
		return err
	}
	local, err := m.dialSelf(m.ctx)
	if err != nil {
		return err
	}
	if _, err := local.Write(greeting); err != nil {
		return errors.Join(err, local.Close())
	}
	m.bridges.carry(local, conn)
	return nil
}
