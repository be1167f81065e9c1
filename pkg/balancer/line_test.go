package balancer

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// line is a way to a network namespace through this process, which delays and
// loses packets as no cable of the kernel's own does here.
type line struct {
	near, far string // addresses
	delay     time.Duration
	loss      float64 // of each packet, each way
	cut       atomic.Bool
	syns      atomic.Int64
	bytes     atomic.Int64 // of IP packets, both ways

	listeners chan listening
}

type listening struct {
	l   net.Listener
	err error
}

var lines atomic.Int32

// newLine makes a line with a listener at its far end.
func newLine(t *testing.T, delay time.Duration, loss float64) (*line, net.Listener) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, for a network namespace")
	}
	number := lines.Add(1)
	net1 := fmt.Sprintf("203.0.113.%d", 4*number)
	n := &line{delay: delay, loss: loss, listeners: make(chan listening)}
	n.near, n.far = fmt.Sprintf("203.0.113.%d/30", 4*number+1), fmt.Sprintf("203.0.113.%d/30", 4*number+2)
	near, err := openTun(fmt.Sprintf("cairnline%d", number), n.near)
	if err != nil {
		t.Fatalf("line %s: %v", net1, err)
	}
	farEnd := make(chan *os.File, 1)
	go func() {
		// The thread keeps the namespace for as long as the test runs, and ends.
		runtime.LockOSThread()
		l, f, err := n.openAfar()
		farEnd <- f
		n.listeners <- listening{l, err}
		<-t.Context().Done()
	}()
	far := <-farEnd
	made := <-n.listeners
	if made.err != nil {
		t.Fatal(made.err)
	}
	var running sync.WaitGroup
	running.Go(func() { n.carry(near, far) })
	running.Go(func() { n.carry(far, near) })
	t.Cleanup(func() {
		made.l.Close()
		near.Close()
		far.Close()
		running.Wait()
	})
	return n, made.l
}

func (n *line) openAfar() (net.Listener, *os.File, error) {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return nil, nil, err
	}
	f, err := openTun("cairnline", n.far)
	if err != nil {
		return nil, nil, err
	}
	host, _, err := net.ParseCIDR(n.far)
	if err != nil {
		return nil, f, err
	}
	l, err := net.Listen("tcp", net.JoinHostPort(host.String(), "6443"))
	return l, f, err
}

// openTun makes a TUN device in the thread's namespace.
func openTun(name, address string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	request, err := unix.NewIfreq(name)
	if err == nil {
		request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	}
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	here, err := netlink.NewHandle() // of this thread's namespace
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	defer here.Close()
	link, err := here.LinkByName(name)
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	a, err := netlink.ParseAddr(address)
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	if err := errors.Join(here.AddrAdd(link, a), here.LinkSetUp(link)); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), name), nil
}

// carry moves packets one way until a file is closed.
func (n *line) carry(from, to *os.File) {
	type packet struct {
		data []byte
		due  time.Time
	}
	queue := make(chan packet, 4096)
	var sending sync.WaitGroup
	defer sending.Wait()
	defer close(queue)
	sending.Go(func() {
		for p := range queue {
			time.Sleep(time.Until(p.due))
			if !n.cut.Load() {
				_, _ = to.Write(p.data) // closed, or its queue is full
			}
		}
	})
	buf := make([]byte, 64<<10)
	for {
		size, err := from.Read(buf)
		if err != nil {
			return
		}
		p := buf[:size]
		if size < 40 || p[0]>>4 != 4 || p[9] != unix.IPPROTO_TCP {
			continue // the kernel's questions for routers
		}
		n.bytes.Add(int64(size))
		if flags := p[4*(p[0]&15)+13]; flags&0x12 == 2 {
			n.syns.Add(1)
		}
		if n.cut.Load() || rand.Float64() < n.loss {
			continue
		}
		queue <- packet{append([]byte(nil), p...), time.Now().Add(n.delay)}
	}
}
