package nodes

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// child makes the test binary a node's program.
const child = "CAIRN_TEST_NODE"

func TestMain(m *testing.M) {
	if address := os.Getenv(child); address != "" {
		if err := echo(address); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if ended, code, err := Contain(); ended || err != nil {
		if err != nil {
			fmt.Println(err)
			code = 1
		}
		os.Exit(code)
	}
	os.Exit(m.Run())
}

// echo sends a line with its number to the other node ten times a second, by
// UDP, and prints what it gets and the time of day.
func echo(other string) error {
	conn, err := net.ListenPacket("udp4", ":7")
	if err != nil {
		return err
	}
	go func() {
		to, err := net.ResolveUDPAddr("udp4", other+":7")
		for i := 0; err == nil; i++ {
			_, _ = conn.WriteTo(fmt.Appendf(nil, "packet %d", i), to)
			time.Sleep(50 * time.Millisecond)
		}
	}()
	go func() {
		for {
			fmt.Printf("time %d\n", time.Now().Unix())
			time.Sleep(50 * time.Millisecond)
		}
	}()
	buf := make([]byte, 100)
	for {
		n, _, err := conn.ReadFrom(buf)
		if err != nil {
			return err
		}
		fmt.Printf("got %s\n", buf[:n])
	}
}

// output is a log that can be asked.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(p)
}

// since returns what came after the first n bytes, and how many there are.
func (o *output) since(n int) (string, int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()[n:], o.text.Len()
}

func (o *output) await(t *testing.T, word string) string {
	t.Helper()
	_, from := o.since(0)
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if text, _ := o.since(from); strings.Contains(text, word) {
			return text
		}
	}
	text, _ := o.since(from)
	t.Fatalf("no %q within 10s in\n%s", word, text[max(0, len(text)-300):])
	return ""
}

// silent fails if word is said within half a second, after what is under way.
func (o *output) silent(t *testing.T, word string) {
	t.Helper()
	time.Sleep(200 * time.Millisecond)
	_, from := o.since(0)
	time.Sleep(500 * time.Millisecond)
	if text, _ := o.since(from); strings.Contains(text, word) {
		t.Errorf("%q among\n%s", word, text[max(0, len(text)-300):])
	}
}

func TestFaults(t *testing.T) {
	ctx := t.Context()
	logs := []*output{{}, {}}
	set, err := New(ctx, t.TempDir(), 2, 64<<20, func(i int) io.Writer { return logs[i] })
	if errors.Is(err, ErrUnavailable) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for i, n := range set.Nodes {
			if exits := n.Exits(); len(exits) > 0 {
				text, _ := logs[i].since(0)
				t.Errorf("node %d ended by itself: %q:\n%s", i, exits, text[max(0, len(text)-3000):])
			}
		}
		if err := set.Close(); err != nil {
			t.Error(err)
		}
	})
	a, b := set.Nodes[0], set.Nodes[1]
	start := func(n *Node, other *Node) {
		n.SetProgram([]string{os.Args[0]}, []string{child + "=" + other.Address.String()})
		if err := n.Start(ctx); err != nil {
			t.Fatal(err)
		}
	}
	start(a, b)
	start(b, a)
	logs[0].await(t, "got")
	logs[1].await(t, "got")
	t.Run("network", func(t *testing.T) { network1(ctx, t, set, logs) })
	t.Run("process", func(t *testing.T) { process1(ctx, t, a, logs[0]) })
	t.Run("clock", func(t *testing.T) { clock1(ctx, t, a, logs) })
	t.Run("disk", func(t *testing.T) { disk1(t, a, b) })
}

func network1(ctx context.Context, t *testing.T, set *Set, logs []*output) {
	lose := func(losses ...Loss) {
		t.Helper()
		if err := set.Lose(ctx, losses); err != nil {
			t.Fatal(err)
		}
	}
	lose(Loss{From: 0, To: 1, Percent: 100})
	logs[1].silent(t, "got")
	logs[0].await(t, "got")
	lose(Loss{From: 0, To: 1, Percent: 50})
	logs[1].await(t, "got")
	lose()
	for _, on := range []bool{true, false} {
		if err := set.Nodes[0].Throttle(on); err != nil {
			t.Error(err)
		}
		logs[1].await(t, "got")
	}
}

func process1(ctx context.Context, t *testing.T, n *Node, log *output) {
	if err := n.Pause(); err != nil {
		t.Fatal(err)
	}
	log.silent(t, "got")
	if err := n.Resume(); err != nil {
		t.Fatal(err)
	}
	log.await(t, "got")
	n.Kill()
	n.Kill()
	log.silent(t, "got")
	if n.Running() || len(n.Exits()) != 0 {
		t.Errorf("after a kill: running %v, exits %q", n.Running(), n.Exits())
	}
	if err := n.Start(ctx); err != nil {
		t.Fatal(err)
	}
	log.await(t, "got")
}

func clock1(ctx context.Context, t *testing.T, n *Node, logs []*output) {
	shown := func(log *output) time.Duration {
		var at int64
		text := log.await(t, "\ntime ")
		text = text[strings.LastIndex(text, "\ntime ")+1:]
		if _, err := fmt.Sscanf(text, "time %d", &at); err != nil {
			t.Fatal(err)
		}
		return time.Until(time.Unix(at, 0)).Round(time.Minute)
	}
	for _, d := range []time.Duration{time.Hour, -24 * time.Hour, 0} {
		if err := n.SetClock(d); errors.Is(err, ErrClock) {
			t.Skip(err)
		} else if err != nil {
			t.Fatal(err)
		}
		logs[0].await(t, "time")
		if got := shown(logs[0]); got != d {
			t.Errorf("clock of node 0 differs by %s; want %s", got, d)
		}
		if got := shown(logs[1]); got != 0 {
			t.Errorf("clock of node 1 differs by %s; want 0", got)
		}
	}
	if err := n.SetClock(-time.Hour); err != nil {
		t.Fatal(err)
	}
	n.Kill()
	if err := n.Start(ctx); err != nil {
		t.Fatal(err)
	}
	logs[0].await(t, "time")
	if got := shown(logs[0]); got != -time.Hour {
		t.Errorf("clock of a restarted node differs by %s; want -1h", got)
	}
}

func disk1(t *testing.T, a, b *Node) {
	// The machine must not see the mount: a killed test would leave it.
	if mounts, err := os.ReadFile(fmt.Sprintf("/proc/%d/mounts", os.Getppid())); err != nil || bytes.Contains(mounts, []byte(a.Dir)) {
		t.Errorf("mounts of the parent: %v; want none of %s", err, a.Dir)
	}
	write := func(n *Node) error {
		f, err := os.OpenFile(filepath.Join(n.Dir, "file"), os.O_CREATE|os.O_WRONLY|unix.O_DIRECT, 0o600)
		if err != nil {
			return err
		}
		f.Close()
		return os.WriteFile(filepath.Join(n.Dir, "file"), make([]byte, 100<<10), 0o600)
	}
	for _, n := range []*Node{a, b} {
		if err := write(n); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.Fill(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(a.Dir, "other"), make([]byte, 100<<10), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("write on a full disk: %v; want %v", err, unix.ENOSPC)
	}
	if err := write(b); err != nil {
		t.Errorf("the other disk: %v", err)
	}
	if err := a.Free(); err != nil {
		t.Fatal(err)
	}
	if err := write(a); err != nil {
		t.Errorf("write on a freed disk: %v", err)
	}
}
