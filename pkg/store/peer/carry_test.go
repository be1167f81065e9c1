package peer_test

import (
	"bytes"
	"context"
	"io"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/cairn-os/cairn/pkg/store/peer"
)

// TestCarry has a client's connection carried through two members to a server,
// as etcd clients' and raft's are, and each side end first.
func TestCarry(t *testing.T) {
	ca := newCA(t)
	server, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	b, err := peer.Listen(t.Context(), peer.Config{ID: 2, Listen: "127.0.0.1:0", Credentials: issue(t, ca)})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	ended := make(chan error, 2)
	b.Handle(protocol, func(ctx context.Context, _ uint64, conn net.Conn) {
		local, err := net.Dial("tcp", server.Addr().String())
		if err != nil {
			t.Error(err)
			return
		}
		ended <- peer.Bridge(ctx, conn, local)
	})
	b.Start()
	a, _ := start(t, 1, issue(t, ca))
	front, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer front.Close()
	open := func() (client *net.UnixConn, served *net.TCPConn) {
		t.Helper()
		c, err := net.Dial("unix", front.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		near, err := front.Accept()
		if err != nil {
			t.Fatal(err)
		}
		far, _, err := a.DialAddress(t.Context(), b.Addr().String(), protocol)
		if err != nil {
			t.Fatal(err)
		}
		go func() { ended <- peer.Bridge(t.Context(), near, far) }()
		s, err := server.Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close(); s.Close() })
		c.SetDeadline(time.Now().Add(patience))
		s.SetDeadline(time.Now().Add(patience))
		return c.(*net.UnixConn), s.(*net.TCPConn)
	}
	request, answer := bytes.Repeat([]byte("q"), 3<<20), bytes.Repeat([]byte("a"), 2<<20)
	exchange := func(from, to interface {
		net.Conn
		CloseWrite() error
	}) {
		t.Helper()
		go func() {
			from.Write(request)
			from.CloseWrite()
		}()
		if got, err := io.ReadAll(to); err != nil || !bytes.Equal(got, request) {
			t.Fatalf("there: %d bytes, %v; want %d", len(got), err, len(request))
		}
		go func() {
			to.Write(answer)
			to.Close()
		}()
		if got, err := io.ReadAll(from); err != nil || !bytes.Equal(got, answer) {
			t.Fatalf("back: %d bytes, %v; want %d", len(got), err, len(answer))
		}
		for range 2 {
			select {
			case err := <-ended:
				if err != nil {
					t.Errorf("Bridge = %v; want nil", err)
				}
			case <-time.After(patience):
				t.Fatal("a bridge did not end")
			}
		}
	}
	client, served := open()
	exchange(client, served)
	client, served = open()
	exchange(served, client)

	// A reset must not look like an orderly end on the other side, after which
	// the client could still send.
	client, served = open()
	client.Write([]byte("part"))
	if _, err := io.ReadFull(served, make([]byte, 4)); err != nil {
		t.Fatal(err)
	}
	served.SetLinger(0)
	served.Close()
	io.Copy(io.Discard, client)
	for range 2 {
		select {
		case err := <-ended:
			if err == nil {
				t.Error("Bridge = nil after a reset; want an error at both members")
			}
		case <-time.After(patience):
			t.Fatal("a bridge did not end")
		}
	}
}
