package tunnel

import (
	"bufio"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"
)

const (
	// What a node's client certificate says: Kubernetes' node authorizer reads the same.
	nodePrefix = "system:node:"
	nodesGroup = "system:nodes"
)

// NodeByCertificate identifies nodes for Handler: the client certificate must be of one of roots, which is asked each time,
// and be a kubelet's. The apiserver's port asks for client certificates and leaves it to authentication to verify them, so
// that they are not verified yet where Handler runs.
func NodeByCertificate(roots func() *x509.CertPool) func(*http.Request) (node string, ok bool) {
	return func(r *http.Request) (string, bool) {
		if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
			return "", false
		}
		pool := roots()
		if pool == nil { // would stand for the machine's own list of public authorities
			return "", false
		}
		cert := r.TLS.PeerCertificates[0]
		between := x509.NewCertPool()
		for _, c := range r.TLS.PeerCertificates[1:] {
			between.AddCert(c)
		}
		if _, err := cert.Verify(x509.VerifyOptions{
			Roots: pool, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		}); err != nil {
			return "", false
		}
		node, ok := strings.CutPrefix(cert.Subject.CommonName, nodePrefix)
		return node, ok && node != "" && slices.Contains(cert.Subject.Organization, nodesGroup)
	}
}

// Handler upgrades requests for Path to tunnels. identify returns the name of the node that sends a request, by the client
// certificate that the caller has verified. It must see requests before anything that wraps their ResponseWriter.
func (s *Server) Handler(identify func(*http.Request) (node string, ok bool)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet {
			w.Header().Set("Allow", http.MethodGet)
			http.Error(w, "a tunnel is asked for by GET", http.StatusMethodNotAllowed)
			return
		}
		if !strings.EqualFold(r.Header.Get("Upgrade"), upgrade) || !hasToken(r.Header.Values("Connection"), "upgrade") || r.ProtoMajor != 1 {
			w.Header().Set("Upgrade", upgrade)
			http.Error(w, "a tunnel needs HTTP/1.1 and Upgrade: "+upgrade, http.StatusUpgradeRequired)
			return
		}
		node, ok := identify(r)
		if !ok || node == "" {
			http.Error(w, "a tunnel needs the client certificate of a node", http.StatusForbidden)
			return
		}
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			http.Error(w, "take over the connection: "+err.Error(), http.StatusInternalServerError)
			return
		}
		if err := s.accept(node, conn, rw.Reader); err != nil {
			s.o.Log.Warn("tunnel not made", "node", node, "remote", r.RemoteAddr, "error", err)
			conn.Close()
		}
	})
}

func hasToken(values []string, token string) bool {
	for part := range strings.SplitSeq(strings.Join(values, ","), ",") {
		if strings.EqualFold(strings.TrimSpace(part), token) {
			return true
		}
	}
	return false
}

// accept answers the request for a tunnel and hands the connection to gRPC.
func (s *Server) accept(node string, conn net.Conn, r *bufio.Reader) error {
	if err := conn.SetDeadline(time.Now().Add(handshakeTimeout)); err != nil {
		return fmt.Errorf("set deadline: %w", err)
	}
	if _, err := fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", upgrade); err != nil {
		return fmt.Errorf("answer the request: %w", err)
	}
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return fmt.Errorf("clear deadline: %w", err)
	}
	taken, err := newBufferedConn(conn, r)
	if err != nil {
		return err
	}
	tune(conn)
	c := &nodeConn{taken, &session{node: node, conn: conn}, s.pool}
	s.pool.enter(c.session)
	if err := s.arrived.give(c); err != nil {
		s.pool.leave(c.session)
		return err
	}
	return nil
}

// nodeConn is a tunnel's connection with what is known of its other end.
type nodeConn struct {
	*bufferedConn
	session *session
	pool    *pool
}

// Close is called by gRPC whatever ends the connection.
func (c *nodeConn) Close() error {
	c.pool.leave(c.session)
	return c.bufferedConn.Close()
}

// certified hands the name in the client certificate on to gRPC: TLS has happened before.
type certified struct{}

var _ credentials.TransportCredentials = certified{}

func (certified) ServerHandshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	n, ok := c.(*nodeConn)
	if !ok {
		return nil, nil, fmt.Errorf("connection of type %T", c)
	}
	return c, n.session, nil
}

func (certified) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("for servers only")
}

func (certified) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: upgrade}
}
func (c certified) Clone() credentials.TransportCredentials { return c }
func (certified) OverrideServerName(string) error           { return nil }

// handover is a net.Listener for connections that were accepted elsewhere.
type handover struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newHandover() *handover {
	return &handover{conns: make(chan net.Conn), closed: make(chan struct{})}
}

// give waits until the connection is accepted. On an error it stays the caller's.
func (h *handover) give(c net.Conn) error {
	late := time.NewTimer(handshakeTimeout)
	defer late.Stop()
	select {
	case h.conns <- c:
		return nil
	case <-h.closed:
		return net.ErrClosed
	case <-late.C:
		return errors.New("tunnels are not served yet")
	}
}

func (h *handover) Accept() (net.Conn, error) {
	select {
	case c := <-h.conns:
		return c, nil
	case <-h.closed:
		return nil, net.ErrClosed
	}
}

func (h *handover) Close() error {
	h.once.Do(func() { close(h.closed) })
	return nil
}

func (h *handover) Addr() net.Addr { return &net.UnixAddr{Name: Path, Net: "upgrade"} }
