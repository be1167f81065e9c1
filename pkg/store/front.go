package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"time"

	"github.com/k3s-io/kine/pkg/server"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
)

const (
	// maxRequestBytes is etcd's --max-request-bytes, overheadBytes what its
	// server grants a message beyond (embed.DefaultMaxRequestBytes and
	// grpcOverheadBytes of etcd 3.6).
	maxRequestBytes = 1536 << 10
	overheadBytes   = 512 << 10
	// maxStreams as etcd's (embed.DefaultMaxConcurrentStreams): no limit.
	maxStreams = 1<<32 - 1
	// notifyInterval is the period of progress notifications. etcd's is ten
	// minutes; apiserver's watch cache asks for more when it needs them.
	notifyInterval = time.Minute
	// etcdVersion is what the store claims to be. The apiserver derives from
	// it that RequestProgress works (3.5.13 and later).
	etcdVersion = "3.6.13"
	// graceTime is how long unary calls may take to finish at shutdown.
	graceTime = 5 * time.Second
)

// Server is kine's etcd front before a Backend, or before another Source.
type Server struct {
	*server.KVServerBridge
	source   Source
	grpc     *grpc.Server
	stopping chan struct{}
}

// NewServer puts the front before b.
func NewServer(b Source) *Server {
	s := &Server{
		KVServerBridge: server.New(b, "unix", notifyInterval, etcdVersion),
		source:         b, stopping: make(chan struct{}),
	}
	s.grpc = grpc.NewServer(
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 2 * time.Hour, Timeout: 20 * time.Second}),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.MaxRecvMsgSize(maxRequestBytes+overheadBytes),
		grpc.MaxSendMsgSize(1<<31-1),
		grpc.UnaryInterceptor(limitSize),
	)
	etcdserverpb.RegisterKVServer(s.grpc, s)
	etcdserverpb.RegisterWatchServer(s.grpc, s)
	etcdserverpb.RegisterLeaseServer(s.grpc, s)
	etcdserverpb.RegisterClusterServer(s.grpc, s)
	etcdserverpb.RegisterMaintenanceServer(s.grpc, s)
	h := health.NewServer()
	h.SetServingStatus("", healthpb.HealthCheckResponse_SERVING)
	healthpb.RegisterHealthServer(s.grpc, h)
	return s
}

// limitSize refuses what etcd refuses, in etcd's words.
func limitSize(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	if m, ok := req.(interface{ Size() int }); ok && m.Size() > maxRequestBytes {
		return nil, rpctypes.ErrGRPCRequestTooLarge
	}
	return next(ctx, req)
}

// Put writes a key whether or not it exists. kine's own answers that with a
// create and an update that compares with the store's revision instead of the
// key's (v0.16.4): it succeeds without a write.
func (s *Server) Put(ctx context.Context, r *etcdserverpb.PutRequest) (*etcdserverpb.PutResponse, error) {
	if r.IgnoreValue || r.IgnoreLease || r.PrevKv {
		return nil, server.ErrNotSupported
	}
	rev, err := s.source.Put(ctx, string(r.Key), r.Value, r.Lease)
	if err != nil {
		return nil, err
	}
	return &etcdserverpb.PutResponse{Header: &etcdserverpb.ResponseHeader{Revision: rev}}, nil
}

// Range lists a page as of one revision and says so. kine's own (v0.16.4)
// counts the rest after it has listed and tells the revision of the count: a
// client that goes on from there, with the next page or a watch, misses what
// was written in between.
func (s *Server) Range(ctx context.Context, r *etcdserverpb.RangeRequest) (*etcdserverpb.RangeResponse, error) {
	if r.Limit <= 0 || r.Revision != 0 || len(r.RangeEnd) == 0 || r.CountOnly {
		return s.KVServerBridge.Range(ctx, r)
	}
	for {
		at, err := s.source.CurrentRevision(ctx)
		if err != nil {
			return nil, err
		}
		r.Revision = at
		resp, err := s.KVServerBridge.Range(ctx, r)
		if errors.Is(err, server.ErrCompacted) {
			continue // The newest revision, only just.
		}
		if err != nil {
			return nil, err
		}
		resp.Header.Revision = at
		return resp, nil
	}
}

// Listen opens the unix socket at path for root alone. A socket that a killed
// process left is removed.
func Listen(ctx context.Context, path string) (net.Listener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("listen: %w", err)
	}
	// Bound under another name until its mode is right: there is no moment
	// in which others may connect.
	var config net.ListenConfig
	l, err := config.Listen(ctx, "unix", path+".new")
	if err != nil {
		return nil, fmt.Errorf("listen %s: %w", path, err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	if err := errors.Join(os.Chmod(path+".new", 0o600), os.Rename(path+".new", path)); err != nil {
		return nil, fmt.Errorf("listen %s: %w", path, errors.Join(err, l.Close()))
	}
	return l, nil
}

// Serve answers requests on l until ctx ends; then it ends watches, lets
// other requests finish and returns.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	failed := make(chan error, 1)
	go func() { failed <- s.grpc.Serve(l) }()
	select {
	case err := <-failed:
		// Connections that were accepted would be served on and on.
		close(s.stopping)
		s.grpc.Stop()
		return fmt.Errorf("serve %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	close(s.stopping)
	timer := time.AfterFunc(graceTime, s.grpc.Stop)
	defer timer.Stop()
	s.grpc.GracefulStop()
	return nil
}
