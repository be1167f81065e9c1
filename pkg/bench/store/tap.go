package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"
)

// message is what passes a tap.
type message struct {
	call   uint64 // tells calls apart
	method string // such as /etcdserverpb.KV/Txn
	answer bool   // comes from the server
	data   []byte // protobuf
}

// tap passes gRPC calls on to a server and shows each message. It understands
// none of them itself, so it knows every method.
type tap struct {
	server  *grpc.Server
	client  *grpc.ClientConn
	observe func(message) // called by many goroutines
	calls   atomic.Uint64
	// connections counts those that clients have opened so far.
	connections atomic.Int64
	ended       chan error
}

// startTap serves on l what the server at target answers.
func startTap(l net.Listener, target string, observe func(message)) (*tap, error) {
	t := &tap{observe: observe, ended: make(chan error, 1)}
	var err error
	t.client, err = grpc.NewClient(target, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(rawCodec{}), grpc.MaxCallRecvMsgSize(1<<30)))
	if err != nil {
		return nil, fmt.Errorf("tap: %w", err)
	}
	t.server = grpc.NewServer(grpc.UnknownServiceHandler(t.handle), grpc.ForceServerCodecV2(rawCodec{}),
		grpc.MaxRecvMsgSize(1<<30), grpc.StatsHandler(connectionCounter{&t.connections}))
	go func() { t.ended <- t.server.Serve(l) }()
	return t, nil
}

func (t *tap) close() error {
	t.server.Stop()
	return errors.Join(<-t.ended, t.client.Close())
}

// handle is one call of a client.
func (t *tap) handle(_ any, in grpc.ServerStream) error {
	method, ok := grpc.MethodFromServerStream(in)
	if !ok {
		return status.Error(codes.Internal, "tap: a call without a method")
	}
	ctx, cancel := context.WithCancel(in.Context())
	defer cancel()
	if md, ok := metadata.FromIncomingContext(ctx); ok {
		ctx = metadata.NewOutgoingContext(ctx, md)
	}
	out, err := t.client.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, method)
	if err != nil {
		return err
	}
	m := message{call: t.calls.Add(1), method: method}
	// It ends with the call: that ends both streams.
	go t.requests(m, in, out)
	m.answer = true
	for {
		if err := out.RecvMsg(&m.data); err != nil {
			in.SetTrailer(out.Trailer())
			cancel()
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		t.observe(m)
		if err := in.SendMsg(&m.data); err != nil {
			return err
		}
	}
}

// requests passes the client's messages on until it has no more. An error of
// out is told by its RecvMsg as well.
func (t *tap) requests(m message, in grpc.ServerStream, out grpc.ClientStream) {
	for in.RecvMsg(&m.data) == nil {
		t.observe(m)
		if out.SendMsg(&m.data) != nil {
			return
		}
	}
	_ = out.CloseSend() // always nil
}

// rawCodec takes messages as they are on the wire.
type rawCodec struct{}

func (rawCodec) Name() string { return "proto" }

func (rawCodec) Marshal(v any) (mem.BufferSlice, error) {
	b, ok := v.(*[]byte)
	if !ok {
		return nil, fmt.Errorf("tap: cannot send a %T", v)
	}
	return mem.BufferSlice{mem.SliceBuffer(*b)}, nil
}

func (rawCodec) Unmarshal(data mem.BufferSlice, v any) error {
	b, ok := v.(*[]byte)
	if !ok {
		return fmt.Errorf("tap: cannot receive a %T", v)
	}
	*b = data.Materialize()
	return nil
}

// connectionCounter counts connections as they begin.
type connectionCounter struct{ n *atomic.Int64 }

func (c connectionCounter) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context {
	return ctx
}
func (c connectionCounter) HandleRPC(context.Context, stats.RPCStats) {}
func (c connectionCounter) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context {
	return ctx
}

func (c connectionCounter) HandleConn(_ context.Context, s stats.ConnStats) {
	if _, ok := s.(*stats.ConnBegin); ok {
		c.n.Add(1)
	}
}
