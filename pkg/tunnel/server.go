package tunnel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"sigs.k8s.io/apiserver-network-proxy/proto/agent"
	"sigs.k8s.io/apiserver-network-proxy/proto/header"
)

// maxStreams bounds the connections that one tunnel carries at a time.
const maxStreams = 4096

// ServerOptions say what a Server needs.
type ServerOptions struct {
	// Socket is the unix socket for the apiserver. Its directory is made when it lacks, and is for this server alone.
	Socket string
	// Node is the name of the node on the same machine; connections to no node in particular go through it.
	Node string
	// Addresses says which addresses belong to a node, as the cluster recorded it; nil: none do, and nodes are found by
	// name alone. It must not believe what kubelets write themselves. It is asked for each connection, so that a node that
	// registers later or moves is found; calls are concurrent.
	Addresses func(node string) []netip.Addr
	// IsServer tells the nodes that may carry connections to pods and Services while the own node has no tunnel; nil: none.
	// Calls are concurrent.
	IsServer func(node string) bool
	Log      *slog.Logger
}

// Server joins the apiserver's connections to the nodes' tunnels. Its methods may be called at any time.
type Server struct {
	o       ServerOptions
	pool    *pool
	arrived *handover
	grpc    *grpc.Server

	mu      sync.Mutex
	stopped bool
	relays  map[*relay]bool
	fronts  sync.WaitGroup // not added to once stopped
}

// NewServer makes a server, which works once Run does.
func NewServer(o ServerOptions) (*Server, error) {
	if !filepath.IsAbs(o.Socket) {
		return nil, fmt.Errorf("tunnel: socket %q is no absolute path", o.Socket)
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{o: o, pool: newPool(o), arrived: newHandover(), relays: map[*relay]bool{}}
	s.grpc = grpc.NewServer(
		grpc.Creds(certified{}), grpc.ConnectionTimeout(handshakeTimeout), grpc.MaxConcurrentStreams(maxStreams),
		grpc.MaxRecvMsgSize(maxPacket), grpc.StaticStreamWindowSize(streamWindow), grpc.StaticConnWindowSize(sessionWindow),
		grpc.ReadBufferSize(readBuffer), grpc.WriteBufferSize(writeBuffer), grpc.SharedWriteBuffer(true), grpc.WaitForHandlers(true),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: pingAfter, Timeout: pingTimeout}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: pingAfter, PermitWithoutStream: true}),
	)
	agent.RegisterAgentServiceServer(s.grpc, &service{o: o, pool: s.pool})
	return s, nil
}

// Run serves the apiserver's socket and the tunnels until ctx ends. It may be called once.
func (s *Server) Run(ctx context.Context) error {
	l, err := listen(s.o.Socket)
	if err != nil {
		return fmt.Errorf("listen for the apiserver's connections: %w", err)
	}
	asked := ctx
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	front := &http.Server{
		Handler: http.HandlerFunc(s.connect), ReadHeaderTimeout: handshakeTimeout,
		BaseContext: func(net.Listener) context.Context { return ctx },
		ErrorLog:    slog.NewLogLogger(s.o.Log.Handler(), slog.LevelDebug),
	}
	ends := make(chan error, 2)
	go func() { ends <- front.Serve(l) }()
	go func() { ends <- s.grpc.Serve(s.arrived) }()
	looked := make(chan struct{})
	go func() {
		defer close(looked)
		s.lookAfter(ctx)
	}()
	var failed error
	left := 2
	select {
	case <-ctx.Done():
	case failed = <-ends:
		left--
	}
	cancel()
	// The apiserver's connections end with the streams that carry them.
	_ = front.Close() // it is done with its listener, whatever it says
	s.arrived.Close()
	s.grpc.Stop()
	for range left {
		<-ends
	}
	s.mu.Lock()
	s.stopped = true
	s.mu.Unlock()
	s.fronts.Wait()
	<-looked
	if asked.Err() == nil {
		return fmt.Errorf("serve tunnels: %w", failed)
	}
	return nil
}

// enter counts a request of the apiserver that begins. It reports whether it still may.
func (s *Server) enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.stopped {
		s.fronts.Add(1)
	}
	return !s.stopped
}

// Nodes lists the nodes that have a tunnel to this server, sorted.
func (s *Server) Nodes() []string { return s.pool.connected() }

// End ends the tunnels of a node that may have none any more. It may come back as far as Handler's identify lets it.
func (s *Server) End(node string) { s.pool.end(node) }

// listen opens a unix socket that only root may use.
func listen(path string) (net.Listener, error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return nil, err
	}
	// One that a killed process left.
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// service is the end of AgentService that the nodes call.
type service struct {
	agent.UnimplementedAgentServiceServer
	o    ServerOptions
	pool *pool
}

// Connect is its only call: a node offers a stream for one connection.
func (s *service) Connect(wire agent.AgentService_ConnectServer) error {
	ctx := wire.Context()
	p, ok := peer.FromContext(ctx)
	if !ok {
		return status.Error(codes.Unauthenticated, "no peer")
	}
	e, ok := p.AuthInfo.(*session)
	if !ok {
		return status.Error(codes.Unauthenticated, "no node")
	}
	claims, err := claimed(ctx)
	if err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	if err := wire.SendHeader(metadata.Pairs(header.ServerID, s.o.Node, header.ServerCount, "1")); err != nil {
		return err
	}
	st := &stream{sender: sender{stream: wire}, session: e, wire: wire, done: make(chan struct{})}
	if s.pool.add(st, claims) {
		s.o.Log.Info("node has a tunnel", "node", e.node, "remote", p.Addr.String())
		s.warn(e.node, claims)
	}
	defer func() {
		if s.pool.remove(st) {
			s.o.Log.Info("node's tunnel ended", "node", e.node, "remote", p.Addr.String())
		}
	}()
	select {
	case <-st.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// claimed reads the addresses that a node says are its own. Names are not taken: a node's name is in its certificate.
func claimed(ctx context.Context) ([]netip.Addr, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	var all []netip.Addr
	for _, text := range md.Get(header.AgentIdentifiers) {
		ids, err := header.GenAgentIdentifiers(text)
		if err != nil {
			return nil, err
		}
		for _, a := range slices.Concat(ids.IPv4, ids.IPv6) {
			addr, err := netip.ParseAddr(a)
			if err != nil {
				return nil, err
			}
			all = append(all, addr.Unmap())
		}
	}
	return all, nil
}

// warn tells of addresses that a node claims and the cluster does not know it by. They do not count. A node without any is
// one that has not registered yet.
func (s *service) warn(node string, claims []netip.Addr) {
	known := s.pool.known(node)
	if len(known) == 0 {
		return
	}
	for _, c := range claims {
		if !slices.Contains(known, c) {
			s.o.Log.Warn("node claims an address that is not its own", "node", node, "claimed", c, "known", known)
		}
	}
}
