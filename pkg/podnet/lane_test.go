package podnet

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
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

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/cairn-os/cairn/pkg/membership"
)

const (
	insideEnv = "CAIRN_TEST_NAMESPACE" // the tests run in namespaces of their own
	nodeEnv   = "CAIRN_TEST_NODE"      // this process is a node: childOptions
)

// TestMain runs the tests again in a network and a mount namespace of their own, with their own /run. A node is a process
// too: goroutines move between threads, so its process has to live in the node's network namespace.
func TestMain(m *testing.M) {
	switch {
	case os.Getenv(nodeEnv) != "":
		os.Exit(runChild(os.Getenv(nodeEnv)))
	case os.Getenv(insideEnv) != "":
		if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, ""); err != nil {
			fmt.Fprintln(os.Stderr, "own /run:", err)
			os.Exit(1)
		}
		os.Exit(m.Run())
	case os.Getuid() != 0:
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), insideEnv+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS}
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		os.Exit(exit.ExitCode())
	case err != nil: // no namespaces here
		fmt.Fprintln(os.Stderr, "no namespaces:", err)
		os.Exit(m.Run())
	}
}

// childOptions are a node's Options, less what does not travel.
type childOptions struct {
	Options
	Socket        string
	Restore       bool // do only that
	UserWireguard bool // devices by a program, not by the kernel
}

// runChild is a node: it runs until its standard input ends, and exits with 0 then.
func runChild(text string) int {
	var c childOptions
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	c.Log = slog.New(slog.NewTextHandler(os.Stderr, nil)).With("node", c.Node)
	if c.Restore {
		if err := Restore(c.Options); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return 0
	}
	client, err := kubernetes.NewForConfig(&rest.Config{
		Host: "http://cairn", UserAgent: c.Node,
		Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", c.Socket)
		},
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	c.Client = client
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	if c.UserWireguard {
		if err := userWireguard(c.Options); err != nil {
			fmt.Fprintln(os.Stderr, "wireguard:", err)
			return 2
		}
	}
	if err := Run(ctx, c.Options); err != nil {
		fmt.Fprintln(os.Stderr, "Run:", err)
		return 1
	}
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		left := leftGoroutines()
		if len(left) == 0 {
			return 0
		}
		if time.Now().After(end) {
			fmt.Fprintf(os.Stderr, "goroutines are left:\n%s\n", strings.Join(left, "\n"))
			return 3
		}
	}
}

// leftGoroutines are those that Run started and did not wait for. flannel's WireGuard keeps one, see wireguardEnd.create.
func leftGoroutines() []string {
	buf := make([]byte, 1<<20)
	var left []string
	for _, g := range strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		ours := strings.Contains(g, "/podnet.") || strings.Contains(g, "flannel-io") || strings.Contains(g, "tools/cache")
		if ours && !strings.Contains(g, "/podnet.runChild") && !strings.Contains(g, "wireguard.newWGDevice") &&
			!strings.Contains(g, "/podnet.userWireguard") {
			left = append(left, g)
		}
	}
	return left
}

// lane is a cable with nodes on it, and a machine that is none: the test's own namespace.
type lane struct {
	t   *testing.T
	dir string
	api *apiServer
	lan *netlink.Bridge
}

// The machine outside of the cluster. It knows no way to pods.
const (
	outside4 = "192.0.2.254"
	outside6 = "2001:db8::fe"
)

func newLane(t *testing.T) *lane {
	t.Helper()
	if os.Getenv(insideEnv) == "" {
		t.Skip("needs root and network namespaces")
	}
	l := &lane{t: t, dir: t.TempDir(), lan: &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "lan0"}}}
	l.api = newAPIServer(t, filepath.Join(l.dir, "api.sock"))
	t.Cleanup(func() { _ = netlink.LinkDel(l.lan) })
	must(t, os.RemoveAll(addressDir)) // as after a reboot
	must(t, errors.Join(netlink.LinkAdd(l.lan), up("lan0", outside4+"/24", outside6+"/64"), up("lo")))
	return l
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// up gives a link of this thread's namespace addresses and brings it up.
func up(name string, cidrs ...string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	for _, c := range cidrs {
		addr, err := netlink.ParseAddr(c)
		if err != nil {
			return err
		}
		addr.Flags = unix.IFA_F_NODAD
		if err := netlink.AddrReplace(link, addr); err != nil {
			return err
		}
	}
	return netlink.LinkSetUp(link)
}

// space is a network namespace.
type space struct {
	t  *testing.T
	ns netns.NsHandle
}

func newSpace(t *testing.T) space {
	t.Helper()
	s := space{t: t}
	must(t, onThread(func() (err error) {
		s.ns, err = netns.New() // and enters it
		return err
	}))
	t.Cleanup(func() { s.ns.Close() })
	return s
}

// onThread runs do on a thread of its own and throws the thread away: the namespace it entered goes with it.
func onThread(do func() error) error {
	failed := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked
		failed <- do()
	}()
	return <-failed
}

func (s space) do(do func() error) error {
	return onThread(func() error {
		if err := netns.Set(s.ns); err != nil {
			return err
		}
		return do()
	})
}

// run runs a command and returns what it printed.
func (s space) run(name string, args ...string) string {
	s.t.Helper()
	var out []byte
	err := s.do(func() (err error) {
		out, err = exec.Command(name, args...).CombinedOutput()
		return err
	})
	if err != nil {
		s.t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// node is a machine of the cluster. Its process may be started many times.
type node struct {
	space
	lane   *lane
	child  childOptions
	cmd    *exec.Cmd
	stdin  io.Closer
	log    *lockedBuffer
	exited chan error
	cni    string
}

type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// node plugs a machine in, with the number in its addresses.
func (l *lane) node(number int, backend string, pods ...string) *node {
	l.t.Helper()
	name := fmt.Sprint("n", number)
	n := &node{space: newSpace(l.t), lane: l, log: new(lockedBuffer)}
	n.child.Node, n.child.Socket = name, l.api.socket
	n.child.Settings = membership.Settings{PodCIDRs: list(pods...), Flannel: backend}
	n.child.StateDir, n.child.CNIConfDir = filepath.Join(l.dir, name, "state"), filepath.Join(l.dir, name, "cni")
	n.cni = filepath.Join(n.child.CNIConfDir, cniFile)
	veth := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: "lan-" + name, MasterIndex: l.lan.Index}, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(n.ns)),
	}
	must(l.t, errors.Join(netlink.LinkAdd(veth), up("lan-"+name)))
	must(l.t, n.do(func() error { return up("lo") }))
	n.readdress(number)
	serveEcho(l.t, n.do)
	l.t.Cleanup(func() {
		n.stop()
		_ = netlink.LinkDel(veth) // at once: the next test makes one of that name
		if l.t.Failed() {
			l.t.Logf("node %s:\n%s", name, n.log)
		}
	})
	return n
}

// readdress gives the machine, and the next process on it, addresses of that number.
func (n *node) readdress(number int) {
	n.t.Helper()
	four, six := fmt.Sprintf("192.0.2.%d", number), fmt.Sprintf("2001:db8::%x", number)
	n.child.NodeIPs = []netip.Addr{netip.MustParseAddr(four), netip.MustParseAddr(six)}
	must(n.t, n.do(func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		old, err := netlink.AddrList(link, netlink.FAMILY_ALL)
		if err != nil {
			return err
		}
		for _, a := range old {
			if !a.IP.IsLinkLocalUnicast() {
				err = errors.Join(err, netlink.AddrDel(link, &a))
			}
		}
		err = errors.Join(err, up("eth0", four+"/24", six+"/64"))
		for _, gw := range []string{outside4, outside6} {
			err = errors.Join(err, netlink.RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: net.ParseIP(gw)}))
		}
		return err
	}))
}

// command is the node's process, not yet started.
func (n *node) command() *exec.Cmd {
	text, err := json.Marshal(n.child)
	must(n.t, err)
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), nodeEnv+"="+string(text))
	cmd.Stderr = n.log
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
	return cmd
}

func (n *node) start() {
	n.t.Helper()
	n.cmd = n.command()
	var err error
	n.stdin, err = n.cmd.StdinPipe()
	must(n.t, err)
	must(n.t, n.do(n.cmd.Start))
	cmd, exited := n.cmd, make(chan error, 1)
	n.exited = exited
	go func() { exited <- cmd.Wait() }()
}

// stop ends the node's process in order; its network stays.
func (n *node) stop() {
	n.t.Helper()
	if n.cmd == nil {
		return
	}
	_ = n.stdin.Close()
	n.cmd = nil
	select {
	case err := <-n.exited:
		if err != nil {
			n.t.Errorf("node %s: %v", n.child.Node, err)
		}
	case <-time.After(20 * time.Second):
		n.t.Errorf("node %s does not stop", n.child.Node)
	}
}

// ready waits until pods may start.
func (n *node) ready() {
	n.t.Helper()
	n.await("CNI configuration of "+n.child.Node, func() bool {
		_, err := os.Stat(n.cni)
		return err == nil
	})
}

func (n *node) await(what string, is func() bool) {
	n.t.Helper()
	for end := time.Now().Add(40 * time.Second); !is(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			n.t.Fatalf("%s does not come", what)
		}
	}
}

func (n *node) logged(text string) bool { return strings.Contains(n.log.String(), text) }

// plugins are the CNI plugins of the image, built once.
var plugins = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "cni")
	if err != nil {
		return "", err
	}
	cmd := exec.Command("go", "build", "-o", dir+"/",
		"github.com/containernetworking/plugins/plugins/main/bridge", "github.com/containernetworking/plugins/plugins/ipam/host-local")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build CNI plugins: %w\n%s", err, out)
	}
	return dir, nil
})

// pod is a pod of a node, connected by the node's CNI configuration.
type pod struct {
	space
	name      string
	addresses addresses
}

func (n *node) pod(name string) *pod {
	n.t.Helper()
	dir, err := plugins()
	must(n.t, err)
	data, err := os.ReadFile(n.cni)
	must(n.t, err)
	var conf struct {
		CNIVersion, Name string
		Plugins          []map[string]any
	}
	must(n.t, json.Unmarshal(data, &conf))
	bridge := conf.Plugins[0]
	bridge["cniVersion"], bridge["name"] = conf.CNIVersion, conf.Name
	data, err = json.Marshal(bridge)
	must(n.t, err)

	p := &pod{space: newSpace(n.t), name: name}
	// A path that the plugin's process sees too: /proc/self would be its own.
	ns := fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), int(p.ns))
	var out []byte
	err = n.do(func() (err error) {
		cmd := exec.Command(filepath.Join(dir, "bridge"))
		cmd.Env = append(os.Environ(), "CNI_COMMAND=ADD", "CNI_CONTAINERID="+name, "CNI_NETNS="+ns, "CNI_IFNAME=eth0", "CNI_PATH="+dir)
		cmd.Stdin = bytes.NewReader(data)
		out, err = cmd.CombinedOutput()
		return err
	})
	if err != nil {
		n.t.Fatalf("bridge: %v\n%s", err, out)
	}
	var result struct {
		IPs []struct{ Address netip.Prefix }
	}
	must(n.t, json.Unmarshal(out, &result))
	for _, i := range result.IPs {
		p.addresses[familyOf(i.Address.Addr())] = i.Address.Addr()
	}
	must(n.t, p.do(func() error { return up("lo") }))
	serveEcho(n.t, p.do)
	return p
}

const echoPort = 9000

// serveEcho answers each packet with the address it came from.
func serveEcho(t *testing.T, in func(func() error) error) {
	t.Helper()
	var conns []*net.UDPConn
	must(t, in(func() error {
		for _, network := range []string{"udp4", "udp6"} {
			c, err := net.ListenUDP(network, &net.UDPAddr{Port: echoPort})
			if err != nil {
				return err
			}
			conns = append(conns, c)
		}
		return nil
	}))
	for _, c := range conns {
		t.Cleanup(func() { c.Close() })
		go func() {
			buf := make([]byte, 1<<16)
			for {
				_, from, err := c.ReadFromUDPAddrPort(buf)
				if err != nil {
					return
				}
				_, _ = c.WriteToUDPAddrPort([]byte(from.Addr().Unmap().String()), from)
			}
		}()
	}
}

// ask sends a packet of so many bytes, IP header and all, which nobody may split, and returns which address the other side
// saw it come from.
func (s space) ask(to netip.Addr, size int) (netip.Addr, error) {
	var seen netip.Addr
	err := s.do(func() error {
		c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, echoPort)))
		if err != nil {
			return err
		}
		defer c.Close()
		raw, err := c.SyscallConn()
		if err != nil {
			return err
		}
		header := 28
		err = errors.Join(raw.Control(func(fd uintptr) {
			if to.Is4() {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO)
			} else {
				header = 48
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO)
			}
		}), err)
		if err != nil {
			return err
		}
		if _, err := c.Write(make([]byte, max(size-header, 1))); err != nil {
			return err
		}
		if err := c.SetReadDeadline(time.Now().Add(500 * time.Millisecond)); err != nil {
			return err
		}
		buf := make([]byte, 100)
		got, err := c.Read(buf)
		if err != nil {
			return err
		}
		seen, err = netip.ParseAddr(string(buf[:got]))
		return err
	})
	return seen, err
}

// reaches waits until a packet arrives, from the address it should seem to come from.
func (s space) reaches(to netip.Addr, size int, from netip.Addr) {
	s.t.Helper()
	var seen netip.Addr
	var err error
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if seen, err = s.ask(to, size); err == nil {
			break
		}
	}
	if err != nil || seen != from {
		s.t.Fatalf("%d bytes to %v: seen from %v, %v; want from %v", size, to, seen, err, from)
	}
}

// split counts the packets that this namespace had to split, or refused for their size.
func (s space) split() string {
	var found []string
	for _, line := range strings.Split(s.run("cat", "/proc/thread-self/net/snmp6"), "\n") {
		if f := strings.Fields(line); len(f) == 2 && slices.Contains([]string{"Ip6FragCreates", "Ip6FragOKs"}, f[0]) && f[1] != "0" {
			found = append(found, line)
		}
	}
	lines := strings.Split(s.run("cat", "/proc/thread-self/net/snmp"), "\n")
	names, values := strings.Fields(lines[0]), strings.Fields(lines[1])
	for i, name := range names {
		if (name == "FragCreates" || name == "FragOKs") && values[i] != "0" {
			found = append(found, name+" "+values[i])
		}
	}
	return strings.Join(found, ", ")
}
