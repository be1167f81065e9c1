package tunnel

import (
	"context"
	"net"

	"sigs.k8s.io/apiserver-network-proxy/konnectivity-client/proto/client"
	"sigs.k8s.io/apiserver-network-proxy/proto/agent"
)

// carry dials what the server asks for and copies between it and the stream until either ends. cancel ends ctx, which is
// the stream's.
func (l *link) carry(ctx context.Context, wire agent.AgentService_ConnectClient, cancel context.CancelFunc, request *client.DialRequest) {
	id := request.GetRandom()
	l.remember(id, cancel)
	defer l.forgetDial(id)
	out := &sender{stream: wire}
	l.o.Log.Debug("dialling for the apiserver", "target", request.GetAddress())
	conn, err := dialTarget(ctx, l.o, request.GetProtocol(), request.GetAddress())
	answerErr := out.send(dialResponse(id, err))
	if err != nil {
		// To end the stream before the server does could overtake the answer.
		for answerErr == nil {
			_, answerErr = wire.Recv()
		}
		return
	}
	defer context.AfterFunc(ctx, func() { reset(conn) })()
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		pump(conn, out.send)
		_ = out.send(closeResponse()) // a stream that fails is closed
	}()
	for {
		p, err := wire.Recv()
		if err != nil {
			break
		}
		switch p.GetType() {
		case client.PacketType_DATA:
			if b := p.GetData().GetData(); len(b) > 0 {
				if _, err := conn.Write(b); err != nil {
					conn.Close() // the server hears of it by pump's end; until it ends the stream the rest is of no use
				}
			}
		case client.PacketType_CLOSE_REQ:
			conn.Close()
		default: // of a later version
		}
	}
	// The server ended the stream, or the tunnel broke. Nothing that is still read would arrive.
	cancel()
	reset(conn)
	<-sent
}

// reset closes a connection to a target so that it is told even when it does not read: the end of the data that it was sent
// would have to wait for its window. It is nothing for a connection that is closed already.
func reset(conn net.Conn) {
	if c, ok := conn.(*net.TCPConn); ok {
		_ = c.SetLinger(0)
	}
	conn.Close()
}

// remember lets the server abandon the request id, and the connection it made, by another stream.
func (l *link) remember(id int64, cancel context.CancelFunc) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.dials[id] = cancel
}

func (l *link) forgetDial(id int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.dials, id)
}

func (l *link) abandon(id int64) {
	l.mu.Lock()
	cancel := l.dials[id]
	l.mu.Unlock()
	if cancel != nil {
		cancel()
	}
}
