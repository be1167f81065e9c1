package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/cairn-os/cairn/pkg/store/admin"
	"github.com/cairn-os/cairn/pkg/store/peer"
)

const (
	maxRequest = 1 << 20
	// forwarded marks a request that one member passed on to another, so
	// that it is not passed on again.
	forwarded = "Cairn-Forwarded"
)

// closing tells when a connection was closed.
type closing struct {
	net.Conn
	from   *peer.Identity // of a peer
	once   sync.Once
	closed chan struct{}
}

func (c *closing) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// handler serves the admin API: to peers and, with what only an operator may
// ask, on the operator's socket. What administers or gives data away is for
// servers that are members, not for witnesses.
func (n *Node) handler(operator bool) http.Handler {
	mux := http.NewServeMux()
	guard := n.forServers
	if operator {
		guard = func(h http.HandlerFunc) http.HandlerFunc { return h }
		n.operatorRoutes(mux)
	}
	mux.HandleFunc("GET /v1/status", n.handleStatus)
	mux.HandleFunc("POST /v1/book", n.handleBook)
	mux.HandleFunc("POST /v1/join", forItself(n.atLeader(n.handleJoin)))
	mux.HandleFunc("DELETE /v1/members/{id}", guard(n.atLeader(n.handleRemove)))
	n.forwardedRoutes(mux, guard)
	return http.MaxBytesHandler(mux, maxRequest)
}

// serveHTTP answers requests on l until ctx ends.
func (n *Node) serveHTTP(ctx context.Context, l net.Listener, h http.Handler) error {
	srv := &http.Server{
		Handler: h, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: 2 * time.Minute,
		BaseContext: func(net.Listener) context.Context { return ctx },
		ConnContext: withCaller,
	}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) && ctx.Err() == nil {
		return err
	}
	return nil
}

// serveMember passes a peer's connection to the HTTP server.
func (n *Node) serveMember(ctx context.Context, from uint64, conn net.Conn) {
	who, ok := peer.IdentityOf(conn, from)
	if !ok {
		return
	}
	tracked := &closing{Conn: conn, from: &who, closed: make(chan struct{})}
	if !n.peers.offer(tracked) {
		return
	}
	select {
	case <-tracked.closed:
	case <-ctx.Done():
	}
}

// atLeader calls h on the leader: here, or by passing the request on.
func (n *Node) atLeader(h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		now := n.route()
		switch {
		case now.service != nil:
			h(w, r)
		case now.leader == 0 || now.leader == n.member.ID():
			problem(w, http.StatusServiceUnavailable, errors.New("the store has no leader at the moment: is a majority of its voters up?"))
		case r.Header.Get(forwarded) != "":
			writeJSON(w, http.StatusMisdirectedRequest, admin.Problem{Error: "this member does not lead", Leader: admin.ID(now.leader)})
		default:
			n.forward(w, r, now.leader)
		}
	}
}

// forward passes a request on to the leader and its answer back.
func (n *Node) forward(w http.ResponseWriter, r *http.Request, leader uint64) {
	req, err := http.NewRequestWithContext(r.Context(), r.Method, "http://store"+r.URL.RequestURI(), r.Body)
	if err != nil {
		problem(w, http.StatusBadRequest, err)
		return
	}
	req.Header.Set(forwarded, "1")
	resp, err := n.transport(leader).RoundTrip(req)
	if err != nil {
		problem(w, http.StatusBadGateway, err)
		return
	}
	defer resp.Body.Close()
	w.WriteHeader(resp.StatusCode)
	_, _ = io.Copy(w, resp.Body) // The caller sees a short body.
}

// transport speaks to one member, a connection per request: they are rare.
func (n *Node) transport(id uint64) *http.Transport {
	return &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return n.network.Dial(ctx, id, protocolMember)
	}}
}

// clientOf asks one member.
func (n *Node) clientOf(id uint64) *admin.Client {
	return admin.NewClient(func(ctx context.Context) (net.Conn, error) { return n.network.Dial(ctx, id, protocolMember) })
}

func (n *Node) handleStatus(w http.ResponseWriter, r *http.Request) {
	writeJSON(w, http.StatusOK, n.status(r.Context(), !r.URL.Query().Has("local")))
}

// handleBook exchanges addresses.
func (n *Node) handleBook(w http.ResponseWriter, r *http.Request) {
	var entries []peer.Entry
	if err := json.NewDecoder(r.Body).Decode(&entries); err != nil {
		problem(w, http.StatusBadRequest, err)
		return
	}
	n.merge(callerOf(r.Context()), entries)
	writeJSON(w, http.StatusOK, n.network.Book().All())
}

func writeJSON(w http.ResponseWriter, code int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(body) // The caller sees a short body.
}

func problem(w http.ResponseWriter, code int, err error) {
	writeJSON(w, code, admin.Problem{Error: err.Error()})
}
