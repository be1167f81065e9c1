package tunnel

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"sigs.k8s.io/apiserver-network-proxy/konnectivity-client/proto/client"
	"sigs.k8s.io/apiserver-network-proxy/proto/agent"
	"sigs.k8s.io/apiserver-network-proxy/proto/header"
)

const (
	// minSpare streams are open and free at any time. When connections come faster than streams can be opened, the number
	// doubles up to maxSpare, and halves in each spareDecay without such need.
	minSpare   = 2
	maxSpare   = 64
	spareDecay = 30 * time.Second
)

// link is the node's end of one tunnel.
type link struct {
	o       AgentOptions
	service agent.AgentServiceClient
	up      func() // called once
	upOnce  sync.Once
	fail    context.CancelCauseFunc
	running sync.WaitGroup

	mu      sync.Mutex
	spares  map[*spare]bool
	want    int                          // of spares
	starved bool                         // since the last decay
	dials   map[int64]context.CancelFunc // by the request's id
}

// spare is a stream that carries nothing yet.
type spare struct{ cancel context.CancelFunc }

// runSession makes the tunnel to a server and serves it until it breaks or ctx ends. It calls up once the server has
// accepted it. It leaves nothing behind.
func runSession(ctx context.Context, o AgentOptions, address string, up func()) error {
	config, err := o.TLS()
	if err != nil {
		return fmt.Errorf("load certificates: %w", err)
	}
	conn, err := dialServer(ctx, address, config)
	if err != nil {
		return err
	}
	cc, err := grpc.NewClient("passthrough:///"+address,
		grpc.WithContextDialer(once(conn)), grpc.WithTransportCredentials(insecure.NewCredentials()), // conn is TLS
		grpc.WithDisableServiceConfig(), grpc.WithDisableRetry(), grpc.WithIdleTimeout(0),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxPacket)),
		grpc.WithStaticStreamWindowSize(streamWindow), grpc.WithStaticConnWindowSize(sessionWindow),
		grpc.WithReadBufferSize(readBuffer), grpc.WithWriteBufferSize(writeBuffer), grpc.WithSharedWriteBuffer(true),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: slowPing, Timeout: pingTimeout, PermitWithoutStream: true}),
	)
	if err != nil {
		conn.Close()
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	l := &link{
		o: o, service: agent.NewAgentServiceClient(cc), up: up, fail: cancel,
		spares: map[*spare]bool{}, want: minSpare, dials: map[int64]context.CancelFunc{},
	}
	l.fill(ctx)
	l.decay(ctx)
	cc.Close()
	conn.Close() // gRPC may not have come to use it
	l.running.Wait()
	return context.Cause(ctx)
}

// once gives conn to gRPC's first attempt to connect, and an error to later ones: keepLink makes new connections.
func once(conn net.Conn) func(context.Context, string) (net.Conn, error) {
	first := make(chan net.Conn, 1)
	first <- conn
	return func(context.Context, string) (net.Conn, error) {
		select {
		case c := <-first:
			return c, nil
		default:
			return nil, errors.New("the connection ended")
		}
	}
}

// decay lets the number of spare streams fall when they are not needed, until ctx ends.
func (l *link) decay(ctx context.Context) {
	tick := time.NewTicker(spareDecay)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		l.mu.Lock()
		if !l.starved {
			l.want = max(minSpare, l.want/2)
		}
		l.starved = false
		for s := range l.spares {
			if len(l.spares) <= l.want {
				break
			}
			// A server that takes it at this moment takes another.
			delete(l.spares, s)
			s.cancel()
		}
		l.mu.Unlock()
	}
}

// fill opens spare streams up to the number wanted.
func (l *link) fill(ctx context.Context) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.spares) < l.want && ctx.Err() == nil {
		streamCtx, cancel := context.WithCancel(ctx)
		s := &spare{cancel}
		l.spares[s] = true
		l.running.Go(func() {
			defer cancel()
			if err := l.serve(ctx, streamCtx, s); err != nil && l.forget(s) {
				l.fail(err)
			}
		})
	}
}

// forget takes s out of the spares. It reports whether it was one.
func (l *link) forget(s *spare) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	was := l.spares[s]
	delete(l.spares, s)
	return was
}

// taken replaces a spare stream that the server uses now.
func (l *link) taken(ctx context.Context, s *spare) {
	l.mu.Lock()
	delete(l.spares, s)
	if len(l.spares) == 0 {
		l.want, l.starved = min(2*l.want, maxSpare), true
	}
	l.mu.Unlock()
	l.fill(ctx)
}

// serve opens a stream, waits until the server uses it, and carries its connection. ctx is the tunnel's, own the stream's.
// An error of a stream that is still a spare means that the tunnel is broken.
func (l *link) serve(ctx, own context.Context, s *spare) error {
	offer := metadata.AppendToOutgoingContext(own, header.AgentID, l.o.Node, header.AgentIdentifiers, identifiers(l.o.Node, l.o.Addresses))
	wire, err := l.service.Connect(offer)
	if err != nil {
		return err
	}
	if _, err := wire.Header(); err != nil {
		return err
	}
	l.upOnce.Do(l.up)
	for {
		p, err := wire.Recv()
		if err != nil {
			return err
		}
		switch p.GetType() {
		case client.PacketType_DIAL_CLS:
			l.abandon(p.GetCloseDial().GetRandom())
		case client.PacketType_DIAL_REQ:
			l.taken(ctx, s)
			l.carry(own, wire, s.cancel, p.GetDialRequest())
			return nil
		default: // of a later version
		}
	}
}
