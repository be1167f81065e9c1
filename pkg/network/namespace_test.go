package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/server4"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

const inside = "CAIRN_TEST_NAMESPACE"

// TestMain runs the tests again in a network namespace of their own: goroutines move between threads, so the whole
// process has to live there.
func TestMain(m *testing.M) {
	if os.Getenv(inside) != "" || os.Getuid() != 0 {
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		os.Exit(exit.ExitCode())
	case err != nil: // no namespaces here
		fmt.Fprintln(os.Stderr, "no network namespace:", err)
		os.Exit(m.Run())
	}
}

func needNamespace(t *testing.T) {
	t.Helper()
	if os.Getenv(inside) == "" {
		t.Skip("needs root and network namespaces")
	}
}

// far is another namespace: the other end of the cable.
type far struct {
	t  *testing.T
	ns netns.NsHandle
}

func newFar(t *testing.T) *far {
	t.Helper()
	needNamespace(t)
	f := &far{t: t}
	onThread(t, func() (err error) {
		f.ns, err = netns.New() // and enters it
		return err
	})
	t.Cleanup(func() { f.ns.Close() })
	return f
}

// onThread runs do on a thread of its own and throws the thread away: the namespace it entered goes with it.
func onThread(t *testing.T, do func() error) {
	t.Helper()
	failed := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked
		failed <- do()
	}()
	if err := <-failed; err != nil {
		t.Fatal(err)
	}
}

// do runs f in the far namespace.
func (f *far) do(do func() error) {
	f.t.Helper()
	onThread(f.t, func() error {
		if err := netns.Set(f.ns); err != nil {
			return err
		}
		return do()
	})
}

// cable connects the interface here with the interface "far-"+here there, which gets the addresses.
func (f *far) cable(here string, addresses ...string) {
	f.t.Helper()
	there := "far-" + here
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: here}, PeerName: there, PeerNamespace: netlink.NsFd(int(f.ns))}
	if err := netlink.LinkAdd(veth); err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { _ = netlink.LinkDel(veth) }) // a test may have done so
	f.do(func() error {
		link, err := netlink.LinkByName(there)
		if err != nil {
			return err
		}
		for _, a := range addresses {
			addr, err := netlink.ParseAddr(a)
			if err != nil {
				return err
			}
			if err := netlink.AddrAdd(link, addr); err != nil {
				return err
			}
		}
		return nil
	})
	f.plug(here, true)
}

// plug puts the cable in or out.
func (f *far) plug(here string, in bool) {
	f.t.Helper()
	f.do(func() error {
		link, err := netlink.LinkByName("far-" + here)
		if err != nil {
			return err
		}
		if in {
			return netlink.LinkSetUp(link)
		}
		return netlink.LinkSetDown(link)
	})
}

// server is a DHCP server with one address to give.
type server struct {
	mu     sync.Mutex
	me     net.IP
	give   net.IP
	lease  time.Duration
	extra  []dhcpv4.Modifier
	nak    bool
	silent bool
	seen   []string // "DISCOVER host", "REQUEST 192.0.2.7" (renewal of)
}

// serve answers on the far end of here.
func (f *far) serve(here string, s *server) {
	f.t.Helper()
	var srv *server4.Server
	f.do(func() (err error) {
		srv, err = server4.NewServer("far-"+here, nil, s.answer)
		return err
	})
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve() // ends with Close
	}()
	f.t.Cleanup(func() {
		if err := srv.Close(); err != nil {
			f.t.Error(err)
		}
		<-done
	})
}

func (s *server) answer(conn net.PacketConn, peer net.Addr, m *dhcpv4.DHCPv4) {
	s.mu.Lock()
	defer s.mu.Unlock()
	kind := dhcpv4.MessageTypeOffer
	switch m.MessageType() {
	case dhcpv4.MessageTypeDiscover:
		s.seen = append(s.seen, strings.TrimSpace("DISCOVER "+m.HostName()))
	case dhcpv4.MessageTypeRequest:
		s.seen = append(s.seen, "REQUEST "+m.ClientIPAddr.String())
		kind = dhcpv4.MessageTypeAck
		if s.nak {
			kind = dhcpv4.MessageTypeNak
		}
		// RFC 2131: a renewal names no server; a request after an offer names the one it takes.
		if id := m.ServerIdentifier(); id != nil && !id.Equal(s.me) {
			return
		}
	default:
		return
	}
	if s.silent {
		return
	}
	all := append([]dhcpv4.Modifier{
		dhcpv4.WithMessageType(kind), dhcpv4.WithYourIP(s.give), dhcpv4.WithNetmask(net.CIDRMask(24, 32)),
		dhcpv4.WithOption(dhcpv4.OptServerIdentifier(s.me)), dhcpv4.WithOption(dhcpv4.OptIPAddressLeaseTime(s.lease)),
	}, s.extra...)
	reply, err := dhcpv4.NewReplyFromRequest(m, all...)
	if err != nil {
		return
	}
	to := &net.UDPAddr{IP: net.IPv4bcast, Port: 68}
	if !m.ClientIPAddr.IsUnspecified() && kind == dhcpv4.MessageTypeAck {
		to.IP = m.ClientIPAddr // RFC 2131 section 4.1
	}
	if s.nak && !m.ClientIPAddr.IsUnspecified() {
		to.IP = m.ClientIPAddr
	}
	_, _ = conn.WriteTo(reply.ToBytes(), to)
}

func (s *server) set(change func(*server)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(s)
}

func (s *server) log() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.seen)
}

// eventually waits for what the kernel and a server take their time for.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("not within 20 s: %s", what)
}

func addresses(t *testing.T, name string) []string {
	t.Helper()
	link, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	addrs, err := netlink.AddrList(link, netlink.FAMILY_V4)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, a := range addrs {
		all = append(all, a.IPNet.String())
	}
	return all
}

// routes4 lists the IPv4 routes through name, those of the kernel itself left out.
func routes4(t *testing.T, name string) []string {
	t.Helper()
	link, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	list, err := netlink.RouteList(link, netlink.FAMILY_V4)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, r := range list {
		if r.Protocol != unix.RTPROT_KERNEL {
			all = append(all, fmt.Sprintf("%v via %v metric +%d", r.Dst, r.Gw, r.Priority-link.Attrs().Index))
		}
	}
	slices.Sort(all)
	return all
}

// start runs n until the test ends, or until the function it returns is called.
func start(t *testing.T, n *Network) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		n.Run(ctx)
	}()
	stop = func() {
		cancel()
		select {
		case <-done:
		case <-time.After(10 * time.Second):
			t.Error("Run did not end with its context")
		}
	}
	t.Cleanup(stop)
	return stop
}

func testOptions(t *testing.T) Options {
	t.Helper()
	dir := t.TempDir()
	return Options{
		Logger: slog.New(slog.NewTextHandler(t.Output(), nil)), Hostname: "till-07", FallbackDNS: []string{"203.0.113.53"},
		ResolvConf: filepath.Join(dir, "resolv.conf"), LeaseDir: filepath.Join(dir, "leases"),
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func prefixes(all []netip.Prefix) []string {
	var text []string
	for _, p := range all {
		text = append(text, p.String())
	}
	return text
}
