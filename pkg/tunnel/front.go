package tunnel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"sigs.k8s.io/apiserver-network-proxy/konnectivity-client/proto/client"
)

const (
	// dialTimeout is how long a node tries to reach a target. Webhooks have 10 s by default, of which some must be left.
	dialTimeout = 5 * time.Second
	// answerTimeout bounds one request to a node, connectTimeout all of them for one connection. The apiserver itself
	// would wait for ever.
	answerTimeout  = dialTimeout + 3*time.Second
	connectTimeout = 15 * time.Second
	// attempts bounds how many tunnels are tried when they break.
	attempts = 3
	// closeGrace is how long data that the apiserver sent before it closed may take to be delivered.
	closeGrace = 30 * time.Second
	// stallCheck is how often a connection that does not move is checked for a vanished apiserver's end.
	stallCheck = 10 * time.Second
)

// dialError is a node's answer that it cannot reach the target.
type dialError struct{ text string }

func (e *dialError) Error() string { return e.text }

// connect serves one CONNECT request of the apiserver.
func (s *Server) connect(w http.ResponseWriter, r *http.Request) {
	if !s.enter() {
		return
	}
	defer s.fronts.Done()
	if r.Method != http.MethodConnect {
		http.Error(w, "only CONNECT is served here", http.StatusMethodNotAllowed)
		return
	}
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return
	}
	taken, err := newBufferedConn(conn, rw.Reader)
	if err != nil {
		return
	}
	st, err := s.dial(r.Context(), r.Host)
	if err != nil {
		s.o.Log.Debug("connection not made", "target", r.Host, "error", err)
		// The apiserver shows its users the status line and nothing of the body.
		_, _ = fmt.Fprintf(conn, "HTTP/1.1 %d %s\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", statusOf(err), oneLine(err))
		return
	}
	if _, err := io.WriteString(conn, "HTTP/1.1 200 Connection Established\r\n\r\n"); err != nil {
		s.drop(st)
		return
	}
	s.relay(st, taken)
}

func statusOf(err error) int {
	var answer *dialError
	switch {
	case errors.As(err, &answer):
		return http.StatusBadGateway
	case errors.Is(err, context.DeadlineExceeded):
		return http.StatusGatewayTimeout
	}
	return http.StatusServiceUnavailable
}

func oneLine(err error) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return ' '
		}
		return r
	}, err.Error())
}

// dial gets a connection to address. A tunnel that breaks meanwhile is replaced by another; the answer of a node is final.
func (s *Server) dial(ctx context.Context, address string) (*stream, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	var broken []*session
	for range attempts {
		st, takeErr := s.pool.take(ctx, host, broken)
		if takeErr != nil {
			return nil, errors.Join(takeErr, err)
		}
		if err = s.request(ctx, st, address); err == nil {
			return st, nil
		}
		var answer *dialError
		if errors.As(err, &answer) {
			st.end()
			return nil, fmt.Errorf("by node %s: %w", st.session.node, err)
		}
		s.drop(st)
		err = fmt.Errorf("tunnel of node %s: %w", st.session.node, err)
		broken = append(broken, st.session)
	}
	return nil, err
}

// request asks the node at the other end of st to dial address, and waits for the answer.
func (s *Server) request(ctx context.Context, st *stream, address string) error {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	defer context.AfterFunc(ctx, st.end)()
	st.id = rand.Int64()
	if err := st.send(dialRequest(st.id, address)); err != nil {
		return errors.Join(err, ctx.Err())
	}
	for {
		p, err := st.wire.Recv()
		if err != nil {
			return errors.Join(err, ctx.Err())
		}
		switch p.GetType() {
		case client.PacketType_DIAL_RSP:
			if r := p.GetDialResponse(); r.GetError() != "" {
				return &dialError{r.GetError()}
			}
			return nil
		case client.PacketType_DIAL_CLS, client.PacketType_CLOSE_RSP:
			return &dialError{"the node gave up"}
		default: // of a later version
		}
	}
}

// drop ends a stream whose connection the node may still hold.
func (s *Server) drop(st *stream) {
	s.pool.abandon(st)
	st.end()
}

// relay is a connection of the apiserver that a stream carries.
type relay struct {
	stream  *stream
	conn    *bufferedConn
	waiting atomic.Int64 // since when its last packet to the node waits, in Unix nanoseconds; 0: none does
}

// relay copies between the apiserver's connection and the stream until either ends.
func (s *Server) relay(st *stream, conn *bufferedConn) {
	r := &relay{stream: st, conn: conn}
	s.mu.Lock()
	s.relays[r] = true
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.relays, r)
		s.mu.Unlock()
	}()
	// The tunnel broke, or the server stops.
	defer context.AfterFunc(st.wire.Context(), func() { conn.Close() })()
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		pump(conn, r.send)
		late := time.AfterFunc(closeGrace, func() { s.drop(st) })
		defer late.Stop()
		_ = r.send(closeRequest()) // a stream that fails is closed
		<-st.done
	}()
	if !r.receive() {
		s.pool.abandon(st)
	}
	st.end()
	conn.Close()
	<-sent
}

func (r *relay) send(p *client.Packet) error {
	r.waiting.Store(time.Now().UnixNano())
	defer r.waiting.Store(0)
	return r.stream.send(p)
}

// receive writes what the node sends to the apiserver. It reports whether the node closed the connection.
func (r *relay) receive() bool {
	for {
		p, err := r.stream.wire.Recv()
		if err != nil {
			return false
		}
		switch p.GetType() {
		case client.PacketType_DATA:
			if b := p.GetData().GetData(); len(b) > 0 {
				if _, err := r.conn.Write(b); err != nil {
					return false
				}
			}
		case client.PacketType_CLOSE_RSP:
			return true
		default: // of a later version
		}
	}
}

// lookAfter ends connections that the apiserver left while their targets take nothing more. As long as a packet waits,
// nobody reads from such a connection, and its end would go unseen: a command that ignores its input would run on after
// its user left.
func (s *Server) lookAfter(ctx context.Context) {
	tick := time.NewTicker(stallCheck)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			s.dropLeft(time.Now().Add(-stallCheck))
		}
	}
}

// dropLeft ends the connections that the apiserver closed and whose packets wait since a time before limit.
func (s *Server) dropLeft(limit time.Time) {
	s.mu.Lock()
	var left []*stream
	for r := range s.relays {
		if since := r.waiting.Load(); since != 0 && since < limit.UnixNano() && hungUp(r.conn.Conn) {
			left = append(left, r.stream)
		}
	}
	s.mu.Unlock()
	for _, st := range left {
		s.drop(st)
	}
}
