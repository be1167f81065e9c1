package peer

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// patience is far more than anything here takes.
const patience = 20 * time.Second

// pair returns the two ends of a connection.
func pair(t *testing.T, network string) (net.Conn, net.Conn) {
	t.Helper()
	address := "127.0.0.1:0"
	if network == "unix" {
		address = filepath.Join(t.TempDir(), "s")
	}
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	near, err := net.Dial(network, l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	far, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { near.Close(); far.Close() })
	deadline := time.Now().Add(patience)
	near.SetDeadline(deadline)
	return near, far
}

// bridged returns the outer ends of a bridge and what it returned.
func bridged(t *testing.T, ctx context.Context, drain time.Duration) (client, server net.Conn, ended <-chan error) {
	t.Helper()
	client, a := pair(t, "unix")
	server, b := pair(t, "tcp")
	done := make(chan error, 1)
	go func() { done <- bridge(ctx, a, b, drain) }()
	return client, server, done
}

func wait(t *testing.T, ended <-chan error) error {
	t.Helper()
	select {
	case err := <-ended:
		return err
	case <-time.After(patience):
		t.Fatal("the bridge did not end")
		return nil
	}
}

func TestBridgeHalfClose(t *testing.T) {
	client, server, ended := bridged(t, t.Context(), patience)
	request := bytes.Repeat([]byte("request "), 100_000)
	go func() {
		client.Write(request)
		client.(*net.UnixConn).CloseWrite()
	}()
	got, err := io.ReadAll(server)
	if err != nil || !bytes.Equal(got, request) {
		t.Fatalf("request: %d bytes, %v; want %d", len(got), err, len(request))
	}
	// The other direction is open still.
	if _, err := server.Write([]byte("answer")); err != nil {
		t.Fatal(err)
	}
	server.Close()
	if got, err := io.ReadAll(client); err != nil || string(got) != "answer" {
		t.Errorf("answer = %q, %v", got, err)
	}
	if err := wait(t, ended); err != nil {
		t.Errorf("Bridge = %v; want nil", err)
	}
}

func TestBridgeReset(t *testing.T) {
	client, server, ended := bridged(t, t.Context(), patience)
	server.(*net.TCPConn).SetLinger(0)
	server.Close()
	if _, err := io.ReadAll(client); err != nil && errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the client was not told: %v", err)
	}
	if err := wait(t, ended); err == nil {
		t.Error("Bridge = nil; want the reset")
	}
}

// TestBridgeStuck fills the bridge until a side that takes nothing blocks it.
func TestBridgeStuck(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	client, _, ended := bridged(t, ctx, patience)
	full := make(chan struct{})
	go func() {
		defer close(full)
		for {
			client.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
			if _, err := client.Write(make([]byte, 1<<16)); err != nil {
				return
			}
		}
	}()
	<-full
	select {
	case err := <-ended:
		t.Fatalf("the bridge ended before it was told: %v", err)
	default:
	}
	cancel()
	if err := wait(t, ended); !errors.Is(err, context.Canceled) {
		t.Errorf("Bridge = %v; want context.Canceled", err)
	}
	client.SetReadDeadline(time.Now().Add(patience))
	if _, err := client.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the client's connection is open still: %v", err)
	}
}

// TestBridgeDrain has one side end and the other hold on for ever.
func TestBridgeDrain(t *testing.T) {
	client, _, ended := bridged(t, t.Context(), 50*time.Millisecond)
	client.(*net.UnixConn).CloseWrite()
	if err := wait(t, ended); !errors.Is(err, errDrain) {
		t.Errorf("Bridge = %v; want that the other direction did not end", err)
	}
}
