// Package tunnel carries the apiserver's connections to kubelets, pods and services through connections that the nodes
// open, so that no port of a node need be reachable and one port of a server is enough.
//
// The protocol is Konnectivity's (sigs.k8s.io/apiserver-network-proxy): an unpatched apiserver asks for a connection by
// its egress selector, the server passes it on over the gRPC service AgentService, and the node dials. The messages and
// the service are that project's; its server and its agent are not used, for one reason. They carry all connections of a
// node in one gRPC stream without flow control for each (issues 180 and 881 there): one `kubectl logs -f` that is not read
// stops logs, exec, metrics and webhooks of the whole node, and stays so as long as the reader pleases. Measured with
// v0.36.0 in both of its modes: see DESIGN.md. Here each connection has a stream of its own; HTTP/2 gives each stream a
// window, and a stalled one stalls nobody else. As only the node's end can open streams, it keeps a few spare ones open,
// and opens the next when one is taken.
//
// Between apiserver and server the mode is HTTPConnect over a unix socket, not GRPC. The apiserver's client for GRPC
// (konnectivity-client v0.34) gives up a connection whose reader pauses for 10 s, ignores deadlines, cannot cancel, and
// dials a gRPC connection with its dozen goroutines for each proxied one; its leaks fill issues 255 and 276. HTTPConnect
// is one unix connection with the kernel's own flow control and end, and its answer carries the reason of a failure.
//
// The tunnel is an HTTP/1.1 upgrade on port 6443, over mutual TLS. Who may dial what: the apiserver is trusted to name any
// destination, as it could reach the kubelet and every pod without a tunnel; the node filters nothing. A node is believed
// only what its certificate says: its name. Addresses that it claims count while the cluster recorded them for that node.
// What is for no node in particular goes through the own node or another server's, never through an agent's.
package tunnel

import (
	"fmt"
	"io"
	"sync"
	"time"

	"sigs.k8s.io/apiserver-network-proxy/konnectivity-client/proto/client"
)

const (
	// Path is where Handler is served on the apiserver's port.
	Path = "/cairn/v1/tunnel"

	upgrade = "cairn-tunnel"

	// connectID names the connection of a stream; a stream has only one.
	connectID = 1

	// chunk is how much is read from a connection at once: a TLS record.
	chunk = 16 << 10
	// maxPacket bounds a packet: Konnectivity's own ends send up to 32 KiB.
	maxPacket = 128 << 10
	// streamWindow is what one connection may have in flight, and the most that a stalled one holds in memory at the
	// reading end. At a round trip of 300 ms it still gives 850 kB/s. It is fixed because gRPC would let it grow to
	// 16 MiB for each stream.
	streamWindow = 256 << 10
	// sessionWindow bounds what all streams of a tunnel have in flight. gRPC opens it again on arrival, not on reading,
	// so that stalled streams take nothing of it.
	sessionWindow = 1 << 20
	// readBuffer and writeBuffer are those of a tunnel's TLS connection. The first it holds all the time, so it is small:
	// frames larger than it do not pass through it. The second it gives back when there is nothing to write.
	readBuffer  = 4 << 10
	writeBuffer = 16 << 10
)

const (
	// pingAfter and pingTimeout find a dead node in 9 s; the node's own ends find a dead server by userTimeout, or,
	// where something between them answers for TCP, after slowPing plus pingTimeout: gRPC lets clients ping no more often.
	pingAfter   = 5 * time.Second
	pingTimeout = 4 * time.Second
	slowPing    = 10 * time.Second
	userTimeout = 8 * time.Second

	handshakeTimeout = 10 * time.Second
)

// EgressConfig is the file for the apiserver's --egress-selector-config-file. Only `cluster` is in it: with entries for
// `controlplane` and `etcd`, even direct ones, the apiserver would dial these by TCP only, and the store is a unix socket.
func EgressConfig(socket string) []byte {
	return fmt.Appendf(nil, `apiVersion: apiserver.k8s.io/v1beta1
kind: EgressSelectorConfiguration
egressSelections:
- name: cluster
  connection:
    proxyProtocol: HTTPConnect
    transport:
      uds:
        udsName: %q
`, socket)
}

// packets is a stream of AgentService, seen from either end.
type packets interface {
	Send(*client.Packet) error
	Recv() (*client.Packet, error)
}

// sender lets several goroutines send on one stream, which gRPC does not.
type sender struct {
	mu     sync.Mutex
	stream packets
}

func (s *sender) send(p *client.Packet) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stream.Send(p)
}

// pump sends what it reads from r, until r ends or the stream does.
func pump(r io.Reader, send func(*client.Packet) error) {
	buf := make([]byte, chunk)
	for {
		n, err := r.Read(buf)
		if n > 0 && send(data(buf[:n])) != nil {
			return
		}
		if err != nil {
			return
		}
	}
}

func data(b []byte) *client.Packet {
	return &client.Packet{Type: client.PacketType_DATA, Payload: &client.Packet_Data{Data: &client.Data{ConnectID: connectID, Data: b}}}
}

func dialRequest(id int64, address string) *client.Packet {
	return &client.Packet{Type: client.PacketType_DIAL_REQ, Payload: &client.Packet_DialRequest{
		DialRequest: &client.DialRequest{Protocol: "tcp", Address: address, Random: id},
	}}
}

// dialResponse answers the request id; a nil error is success.
func dialResponse(id int64, err error) *client.Packet {
	r := &client.DialResponse{Random: id}
	if err != nil {
		r.Error = err.Error()
	} else {
		r.ConnectID = connectID
	}
	return &client.Packet{Type: client.PacketType_DIAL_RSP, Payload: &client.Packet_DialResponse{DialResponse: r}}
}

// closeDial abandons the request id and the connection that it made.
func closeDial(id int64) *client.Packet {
	return &client.Packet{Type: client.PacketType_DIAL_CLS, Payload: &client.Packet_CloseDial{CloseDial: &client.CloseDial{Random: id}}}
}

// closeRequest tells the node that the apiserver's end is closed, closeResponse the server that the target's is.
func closeRequest() *client.Packet {
	return &client.Packet{Type: client.PacketType_CLOSE_REQ, Payload: &client.Packet_CloseRequest{CloseRequest: &client.CloseRequest{ConnectID: connectID}}}
}

func closeResponse() *client.Packet {
	return &client.Packet{Type: client.PacketType_CLOSE_RSP, Payload: &client.Packet_CloseResponse{CloseResponse: &client.CloseResponse{ConnectID: connectID}}}
}
