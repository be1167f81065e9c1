// Package notify is the server side of sd_notify(3): the readiness protocol between services and their supervisor.
//
// Each service has a datagram socket of its own, whose path it finds in NOTIFY_SOCKET. The kernel attaches the
// sender's pid (SCM_CREDENTIALS), translated into our PID namespace, so that the supervisor can ignore anyone but the
// service's main process. MAINPID= is not honoured: nothing here forks into the background.
package notify

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Socket receives the notifications of one service.
type Socket struct {
	path string
	conn *net.UnixConn
}

// Listen creates the socket <dir>/<name>.sock, mode 0600, in place of one that an earlier run left.
func Listen(dir, name string) (*Socket, error) {
	path := filepath.Join(dir, name+".sock")
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("remove old notify socket: %w", err)
	}
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return nil, fmt.Errorf("listen on notify socket: %w", err)
	}
	s := &Socket{path: path, conn: conn}
	if err := s.prepare(); err != nil {
		conn.Close()
		return nil, err
	}
	return s, nil
}

func (s *Socket) prepare() error {
	if err := os.Chmod(s.path, 0o600); err != nil {
		return fmt.Errorf("restrict notify socket: %w", err)
	}
	raw, err := s.conn.SyscallConn()
	if err != nil {
		return fmt.Errorf("notify socket %s: %w", s.path, err)
	}
	var optErr error
	err = raw.Control(func(fd uintptr) {
		optErr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSCRED, 1)
	})
	if err := errors.Join(err, optErr); err != nil {
		return fmt.Errorf("notify socket %s: pass credentials: %w", s.path, err)
	}
	return nil
}

// Path is what the service gets as NOTIFY_SOCKET.
func (s *Socket) Path() string { return s.path }

// Close ends Serve and removes the socket.
func (s *Socket) Close() error {
	err := s.conn.Close()
	if rmErr := os.Remove(s.path); rmErr != nil && !errors.Is(rmErr, fs.ErrNotExist) {
		err = errors.Join(err, rmErr)
	}
	return err
}

// Serve calls receive for every well-formed notification and bad for the others, until Close.
func (s *Socket) Serve(receive func(Message), bad func(error)) {
	buf := make([]byte, maxDatagram+1)
	oob := make([]byte, unix.CmsgSpace(unix.SizeofUcred)+unix.CmsgSpace(16*4)) // room for descriptors, to close them
	backoff := time.NewTimer(0)
	defer backoff.Stop()
	for {
		n, oobn, _, _, err := s.conn.ReadMsgUnix(buf, oob)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			bad(fmt.Errorf("read notify socket %s: %w", s.path, err))
			backoff.Reset(time.Second) // a lasting error must not spin
			<-backoff.C
			continue
		}
		pid, err := credentials(oob[:oobn])
		if err != nil {
			bad(err)
			continue
		}
		m, err := Parse(buf[:n])
		if err != nil {
			bad(fmt.Errorf("from pid %d: %w", pid, err))
			continue
		}
		m.PID = pid
		receive(m)
	}
}

// credentials returns the sender's pid and closes any descriptors that came along (systemd's FDSTORE is not offered).
func credentials(oob []byte) (int, error) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return 0, fmt.Errorf("parse control message: %w", err)
	}
	pid := 0
	for _, m := range msgs {
		switch {
		case m.Header.Level != unix.SOL_SOCKET:
		case m.Header.Type == unix.SCM_CREDENTIALS:
			cred, err := unix.ParseUnixCredentials(&m)
			if err != nil {
				return 0, fmt.Errorf("parse credentials: %w", err)
			}
			pid = int(cred.Pid)
		case m.Header.Type == unix.SCM_RIGHTS:
			fds, err := unix.ParseUnixRights(&m)
			if err != nil {
				return 0, fmt.Errorf("parse descriptors: %w", err)
			}
			for _, fd := range fds {
				unix.Close(fd)
			}
		}
	}
	if pid == 0 {
		return 0, errors.New("notification without credentials")
	}
	return pid, nil
}
