package peer_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cairn-os/cairn/pkg/store/peer"
	"github.com/cairn-os/cairn/pkg/store/peer/peertest"
)

// patience is far more than anything here takes.
const patience = 20 * time.Second

const protocol = "test/1"

// logs is a log that may be read while it is written.
type logs struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// await waits until the log holds text.
func (l *logs) await(t *testing.T, text string) {
	t.Helper()
	for end := time.Now().Add(patience); !strings.Contains(l.String(), text); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the log lacks %q:\n%s", text, l)
		}
	}
}

func newCA(t *testing.T) *peertest.CA {
	t.Helper()
	ca, err := peertest.NewCA(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func issue(t *testing.T, ca *peertest.CA, o ...peertest.Option) peer.Credentials {
	t.Helper()
	c, err := ca.Issue(t.TempDir(), "node", o...)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// echo answers each line with the caller's ID and the line.
func echo(_ context.Context, from uint64, conn net.Conn) {
	for r := bufio.NewReader(conn); ; {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		fmt.Fprintf(conn, "%d %s", from, line)
	}
}

func start(t *testing.T, id uint64, c peer.Credentials) (*peer.Network, *logs) {
	t.Helper()
	return startAt(t, id, c, "127.0.0.1:0")
}

func startAt(t *testing.T, id uint64, c peer.Credentials, address string) (*peer.Network, *logs) {
	t.Helper()
	l := &logs{}
	n, err := peer.Listen(t.Context(), peer.Config{ID: id, Listen: address, Credentials: c, Logger: slog.New(slog.NewTextHandler(l, nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	n.Handle(protocol, echo)
	n.Start()
	if err := n.Book().SetOwn(peer.Entry{Name: fmt.Sprint("n", id), Addresses: []string{n.Addr().String()}}); err != nil {
		t.Fatal(err)
	}
	return n, l
}

// talk checks that a connection carries bytes both ways.
func talk(t *testing.T, conn net.Conn, from uint64) {
	t.Helper()
	conn.SetDeadline(time.Now().Add(patience))
	fmt.Fprintln(conn, "hello")
	line, err := bufio.NewReader(conn).ReadString('\n')
	if want := fmt.Sprintf("%d hello\n", from); err != nil || line != want {
		t.Fatalf("answer = %q, %v; want %q", line, err, want)
	}
}

func dial(t *testing.T, n *peer.Network, id uint64) net.Conn {
	t.Helper()
	conn, err := n.Dial(t.Context(), id, protocol)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func TestConnect(t *testing.T) {
	ca := newCA(t)
	a, _ := start(t, 1, issue(t, ca))
	b, _ := start(t, 2, issue(t, ca))
	a.Book().Merge(b.Book().All())
	conn := dial(t, a, 2)
	talk(t, conn, 1)

	back, id, err := b.DialAddress(t.Context(), a.Addr().String(), protocol)
	if err != nil || id != 1 {
		t.Fatalf("DialAddress: member %d, %v; want 1", id, err)
	}
	defer back.Close()
	talk(t, back, 2)

	if _, _, err := a.DialAddress(t.Context(), a.Addr().String(), protocol); !errors.Is(err, peer.ErrSelf) {
		t.Errorf("a member reached itself: %v; want ErrSelf", err)
	}
	if _, err := a.Dial(t.Context(), 9, protocol); !errors.Is(err, peer.ErrUnknown) {
		t.Errorf("a member without address: %v; want ErrUnknown", err)
	}
	raw, err := conn.(*tls.Conn).NetConn().(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	checkSocket(t, raw)
	if s := b.Stats(); s.Accepted != 1 || s.Dialed != 1 || s.Refused != 0 {
		t.Errorf("stats of b: %+v", s)
	}
	b.Close()
	conn.SetDeadline(time.Now().Add(patience))
	if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the connection outlived its acceptor's Network: %v", err)
	}
}

// TestAcceptedSocket looks at the options that accepted sockets inherit.
func TestAcceptedSocket(t *testing.T) {
	ca := newCA(t)
	a, _ := start(t, 1, issue(t, ca))
	n, err := peer.Listen(t.Context(), peer.Config{ID: 2, Listen: "127.0.0.1:0", Credentials: issue(t, ca)})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	n.Handle(protocol, func(_ context.Context, _ uint64, conn net.Conn) {
		raw, err := conn.(*tls.Conn).NetConn().(*net.TCPConn).SyscallConn()
		if err != nil {
			t.Error(err)
		} else {
			checkSocket(t, raw)
		}
		conn.Write([]byte("."))
	})
	n.Start()
	conn, _, err := a.DialAddress(t.Context(), n.Addr().String(), protocol)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.ReadAll(conn); err != nil {
		t.Error(err)
	}
}

func checkSocket(t *testing.T, raw interface{ Control(func(uintptr)) error }) {
	err := raw.Control(func(fd uintptr) {
		for _, o := range []struct {
			name      string
			key, want int
		}{
			{"TCP_USER_TIMEOUT", unix.TCP_USER_TIMEOUT, 10_000}, {"TCP_NODELAY", unix.TCP_NODELAY, 1},
			{"TCP_KEEPIDLE", unix.TCP_KEEPIDLE, 3}, {"TCP_KEEPINTVL", unix.TCP_KEEPINTVL, 3}, {"TCP_KEEPCNT", unix.TCP_KEEPCNT, 3},
		} {
			if got, err := unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, o.key); err != nil || got != o.want {
				t.Errorf("%s = %d, %v; want %d", o.name, got, err, o.want)
			}
		}
	})
	if err != nil {
		t.Error(err)
	}
}

// TestTakenAddress has a member's address go over to another.
func TestTakenAddress(t *testing.T) {
	ca := newCA(t)
	a, _ := start(t, 1, issue(t, ca))
	c, log := start(t, 3, issue(t, ca))
	a.Book().Merge([]peer.Entry{{ID: 2, Name: "n2", Addresses: []string{c.Addr().String()}, Sequence: 1}})
	_, err := a.Dial(t.Context(), 2, protocol)
	if !errors.Is(err, peer.ErrWrongMember) || !strings.Contains(err.Error(), "belongs to member-0000000000000003, not to member-0000000000000002") {
		t.Errorf("Dial = %v; want ErrWrongMember and whose the address is", err)
	}
	log.await(t, "its address book is old")

	// Found again as soon as its new address is known, failure or not.
	b, _ := start(t, 2, issue(t, ca))
	a.Book().Merge([]peer.Entry{{ID: 2, Name: "n2", Addresses: []string{c.Addr().String(), b.Addr().String()}, Sequence: 2}})
	talk(t, dial(t, a, 2), 1)
}

// TestDeadAddresses has a good address among such as refuse and such as say
// nothing.
func TestDeadAddresses(t *testing.T) {
	ca := newCA(t)
	a, _ := start(t, 1, issue(t, ca))
	b, _ := start(t, 2, issue(t, ca))
	silent, err := net.Listen("tcp", "127.0.0.1:0") // Connects, and no more.
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	dead := []string{silent.Addr().String(), closed.Addr().String(), "nowhere.invalid:1"}
	a.Book().Merge([]peer.Entry{{ID: 2, Name: "n2", Addresses: append(dead, b.Addr().String()), Sequence: 1}})
	talk(t, dial(t, a, 2), 1)

	a.Book().Merge([]peer.Entry{{ID: 2, Name: "n2", Addresses: dead[:1], Sequence: 2}})
	_, first := a.Dial(t.Context(), 2, protocol)
	if !errors.Is(first, context.DeadlineExceeded) || !strings.Contains(first.Error(), dead[0]) {
		t.Fatalf("Dial of a silent address = %v; want the deadline and the address", first)
	}
	failed := a.Stats().Failed
	if _, again := a.Dial(t.Context(), 2, protocol); again == nil || again.Error() != first.Error() || a.Stats().Failed != failed {
		t.Errorf("Dial right after = %v, attempts %d; want %v and no attempt after %d", again, a.Stats().Failed, first, failed)
	}
	a.Book().Merge([]peer.Entry{{ID: 2, Name: "n2", Addresses: []string{b.Addr().String()}, Sequence: 3}})
	talk(t, dial(t, a, 2), 1)
}

// TestImpatience checks that a caller who gave up at once spoils nothing.
func TestImpatience(t *testing.T) {
	ca := newCA(t)
	a, _ := start(t, 1, issue(t, ca))
	b, _ := start(t, 2, issue(t, ca))
	a.Book().Merge(b.Book().All())
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := a.Dial(ctx, 2, protocol); !errors.Is(err, context.Canceled) {
		t.Errorf("Dial = %v; want context.Canceled", err)
	}
	if _, err := a.Dial(t.Context(), 2, "other/1"); !errors.Is(err, peer.ErrProtocol) {
		t.Errorf("Dial for an unknown protocol = %v; want ErrProtocol", err)
	}
	talk(t, dial(t, a, 2), 1)
}

// TestRenewal replaces certificates, and breaks them, while connections go on.
func TestRenewal(t *testing.T) {
	ca, next := newCA(t), newCA(t)
	dir := t.TempDir()
	c, err := ca.Issue(dir, "old")
	if err != nil {
		t.Fatal(err)
	}
	a, log := start(t, 1, c)
	b, _ := start(t, 2, issue(t, ca))
	b.Book().Merge(a.Book().All())
	old := dial(t, b, 1)
	subject := func(conn net.Conn) string {
		return conn.(*tls.Conn).ConnectionState().PeerCertificates[0].Subject.CommonName
	}

	renewed, err := ca.Issue(dir, "new")
	if err != nil {
		t.Fatal(err)
	}
	move := func(from, to string) {
		t.Helper()
		if err := os.Rename(from, to); err != nil {
			t.Fatal(err)
		}
	}
	move(renewed.Key, c.Key) // The certificate is still the old one: they do not fit.
	if got := subject(dial(t, b, 1)); got != "old" {
		t.Errorf("half renewed: %q; want the old certificate", got)
	}
	log.await(t, "the old ones stay in use")
	move(renewed.Certificate, c.Certificate)
	conn := dial(t, b, 1)
	if got := subject(conn); got != "new" {
		t.Errorf("renewed: %q; want the new certificate", got)
	}
	talk(t, conn, 2)
	talk(t, old, 2)

	for _, breakIt := range []func() error{
		func() error { return os.WriteFile(c.Certificate, []byte("-----BEGIN CERT"), 0o644) },
		func() error { return os.Remove(c.Certificate) },
		func() error { return os.Chmod(c.Key, 0o644) },
		func() error { // Another CA, of which nobody has a certificate.
			data, err := os.ReadFile(next.File)
			return errors.Join(err, os.WriteFile(c.CA, data, 0o644))
		},
	} {
		if err := breakIt(); err != nil {
			t.Fatal(err)
		}
		talk(t, dial(t, b, 1), 2)
	}
	if got := strings.Count(log.String(), "the old ones stay in use"); got != 1 {
		t.Errorf("broken files were logged %d times; want once a minute", got)
	}
}

// TestGarbage sends what is no handshake, and what is no preamble, and checks
// that members get through meanwhile and that the log stays short.
func TestGarbage(t *testing.T) {
	ca := newCA(t)
	a, _ := start(t, 1, issue(t, ca))
	b, log := start(t, 2, issue(t, ca))
	a.Book().Merge(b.Book().All())
	config := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{protocol}, GetClientCertificate: pairOf(t, issue(t, ca))}
	for i := range 20 {
		raw, err := net.Dial("tcp", b.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		if i%2 == 0 {
			fmt.Fprint(raw, "GET / HTTP/1.1\r\n\r\n")
		} else {
			conn := tls.Client(raw, config)
			conn.Write([]byte("too short")) // TLS 1.3: the handshake is done before the acceptor's answer.
			conn.CloseWrite()
		}
		raw.SetDeadline(time.Now().Add(patience))
		if _, err := io.Copy(io.Discard, raw); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal("garbage was not refused")
		}
		raw.Close()
	}
	talk(t, dial(t, a, 2), 1)
	for end := time.Now().Add(patience); b.Stats().Refused < 20 && time.Now().Before(end); time.Sleep(time.Millisecond) {
	}
	if s := b.Stats(); s.Refused != 20 || s.Accepted != 1 {
		t.Errorf("stats: %+v; want 20 refusals", s)
	}
	if got := strings.Count(log.String(), "refused"); got != 1 {
		t.Errorf("%d lines in the log; want one:\n%s", got, log)
	}
}

// TestSlowLoris has a crowd of connections that say nothing or stop in the
// middle.
func TestSlowLoris(t *testing.T) {
	ca := newCA(t)
	a, _ := start(t, 1, issue(t, ca))
	b, log := start(t, 2, issue(t, ca))
	// 127.0.0.2 is the crowd's own address, so that members are another host.
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
	begun := time.Now()
	// This one has a member's certificate and stops in the preamble.
	late, err := tls.Dial("tcp", b.Addr().String(), &tls.Config{
		InsecureSkipVerify: true, NextProtos: []string{protocol}, GetClientCertificate: pairOf(t, issue(t, ca)),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer late.Close()
	late.Write([]byte("abc"))
	crowd := []net.Conn{late}
	for range 450 {
		conn, err := dialer.Dial("tcp", b.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		fmt.Fprint(conn, "\x16\x03\x01\x02")
		crowd = append(crowd, conn)
	}
	log.await(t, "too many handshakes in progress")
	conn, id, err := a.DialAddress(t.Context(), b.Addr().String(), protocol)
	if err != nil || id != 2 {
		t.Fatalf("a member was shut out: %v", err)
	}
	talk(t, conn, 1)
	conn.Close()
	for _, conn := range crowd {
		conn.SetDeadline(begun.Add(patience))
		if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal("a handshake may take for ever")
		}
	}
}

// TestClose has a handler and a handshake in progress when the Network ends.
func TestClose(t *testing.T) {
	ca := newCA(t)
	a, _ := start(t, 1, issue(t, ca))
	b, _ := start(t, 2, issue(t, ca))
	a.Book().Merge(b.Book().All())
	talk(t, dial(t, a, 2), 1)
	silent, err := net.Dial("tcp", b.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	done := make(chan error, 1)
	go func() { done <- errors.Join(b.Close(), b.Close()) }()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(patience):
		t.Fatal("Close waits for ever")
	}
	if _, err := b.Dial(t.Context(), 2, protocol); err == nil {
		t.Error("a closed Network dialed")
	}
	// The address can be taken at once.
	again, _ := startAt(t, 2, issue(t, ca), b.Addr().String())
	if conn, _, err := a.DialAddress(t.Context(), again.Addr().String(), protocol); err != nil {
		t.Error(err)
	} else {
		talk(t, conn, 1)
		conn.Close()
	}
}

// TestBookSurvives keeps addresses over a restart.
func TestBookSurvives(t *testing.T) {
	ca := newCA(t)
	b, _ := start(t, 2, issue(t, ca))
	c := peer.Config{ID: 1, Listen: "127.0.0.1:0", Credentials: issue(t, ca), BookFile: filepath.Join(t.TempDir(), "addresses.json")}
	for i := range 2 {
		a, err := peer.Listen(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			a.Book().Merge(b.Book().All())
		}
		talk(t, dial(t, a, 2), 1)
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	}
}

// BenchmarkDial is a whole connection: TCP, TLS and preamble, at both ends.
func BenchmarkDial(b *testing.B) {
	ca, err := peertest.NewCA(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	var members []*peer.Network
	for id := range uint64(2) {
		c, err := ca.Issue(b.TempDir(), "node")
		if err != nil {
			b.Fatal(err)
		}
		n, err := peer.Listen(b.Context(), peer.Config{ID: id + 1, Listen: "127.0.0.1:0", Credentials: c})
		if err != nil {
			b.Fatal(err)
		}
		defer n.Close()
		n.Handle(protocol, echo)
		n.Start()
		members = append(members, n)
	}
	for b.Loop() {
		conn, _, err := members[0].DialAddress(b.Context(), members[1].Addr().String(), protocol)
		if err != nil {
			b.Fatal(err)
		}
		conn.Close()
	}
}
