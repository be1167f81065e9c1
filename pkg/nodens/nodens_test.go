package nodens

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestMain(m *testing.M) {
	Child()
	os.Exit(m.Run())
}

// buffer is a console that tests can wait on.
type buffer struct {
	mu   sync.Mutex
	data bytes.Buffer
	more chan struct{}
}

func newBuffer() *buffer { return &buffer{more: make(chan struct{}, 1)} }

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	select {
	case b.more <- struct{}{}:
	default:
	}
	return b.data.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.data.String()
}

// line waits for the first whole line.
func (b *buffer) line(t *testing.T) string {
	t.Helper()
	timeout := time.After(20 * time.Second)
	for {
		if line, _, ok := strings.Cut(b.String(), "\n"); ok {
			return line
		}
		select {
		case <-b.more:
		case <-timeout:
			t.Fatalf("the console says nothing more than %q", b.String())
		}
	}
}

// tree is a root that holds nothing but a small init.
func tree(t *testing.T) string {
	t.Helper()
	if err := Available(); err != nil {
		t.Skip(err)
	}
	dir := t.TempDir()
	for _, d := range []string{"usr/sbin", "var", "proc", "sys", "dev", "run", "tmp"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	build := exec.Command("go", "build", "-o", filepath.Join(dir, "usr/sbin/init"), "./testdata/init")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build init: %v\n%s", err, out)
	}
	return dir
}

func config(t *testing.T, tree, name, address string) (Config, *buffer) {
	con := newBuffer()
	return Config{
		Tree: tree, StateDir: t.TempDir(), Name: name, Address: netip.MustParsePrefix(address),
		Bridge: "cairntest0", Console: con, Cmdline: "quiet",
		Seed: map[string][]byte{"/run/cairn/sys/seed/config.yaml": []byte("hostname: " + name)},
	}, con
}

func start(t *testing.T, cfg Config) *Node {
	t.Helper()
	n, err := Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Kill(); err != nil {
			t.Errorf("clean up after %s: %v", cfg.Name, err)
		}
	})
	return n
}

type world struct {
	PID      int
	Name     string
	Args     string
	Links    []string
	SysLinks []string
	Cgroups  []string
	Seed     string
	Boots    int
}

func TestWorldOfANode(t *testing.T) {
	tree := tree(t)
	cfg, con := config(t, tree, "one", "10.88.77.2/24")
	n := start(t, cfg)
	var got world
	if err := json.Unmarshal([]byte(con.line(t)), &got); err != nil {
		t.Fatalf("%v: %q", err, con.String())
	}
	for _, c := range got.Cgroups {
		path := c[strings.LastIndex(c, ":")+1:]
		if path != "/" && path != "/init" {
			t.Errorf("the node sees itself in cgroup %q", c)
		}
	}
	slices.Sort(got.Links)
	want := world{
		PID: 1, Name: "one", Args: "--container --cmdline quiet", Seed: "hostname: one", Boots: 1,
		Cgroups: got.Cgroups, Links: got.Links, SysLinks: got.SysLinks,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the node's world (-want +got):\n%s", diff)
	}
	for _, links := range [][]string{got.Links, got.SysLinks} {
		// Kernels with tunnel drivers built in add their fallback devices.
		if !slices.Contains(links, "eth0") || !slices.Contains(links, "lo") || slices.Contains(links, cfg.Bridge) {
			t.Errorf("links %v; want lo and eth0 and none of the machine's", links)
		}
	}
	exit, err := n.Stop(t.Context())
	if err != nil || exit != (Exit{}) {
		t.Errorf("Stop = %+v, %v; want exit 0", exit, err)
	}
	if !strings.HasSuffix(con.String(), "stopped\n") {
		t.Errorf("the console ends with %q", con.String())
	}
	if _, err := os.Stat(filepath.Join(tree, "written")); err == nil {
		t.Error("the node wrote into its tree")
	}
	checkGone(t, n)

	// The second start keeps /var and nothing else.
	con = newBuffer()
	cfg.Console = con
	n = start(t, cfg)
	con.line(t)
	if err := syscall.Kill(n.PID(), syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	if exit, err := n.Wait(t.Context()); err != nil || exit.Code != 3 {
		t.Errorf("Wait = %+v, %v; want code 3", exit, err)
	}
	boots, err := os.ReadFile(filepath.Join(cfg.StateDir, "var/boots"))
	if err != nil || len(boots) != 2 {
		t.Errorf("/var counts %d boots, %v; want 2", len(boots), err)
	}
}

// checkGone looks for what a node may leave on the machine.
func checkGone(t *testing.T, n *Node) {
	t.Helper()
	for _, h := range n.cgroups {
		if _, err := os.Stat(h.Dir); err == nil {
			t.Errorf("cgroup %s is still there", h.Dir)
		}
	}
	for _, link := range []string{n.link, n.cfg.Bridge} {
		if _, err := net.InterfaceByName(link); err == nil {
			t.Errorf("link %s is still there", link)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || bytes.Contains(mounts, []byte(n.cfg.StateDir)) {
		t.Errorf("a mount is still there, %v", err)
	}
	if err := syscall.Kill(n.PID(), 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("process %d is still there: %v", n.PID(), err)
	}
}

func TestTwoNodesAndTheMachine(t *testing.T) {
	tree := tree(t)
	var nodes []*Node
	for i, name := range []string{"left", "right"} {
		address := fmt.Sprintf("10.88.77.%d/24", i+2)
		cfg, con := config(t, tree, name, address)
		n := start(t, cfg)
		con.line(t)
		if _, err := n.Exec(t.Context(), "/usr/sbin/init", "address", address); err != nil {
			t.Fatal(err)
		}
		nodes = append(nodes, n)
	}
	out, err := nodes[0].Exec(t.Context(), "/usr/sbin/init", "dial", "10.88.77.3:80")
	if err != nil || string(out) != "I am right" {
		t.Errorf("from left to right: %q, %v", out, err)
	}
	c, err := net.DialTimeout("tcp", "10.88.77.2:80", 5*time.Second)
	if err != nil {
		t.Fatalf("from the machine to left: %v", err)
	}
	c.Close()

	if err := nodes[0].Kill(); err != nil {
		t.Errorf("Kill = %v", err)
	}
	if exit, err := nodes[0].Wait(t.Context()); err != nil || exit.Signal != syscall.SIGKILL {
		t.Errorf("Wait after Kill = %+v, %v", exit, err)
	}
	if out, err := nodes[1].Exec(t.Context(), "/usr/sbin/init", "dial", "10.88.77.1:1"); err == nil {
		t.Errorf("a closed port answers %q", out)
	}
	if err := nodes[1].Kill(); err != nil {
		t.Errorf("Kill = %v", err)
	}
	for _, n := range nodes {
		checkGone(t, n)
	}
}

func TestExecReportsFailure(t *testing.T) {
	cfg, con := config(t, tree(t), "fails", "10.88.77.2/24")
	n := start(t, cfg)
	con.line(t)
	_, err := n.Exec(t.Context(), "/usr/sbin/init", "fail")
	if err == nil || !strings.Contains(err.Error(), "asked to fail") {
		t.Errorf("Exec = %v; want what the program wrote", err)
	}
}

func TestStartRefuses(t *testing.T) {
	tree := tree(t)
	for name, change := range map[string]func(*Config){
		"no host name":    func(c *Config) { c.Name = "../x" },
		"the bridge's":    func(c *Config) { c.Address = netip.MustParsePrefix("10.88.77.1/24") },
		"an IPv6 network": func(c *Config) { c.Address6 = netip.MustParsePrefix("fd00:8877::1/64") },
		"cannot hold":     func(c *Config) { c.Tree = "/a:b" },
		"no such file":    func(c *Config) { c.Init = []string{"/absent"} },
		"mount overlay":   func(c *Config) { c.Tree = filepath.Join(tree, "absent") },
	} {
		cfg, _ := config(t, tree, "bad", "10.88.77.2/24")
		change(&cfg)
		n, err := Start(t.Context(), cfg)
		if err == nil {
			n.Kill()
		}
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("Start = %v; want %q", err, name)
		}
	}
	cfg, con := config(t, tree, "twice", "10.88.77.2/24")
	start(t, cfg)
	con.line(t)
	if _, err := Start(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "running already") {
		t.Errorf("a second Start on one state = %v", err)
	}
}

func TestStopKillsInTheEnd(t *testing.T) {
	cfg, con := config(t, tree(t), "stubborn", "10.88.77.2/24")
	cfg.Init = []string{"/usr/sbin/init", "child"}
	n := start(t, cfg)
	con.line(t)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := n.Stop(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Stop of a stubborn node = %v; console %q", err, con.String())
	}
	checkGone(t, n)
}
