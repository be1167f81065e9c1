package balancer

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// blackHole is an address that answers no SYN: its queue is full.
func blackHole(t *testing.T) string {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	addr := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(sa.(*unix.SockaddrInet4).Port)).String()
	for range 8 {
		c, err := net.DialTimeout("tcp", addr, 100*time.Millisecond)
		if err != nil {
			return addr
		}
		t.Cleanup(func() { c.Close() })
	}
	t.Fatal("the queue of 0 takes 8 connections")
	return ""
}

// talker serves one exchange over plain TCP: it answers when the client has
// ended its side.
func talker(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				data, _ := io.ReadAll(c)
				c.Write(append([]byte("heard "), data...))
			}()
		}
	}()
	return l.Addr().String()
}

func TestHalfClose(t *testing.T) {
	f := run(t, Options{Initial: []string{talker(t)}}, quick())
	for _, addr := range []string{f.Addr(), ipv6(f)} {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Logf("%s: %v", addr, err)
			continue
		}
		defer c.Close()
		if _, err := c.Write([]byte("this")); err != nil {
			t.Fatal(err)
		}
		if err := c.(*net.TCPConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(c)
		if err != nil || string(got) != "heard this" {
			t.Errorf("%s: %q, %v", addr, got, err)
		}
	}
}

func ipv6(f *fixture) string {
	_, port, _ := net.SplitHostPort(f.Addr())
	return net.JoinHostPort("::1", port)
}

// farServer says a word to each client, behind a cable of its own.
func farServer(t *testing.T) (string, func() error) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, for a network namespace")
	}
	l, cut := farListener(t, "198.51.100.1/30", "198.51.100.2")
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				c.Write([]byte("x"))
				io.Copy(io.Discard, c)
			}()
		}
	}()
	// A fresh cable takes a moment.
	until(t, "the far side answers", func() bool {
		c, err := net.DialTimeout("tcp", l.Addr().String(), 100*time.Millisecond)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	return l.Addr().String(), cut
}

// vanish makes a connection through f, cuts the cable under it while it is at
// rest, and returns how long it takes until the client is told.
func (f *fixture) vanish(cut func() error) time.Duration {
	f.t.Helper()
	c, err := net.Dial("tcp", f.Addr())
	if err != nil {
		f.t.Fatal(err)
	}
	defer c.Close()
	if n, err := c.Read(make([]byte, 1)); n != 1 {
		f.t.Fatalf("nothing comes from the far side: %v", err)
	}
	if err := cut(); err != nil {
		f.t.Fatal(err)
	}
	begin := time.Now()
	c.SetReadDeadline(time.Now().Add(time.Minute))
	_, err = io.Copy(io.Discard, c)
	d := time.Since(begin)
	f.t.Logf("the client is told after %v (%v)", d.Round(10*time.Millisecond), err)
	return d
}

// TestVanishedPeer is about a server without power when no check helps: the
// kernel alone has to notice.
func TestVanishedPeer(t *testing.T) {
	addr, cut := farServer(t)
	patience := quick()
	patience.interval, patience.vanish = time.Hour, 3*time.Second
	f := run(t, Options{Initial: []string{addr}}, patience)
	if d := f.vanish(cut); d < patience.vanish/3 || d > 2*patience.vanish {
		t.Errorf("noticed after %v; want about %v", d, patience.vanish)
	}
}

// TestPowerCut is the same with another server to go to, and with the true
// patience.
func TestPowerCut(t *testing.T) {
	addr, cut := farServer(t)
	f := run(t, Options{Initial: []string{addr, talker(t)}, Prefer: addr}, defaultTiming())
	until(t, "both servers are ready", func() bool {
		all := f.Servers()
		return len(all) == 2 && all[0].Healthy && all[1].Healthy
	})
	if d := f.vanish(cut); d > 12*time.Second {
		t.Errorf("noticed after %v; want at most 12 s", d)
	}
}

// farListener listens at address behind a cable of its own. The function pulls
// the cable out at the far side: on this side, routes stay.
func farListener(t *testing.T, near, address string) (net.Listener, func() error) {
	t.Helper()
	cable := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "cairnbal0"}, PeerName: "cairnbal1"}
	type side struct {
		l   net.Listener
		cut func() error
		err error
	}
	made := make(chan side)
	go func() {
		// The thread keeps the namespace for as long as the test runs, and ends.
		runtime.LockOSThread()
		l, cut, err := listenAfar(cable, address)
		made <- side{l, cut, err}
		<-t.Context().Done()
	}()
	far := <-made
	if far.err != nil {
		t.Fatal(far.err)
	}
	t.Cleanup(func() { far.l.Close() })
	link, err := netlink.LinkByName(cable.Name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { netlink.LinkDel(link) })
	addr, err := netlink.ParseAddr(near)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(netlink.AddrAdd(link, addr), netlink.LinkSetUp(link)); err != nil {
		t.Fatal(err)
	}
	return far.l, far.cut
}

// listenAfar moves the calling thread into a new network namespace, with the
// far end of the cable.
func listenAfar(cable *netlink.Veth, address string) (net.Listener, func() error, error) {
	home, err := netlink.NewHandle()
	if err != nil {
		return nil, nil, err
	}
	defer home.Close()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return nil, nil, err
	}
	cable.PeerNamespace = netlink.NsPid(unix.Gettid())
	if err := home.LinkAdd(cable); err != nil {
		return nil, nil, err
	}
	here, err := netlink.NewHandle()
	if err != nil {
		return nil, nil, err
	}
	link, err := here.LinkByName(cable.PeerName)
	if err != nil {
		return nil, nil, err
	}
	addr, err := netlink.ParseAddr(address + "/30")
	if err != nil {
		return nil, nil, err
	}
	if err := errors.Join(here.AddrAdd(link, addr), here.LinkSetUp(link)); err != nil {
		return nil, nil, err
	}
	l, err := net.Listen("tcp", net.JoinHostPort(address, "6443"))
	return l, func() error { defer here.Close(); return here.LinkSetDown(link) }, err
}
