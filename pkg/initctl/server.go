package initctl

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"runtime/debug"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cairn-os/cairn/pkg/status"
)

// Handler is what init does for its clients. Its methods are called concurrently and must return soon; Reboot and
// PowerOff only begin the shutdown.
type Handler interface {
	Status() status.Status
	Start(process string) error
	Stop(process string) error
	Restart(process string) error
	Reboot() error
	PowerOff() error
	// Announce prints "cairn: <text>" on the console. A mark that is not "" goes, with the time, into the status's
	// timeline: once per name and boot, so that a restarted client finds what it did before.
	Announce(text, mark string)
}

// Confirmer is a Handler of a machine with slots.
type Confirmer interface {
	// Confirm ends the deadline of a trial when the slot state on the disk says that the running slot is confirmed, and
	// is an error otherwise. Where nothing is on trial it changes nothing. It may take some seconds: the disk is asked.
	Confirm() error
}

var errNoSlots = errors.New("confirm: this node has no slots")

// Server answers clients on a unix socket.
type Server struct {
	ln   *net.UnixListener
	h    Handler
	logf func(format string, args ...any)
	uid  uint32        // the only user that is served
	slot chan struct{} // bounds the open connections
}

const (
	maxClients = 16
	ioTimeout  = 5 * time.Second
)

// Listen makes the socket at path, mode 0600, in place of one that an earlier run left. Only processes of this
// process's own user (root, for init) are served.
func Listen(path string, h Handler, logf func(format string, args ...any)) (*Server, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("remove old control socket: %w", err)
	}
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen on control socket: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		ln.Close()
		return nil, fmt.Errorf("restrict control socket: %w", err)
	}
	return &Server{ln: ln, h: h, logf: logf, uid: uint32(os.Geteuid()), slot: make(chan struct{}, maxClients)}, nil
}

// Serve answers until ctx ends, then removes the socket and waits for the open requests.
func (s *Server) Serve(ctx context.Context) error {
	defer context.AfterFunc(ctx, func() { s.ln.Close() })()
	defer s.ln.Close()
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		conn, err := s.ln.AcceptUnix()
		if ctx.Err() != nil {
			if err == nil {
				conn.Close()
			}
			return nil
		}
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return fmt.Errorf("accept on control socket: %w", err)
			}
			s.logf("control socket: accept: %v", err)
			if !pause(ctx, time.Second) { // out of descriptors, most likely
				return nil
			}
			continue
		}
		select {
		case s.slot <- struct{}{}:
		case <-ctx.Done():
			conn.Close()
			return nil
		}
		wg.Go(func() {
			defer func() { <-s.slot }()
			s.serve(conn)
		})
	}
}

func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// serve answers one connection. Nothing a client sends may take PID 1 down.
func (s *Server) serve(conn *net.UnixConn) {
	defer conn.Close()
	defer func() {
		if v := recover(); v != nil {
			s.logf("control socket: panic: %v\n%s", v, debug.Stack())
		}
	}()
	if err := conn.SetDeadline(time.Now().Add(ioTimeout)); err != nil {
		s.logf("control socket: deadline: %v", err)
		return
	}
	res, err := s.answer(conn)
	if err != nil {
		res = response{Error: err.Error()}
	}
	data, err := json.Marshal(res)
	if err != nil {
		s.logf("control socket: encode: %v", err)
		return
	}
	if _, err := conn.Write(append(data, '\n')); err != nil && !errors.Is(err, unix.EPIPE) {
		s.logf("control socket: answer: %v", err)
	}
}

func (s *Server) answer(conn *net.UnixConn) (response, error) {
	if err := s.authorize(conn); err != nil {
		return response{}, err
	}
	line, err := bufio.NewReader(io.LimitReader(conn, maxRequest+1)).ReadBytes('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return response{}, fmt.Errorf("read request: %w", err)
	}
	req, err := ParseRequest(line)
	if err != nil {
		return response{}, err
	}
	return s.perform(req)
}

func (s *Server) perform(req Request) (response, error) {
	switch req.Verb {
	case VerbStatus:
		st := s.h.Status()
		return response{Status: &st}, nil
	case VerbStart:
		return response{}, s.h.Start(req.Process)
	case VerbStop:
		return response{}, s.h.Stop(req.Process)
	case VerbRestart:
		return response{}, s.h.Restart(req.Process)
	case VerbReboot:
		return response{}, s.h.Reboot()
	case VerbPowerOff:
		return response{}, s.h.PowerOff()
	case VerbAnnounce:
		s.h.Announce(req.Text, req.Mark)
		return response{}, nil
	case VerbConfirm:
		if c, ok := s.h.(Confirmer); ok {
			return response{}, c.Confirm()
		}
		return response{}, errNoSlots
	default:
		return response{}, fmt.Errorf("%w: unknown verb %q", ErrRequest, req.Verb)
	}
}

// authorize checks who connected, which file modes alone do not after a bind mount into some pod.
func (s *Server) authorize(conn *net.UnixConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return fmt.Errorf("peer credentials: %w", err)
	}
	var cred *unix.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err := errors.Join(err, credErr); err != nil {
		return fmt.Errorf("peer credentials: %w", err)
	}
	if cred.Uid != s.uid {
		return fmt.Errorf("permission denied: user %d is not served", cred.Uid)
	}
	return nil
}
