package nodens

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"math/rand"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// started is a node with its addresses set.
func started(t *testing.T, tree, name, address, address6 string) *Node {
	t.Helper()
	cfg, con := config(t, tree, name, address)
	cfg.Address6 = netip.MustParsePrefix(address6)
	n := start(t, cfg)
	con.line(t)
	for _, a := range []string{address, address6} {
		if _, err := n.Exec(t.Context(), "/usr/sbin/init", "address", a); err != nil {
			t.Fatal(err)
		}
	}
	return n
}

func pair(t *testing.T) (left, right *Node) {
	t.Helper()
	tree := tree(t)
	return started(t, tree, "left", "10.88.77.2/24", "fd00:8877::2/64"), started(t, tree, "right", "10.88.77.3/24", "fd00:8877::3/64")
}

// soon waits for what must come true: a cable that was just plugged in, and
// who has to be asked for an address again, take a moment.
func soon(f func() bool) bool {
	for range 10 {
		if f() {
			return true
		}
		time.Sleep(200 * time.Millisecond)
	}
	return false
}

// reaches reports whether a node gets the greeting at addr within a second.
func reaches(t *testing.T, n *Node, addr string) bool {
	t.Helper()
	out, err := n.Exec(t.Context(), "/usr/sbin/init", "dial", addr)
	return err == nil && strings.HasPrefix(string(out), "I am ")
}

// machineReaches is the same from the build machine.
func machineReaches(addr string) bool {
	c, err := net.DialTimeout("tcp", addr, time.Second)
	if err != nil {
		return false
	}
	c.Close()
	return true
}

type reach struct {
	where string
	got   func() bool
	want  bool
}

func check(t *testing.T, when string, all ...reach) {
	t.Helper()
	for _, r := range all {
		if got := r.got() || r.want && soon(r.got); got != r.want {
			t.Errorf("%s: %s: reached %t; want %t", when, r.where, got, r.want)
		}
	}
}

// from is the question whether a node reaches addr; fromMachine is the same
// for the build machine.
func from(t *testing.T, n *Node, addr string) func() bool {
	return func() bool { return reaches(t, n, addr) }
}

func fromMachine(addr string) func() bool { return func() bool { return machineReaches(addr) } }

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestCutAndRestore(t *testing.T) {
	left, right := pair(t)
	both := func(when string, want bool) {
		t.Helper()
		check(t, when,
			reach{"left to right", from(t, left, "10.88.77.3:80"), want},
			reach{"left to right, IPv6", from(t, left, "[fd00:8877::3]:80"), want},
			reach{"machine to left", fromMachine("10.88.77.2:80"), want},
			reach{"machine to left, IPv6", fromMachine("[fd00:8877::2]:80"), want})
	}
	both("at first", true)
	must(t, left.Link().Cut())
	both("after Cut", false)
	if out, err := left.Exec(t.Context(), "/usr/sbin/init", "carrier"); err != nil || string(out) != "0" {
		t.Errorf("carrier of a cut cable: %q, %v", out, err)
	}
	must(t, left.Link().Restore())
	both("after Restore", true)
	must(t, right.Kill())
	if err := right.Link().Cut(); err == nil || !strings.Contains(err.Error(), "has ended") {
		t.Errorf("Cut of an ended node = %v", err)
	}
}

func TestBlock(t *testing.T) {
	left, right := pair(t)
	// A ping comes back when both ways are open; what arrives one way is told
	// by the receiver's counters. Who is asked for an address and cannot answer
	// gets no packet either, so that both know each other's.
	know(t, left, right, "10.88.77.3")
	know(t, right, left, "10.88.77.2")
	pings := func() bool { return len(pingTimes(t, left, "10.88.77.3", 3)) > 0 }
	arrives := func(from, to *Node, address string) func() bool {
		return func() bool {
			before := icmpIn(t, to)
			pingTimes(t, from, address, 3)
			return icmpIn(t, to) > before
		}
	}
	check(t, "at first", reach{"left and right", pings, true})
	for _, test := range []struct {
		d           Direction
		right, left bool // what arrives there
	}{
		{Inbound, true, false},
		{Outbound, false, true},
		{Both, false, false},
	} {
		when := fmt.Sprintf("with direction %d", test.d)
		must(t, left.Link().Block(right, test.d))
		check(t, when,
			reach{"left and right", pings, false},
			reach{"what left sends", arrives(left, right, "10.88.77.3"), test.right},
			reach{"what right sends", arrives(right, left, "10.88.77.2"), test.left},
			reach{"machine to left", fromMachine("10.88.77.2:80"), true},
			reach{"machine to right", fromMachine("10.88.77.3:80"), true})
		must(t, left.Link().Unblock(right, test.d))
		check(t, when+", undone", reach{"left and right", pings, true})
	}
	// It holds for an impaired line as well, which is another device.
	must(t, right.Link().Impair(Impairment{Delay: time.Millisecond}))
	check(t, "impaired", reach{"left and right", pings, true})
	must(t, left.Link().Block(right, Both))
	check(t, "impaired and blocked", reach{"left and right", pings, false})
	must(t, left.Link().Repair())
	check(t, "impaired and unblocked", reach{"left and right", pings, true})
}

func TestFirewallPort(t *testing.T) {
	left, right := pair(t)
	must(t, right.Link().FirewallPort(80))
	for _, addr := range []string{"10.88.77.3:80", "[fd00:8877::3]:80"} {
		check(t, "firewalled", reach{"left to " + addr, from(t, left, addr), false}, reach{"machine to " + addr, fromMachine(addr), false})
	}
	check(t, "firewalled", reach{"right to left", from(t, right, "10.88.77.2:80"), true})
	must(t, right.Link().OpenPort(80))
	check(t, "open", reach{"left to right", from(t, left, "10.88.77.3:80"), true})
}

// know tells a node the hardware address of another, for good.
func know(t *testing.T, n, other *Node, address string) {
	t.Helper()
	ns, err := netns.GetFromPid(n.PID())
	must(t, err)
	defer ns.Close()
	h, err := netlink.NewHandleAt(ns)
	must(t, err)
	defer h.Close()
	link, err := h.LinkByName(nodeDevice)
	must(t, err)
	must(t, h.NeighSet(&netlink.Neigh{
		LinkIndex: link.Attrs().Index, IP: net.ParseIP(address), HardwareAddr: hardwareAddress(other.cfg.Name), State: netlink.NUD_PERMANENT,
	}))
}

// pingTimes has a node ping an address and returns the round trips in
// milliseconds, sorted; lost packets are not in it.
func pingTimes(t *testing.T, n *Node, address string, count int) []float64 {
	t.Helper()
	out, err := n.Exec(t.Context(), "/usr/sbin/init", "ping", address, strconv.Itoa(count))
	if err != nil {
		t.Fatal(err)
	}
	var trips []float64
	if err := json.Unmarshal(out, &trips); err != nil {
		t.Fatalf("%v: %q", err, out)
	}
	slices.Sort(trips)
	return trips
}

// icmpIn counts the ICMP messages that a node has received.
func icmpIn(t *testing.T, n *Node) int {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/snmp", n.PID()))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		if fields[0] == "Icmp:" && fields[1] != "InMsgs" {
			in, err := strconv.Atoi(fields[1])
			if err != nil {
				t.Fatal(err)
			}
			return in
		}
	}
	t.Fatal("no ICMP counters")
	return 0
}

func TestImpair(t *testing.T) {
	left, right := pair(t)
	know(t, left, right, "10.88.77.3")
	know(t, right, left, "10.88.77.2")
	const count = 200
	for _, test := range []struct {
		what             string
		how              Impairment
		least, most      float64 // of the median round trip, in milliseconds
		fewest, greatest int     // answers
	}{
		{"sound", Impairment{}, 0, 5, count, count},
		{"150 ms each way", Impairment{Delay: 150 * time.Millisecond}, 300, 312, count, count},
		{"100 ms one way", Impairment{Delay: 100 * time.Millisecond, Direction: Inbound}, 100, 110, count, count},
		{"jitter", Impairment{Delay: 50 * time.Millisecond, Jitter: 20 * time.Millisecond}, 95, 130, count, count},
		// 200 packets of which 30 % get lost: more than six standard deviations.
		{"30 % one way", Impairment{Loss: 30, Direction: Outbound}, 0, 8, 100, 180},
		{"300 ms and 2 %", Impairment{Delay: 300 * time.Millisecond, Loss: 2}, 600, 615, 165, 200},
		{"all lost", Impairment{Loss: 100, Direction: Inbound}, 0, 0, 0, 0},
		{"sound again", Impairment{}, 0, 5, count, count},
	} {
		must(t, left.Link().Impair(Impairment{}))
		must(t, left.Link().Impair(test.how))
		trips := pingTimes(t, left, "10.88.77.3", count)
		median := 0.0
		if len(trips) > 0 {
			median = trips[len(trips)/2]
			t.Logf("%s: %d of %d answers, %.1f / %.1f / %.1f ms", test.what, len(trips), count, trips[0], median, trips[len(trips)-1])
		}
		if len(trips) < test.fewest || len(trips) > test.greatest || median < test.least || median > test.most {
			t.Errorf("%s: %d answers, median %.1f ms; want %d to %d, %.0f to %.0f ms", test.what, len(trips), median, test.fewest, test.greatest, test.least, test.most)
		}
	}
	if _, err := net.InterfaceByName(relayName("left")); err == nil {
		t.Error("the relay's device is still there")
	}
	for _, bad := range []Impairment{{Loss: -1}, {Loss: 101}, {Delay: -1}, {Jitter: -1}} {
		if err := right.Link().Impair(bad); err == nil {
			t.Errorf("Impair(%+v) = nil", bad)
		}
	}
}

// TestBulkThroughImpairedLine sends much over an impaired line, both ways: the
// kernel hands out packets without checksums and larger than a cable carries
// unless told otherwise.
func TestBulkThroughImpairedLine(t *testing.T) {
	left, right := pair(t)
	must(t, left.Link().Impair(Impairment{Delay: 2 * time.Millisecond}))
	must(t, right.Link().Impair(Impairment{Delay: time.Millisecond, Jitter: time.Millisecond}))
	for _, n := range []*Node{left, right} {
		pourIntoMachine(t, n)
	}
	must(t, left.Link().Cut())
	check(t, "impaired and cut", reach{"left", from(t, right, "10.88.77.2:80"), false})
	must(t, left.Link().Restore())
	check(t, "impaired and restored", reach{"left", from(t, right, "10.88.77.2:80"), true})
	for range 5 {
		must(t, left.Link().Impair(Impairment{}))
		check(t, "back and forth", reach{"left", from(t, right, "10.88.77.2:80"), true})
		must(t, left.Link().Impair(Impairment{Delay: time.Millisecond}))
		check(t, "back and forth", reach{"left", from(t, right, "10.88.77.2:80"), true})
	}
	must(t, left.Kill())
	must(t, right.Kill())
	checkGone(t, left)
	checkGone(t, right)
	checkNoRules(t)
}

const poured = 8 << 20

// pourIntoMachine sends bytes from a node and compares them.
func pourIntoMachine(t *testing.T, n *Node) {
	t.Helper()
	l, err := net.Listen("tcp", "10.88.77.1:0")
	must(t, err)
	defer l.Close()
	sum := make(chan [32]byte, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		h := sha256.New()
		io.Copy(h, c)
		sum <- [32]byte(h.Sum(nil))
	}()
	begin := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := n.Exec(ctx, "/usr/sbin/init", "pour", l.Addr().String(), strconv.Itoa(poured)); err != nil {
		t.Fatal(err)
	}
	want := sha256.New()
	io.CopyN(want, rand.New(rand.NewSource(1)), poured)
	if got := <-sum; got != [32]byte(want.Sum(nil)) {
		t.Error("other bytes arrive than were sent")
	}
	t.Logf("%s: %d MiB in %v", n.cfg.Name, poured>>20, time.Since(begin).Round(time.Millisecond))
}

// checkNoRules looks for tables of rules that a node has left.
func checkNoRules(t *testing.T) {
	t.Helper()
	out, err := exec.Command("nft", "list", "tables").Output()
	if err != nil || strings.Contains(string(out), tableName("left")) || strings.Contains(string(out), tableName("right")) {
		t.Errorf("tables %q, %v", out, err)
	}
}

// TestFaultsOfAKilledProgram plants what a program leaves that is killed in
// the middle: rules, and a group whose processes were stopped. The next start
// of the same name finds neither.
func TestFaultsOfAKilledProgram(t *testing.T) {
	tree := tree(t)
	r := rules{from: map[string]bool{"right": true}, to: map[string]bool{"right": true}, ports: map[uint16]bool{80: true}}
	cfg, _ := config(t, tree, "left", "10.88.77.2/24")
	must(t, nft(r.script(&cfg)))
	groups, err := openCgroups("left")
	must(t, err)
	must(t, groups.create(t.Context()))
	f, err := groups.freezer()
	must(t, err)
	must(t, f.set(true))
	left := started(t, tree, "left", "10.88.77.2/24", "fd00:8877::2/64")
	checkNoRules(t)
	right := started(t, tree, "right", "10.88.77.3/24", "fd00:8877::3/64")
	check(t, "after a killed program", reach{"left to right", from(t, left, "10.88.77.3:80"), true}, reach{"right to left", from(t, right, "10.88.77.2:80"), true})
}

// fromNode asks whether the node's init greets within half a second.
func fromNode(n *Node) func() bool {
	return func() bool {
		c, err := net.DialTimeout("tcp", netip.AddrPortFrom(n.cfg.Address.Addr(), 80).String(), time.Second)
		if err != nil {
			return false
		}
		defer c.Close()
		c.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
		data, err := io.ReadAll(c)
		return err == nil && len(data) > 0
	}
}

func TestPause(t *testing.T) {
	left, right := pair(t)
	for _, kind := range []string{"cgroup", "cgroup2"} {
		only := slices.DeleteFunc(slices.Clone(left.cgroups), func(h hierarchy) bool { return h.Type != kind })
		f, err := only.freezer()
		if err != nil {
			t.Logf("%s: %v", kind, err)
			continue
		}
		must(t, f.set(true))
		check(t, kind+" frozen", reach{"the process", fromNode(left), false})
		must(t, f.set(false))
		check(t, kind+" let go", reach{"the process", fromNode(left), true})
	}
	must(t, left.Pause())
	c, err := net.DialTimeout("tcp", "10.88.77.2:80", time.Second)
	if err != nil {
		t.Fatalf("the kernel of a paused node does not answer: %v", err)
	}
	defer c.Close()
	c.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
	if data, err := io.ReadAll(c); err == nil {
		t.Errorf("a paused node says %q", data)
	}
	must(t, left.Resume())
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	if data, err := io.ReadAll(c); err != nil || string(data) != "I am left" {
		t.Errorf("after Resume: %q, %v", data, err)
	}
	must(t, left.Pause())
	begin := time.Now()
	must(t, left.Kill())
	if d := time.Since(begin); d > 5*time.Second {
		t.Errorf("Kill of a paused node took %v", d)
	}
	if err := left.Pause(); err == nil {
		t.Error("Pause of an ended node = nil")
	}
	must(t, right.Kill())
	checkGone(t, left)
}
