package runner

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/cairn-os/cairn/pkg/build/lane"
	"github.com/cairn-os/cairn/pkg/membership"
	"github.com/cairn-os/cairn/pkg/vm"
)

const (
	// clusterPace is by how much the clocks of five machines in emulation are slowed. Three idle servers alone need 19 %
	// of a processor natively and more than the two that emulate them have: in real time leases are lost, and what starts
	// again for that takes even more.
	clusterPace = 8
	// clusterLimit bounds each wait for them, in real time.
	clusterLimit = 30 * time.Minute
)

// wiredVMs is a cluster in QEMU whose machines have a wire between them.
type wiredVMs struct {
	all           []*VM // in the order of their power-on
	server, agent *VM   // the first server and the last agent
	second        *VM   // another server
	tap           *wiretap
	pace          vm.Pace
	api           *Cluster
	dir           string // holds kubectl and the administrator's kubeconfig
}

// TestVMCluster forms a cluster of three servers and two agents from the disk image and one cloud-config each, has their
// pods meet over WireGuard, pulls all plugs at once, and then the first server's for good.
func TestVMCluster(t *testing.T) {
	lane.Require(t, "vm")
	requireLong(t)
	f := newWiredVMs(t)
	defer func() {
		for _, m := range f.all {
			logReboots(t, m)
		}
		f.explain(t)
	}()
	if !t.Run("forms", func(sub *testing.T) { f.testForms(t, sub) }) {
		return
	}
	t.Run("pods meet over WireGuard", f.testWireguard)
	t.Run("logs and exec", f.testKubelet)
	t.Run("all plugs pulled", func(sub *testing.T) { f.testPlugs(t.Context(), sub) })
	t.Run("first server lost", f.testServerLost)
}

func newWiredVMs(t *testing.T) *wiredVMs {
	const first = "10.89.0.11"
	tap := &wiretap{pods: membership.DefaultSettings().PodCIDRs[0]}
	wire := vm.NewWire(tap.see)
	pace, err := vm.NewPace(t.Context(), clusterPace)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("five machines, %v", pace)
	f := &wiredVMs{tap: tap, dir: t.TempDir(), pace: pace}
	for _, m := range []struct{ name, address, cairn string }{
		{"shop-1", first, "cluster: {flannel: wireguard, node_ip: " + first + "}"},
		{"shop-2", "10.89.0.12", "role: server, server_url: https://" + first + ":6443, cluster: {node_ip: 10.89.0.12}"},
		{"shop-3", "10.89.0.13", "role: server, server_url: https://" + first + ":6443, cluster: {node_ip: 10.89.0.13}"},
		{"till-1", "10.89.0.21", "role: agent, server_url: https://" + first + ":6443, cluster: {node_ip: 10.89.0.21}"},
		{"till-2", "10.89.0.22", "role: agent, server_url: https://" + first + ":6443, cluster: {node_ip: 10.89.0.22}"},
	} {
		f.all = append(f.all, newWiredVM(t, wire, pace, m.name, m.address, m.cairn))
	}
	f.server, f.second, f.agent = f.all[0], f.all[1], f.all[len(f.all)-1]
	return f
}

func newWiredVM(t *testing.T, wire *vm.Wire, pace vm.Pace, name, address, cairn string) *VM {
	t.Helper()
	m, err := NewVM(builtImage(t), VMOptions{
		Name: name, Dir: t.TempDir(), DiskSize: 6 << 30, MemoryMiB: 1024, Watchdog: true, Wire: wire, Address: mustPrefix(address), Pace: pace,
		Config: []byte("cairn: {token: " + fleetToken + ", " + cairn + "}\n"),
	})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// explain logs what the machines' processes said, when the test failed. The machines go with the test's context.
func (f *wiredVMs) explain(t *testing.T) {
	if !t.Failed() {
		return
	}
	ctx := within(t, 2*time.Minute)
	for _, m := range f.all {
		out, err := m.Run(ctx, "cairnctl status; ip address; ip route; tail -n 25 /run/cairn/log/*.log")
		t.Logf("%s: %v\n%s", m.Name(), err, out)
	}
}

// logReboots tells when a machine started again by itself since its power-on, and what its console said before: a crash
// or its watchdog, which also resets one that gets no time of this machine's processors for long.
func logReboots(t *testing.T, m *VM) {
	t.Helper()
	c, kernel := m.Console(), regexp.MustCompile(`Linux version`)
	c.mu.Lock()
	defer c.mu.Unlock()
	boots := 0
	for i, l := range c.lines {
		if !kernel.MatchString(l.Text) {
			continue
		}
		if boots++; boots == 1 {
			continue
		}
		t.Logf("%s booted again by itself %.1f s after power-on; before:", m.Name(), l.At.Sub(m.PowerOn()).Seconds())
		for _, before := range c.lines[max(0, i-30):i] {
			t.Logf("    %.1f %s", before.At.Sub(m.PowerOn()).Seconds(), before.Text)
		}
	}
}

// kubectl runs the built kubectl as the administrator.
func (f *wiredVMs) kubectl(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(f.dir, "kubectl"), append([]string{"--kubeconfig", filepath.Join(f.dir, "kubeconfig")}, args...)...)
	out, err := cmd.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		err = fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(exit.Stderr))
	}
	return string(out), err
}

// fetch has a pod get the page from an address, until it does.
func (f *wiredVMs) fetch(ctx context.Context, pod *corev1.Pod, address string) error {
	return poll(ctx, fmt.Sprintf("the pod on %s gets the page of %s", pod.Spec.NodeName, address), func(ctx context.Context) (bool, error) {
		out, err := f.kubectl(ctx, "exec", pod.Name, "--", "/bin/busybox", "wget", "-qO-", "-T", "10", "http://"+address+"/")
		if err == nil && !strings.Contains(out, helloText) {
			err = fmt.Errorf("it gets %q", out)
		}
		return err == nil, err
	})
}

// took says how long ago a moment was, to the machines and here.
func (f *wiredVMs) took(begin time.Time) string {
	real := time.Since(begin)
	return fmt.Sprintf("%.1f s by the machines' clocks (%.0f s here)", f.pace.Machines(real).Seconds(), real.Seconds())
}

// testForms powers all on at once, until running ends, and expects five Ready nodes and a Deployment on all.
func (f *wiredVMs) testForms(running, t *testing.T) {
	begin := time.Now()
	for _, m := range f.all {
		power(running, m)
	}
	for _, m := range f.all {
		ctx := within(t, clusterLimit)
		if f.api == nil {
			var err error
			if f.api, err = Access(ctx, m, builtImage(t), f.dir); err != nil {
				t.Fatal(err)
			}
		}
		waitReady(ctx, t, f.api, m.Name())
		t.Logf("%s Ready %s after power-on", m.Name(), f.took(begin))
	}
	ctx := within(t, clusterLimit)
	deploySpread(ctx, t, f.api, "spread", int32(len(f.all)))
	pods := waitPods(ctx, t, f.api, "spread", len(f.all))
	t.Logf("%d pods ready on %d nodes %s after power-on", len(f.all), len(pods), f.took(begin))
	if len(pods) != len(f.all) {
		t.Fatalf("the Deployment is on %d nodes; want %d", len(pods), len(f.all))
	}
}

// testWireguard fetches pages from pod to pod, to a Service and from node to pod across nodes. All of it must go by the
// WireGuard devices, and nothing of it be readable on the wire.
func (f *wiredVMs) testWireguard(t *testing.T) {
	ctx := within(t, clusterLimit)
	pods := waitPods(ctx, t, f.api, "spread", len(f.all))
	service, err := f.api.CoreV1().Services(namespace).Get(ctx, "spread", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	here, there := pods[f.server.Name()], pods[f.agent.Name()]
	before, begin := f.carried(ctx, t), time.Now()
	for _, way := range []struct {
		from *corev1.Pod
		to   string
	}{
		{here, there.Status.PodIP + ":8080"}, {there, here.Status.PodIP + ":8080"},
		// A backend is drawn each time, so that one of the other node is among them most of the time.
		{there, service.Spec.ClusterIP}, {there, service.Spec.ClusterIP}, {here, service.Spec.ClusterIP}, {here, service.Spec.ClusterIP},
	} {
		if err := f.fetch(ctx, way.from, way.to); err != nil {
			t.Fatal(err)
		}
		t.Logf("the pod on %s has the page of %s after %s", way.from.Spec.NodeName, way.to, f.took(begin))
	}
	out, err := f.server.Run(ctx, "wget -qO- -T 10 http://"+there.Status.PodIP+":8080/")
	if err != nil || !strings.Contains(out, helloText) {
		t.Errorf("the node %s gets from the pod on %s: %q, %v", f.server.Name(), there.Spec.NodeName, out, err)
	}
	for name, is := range f.carried(ctx, t) {
		was := before[name]
		t.Logf("%s: %d packets of pods sent by its WireGuard device, %d received", name, is.sent-was.sent, is.received-was.received)
		// A page takes at least three packets either way: to open, to ask or answer, to close.
		if is.sent < was.sent+9 || is.received < was.received+9 {
			t.Errorf("the WireGuard device of %s carried %+v after %+v; want three pages more at least", name, is, was)
		}
	}
	f.testUnreadable(ctx, t)
}

// testUnreadable looks into what has crossed the wire.
func (f *wiredVMs) testUnreadable(ctx context.Context, t *testing.T) {
	seen := f.tap.seen()
	t.Logf("on the wire: %+v", seen)
	if seen.wireguard == 0 || seen.readable > 0 || seen.ofPods > 0 {
		t.Errorf("on the wire were %+v; want WireGuard's packets, and neither the page's text nor packets of pods", seen)
	}
	// What is not encrypted would have been seen: the same text as the path of a request, which the API refuses.
	_, err := f.agent.Run(ctx, "wget -qO- -T 10 'http://10.89.0.11:6443/"+helloText+"'; true")
	if err != nil {
		t.Fatal(err)
	}
	if f.tap.seen().readable == 0 {
		t.Error("the text was sent without encryption and was not seen: this test sees nothing")
	}
}

// traffic is what a network device carried, in packets.
type traffic struct{ sent, received int }

// carried asks both nodes for the traffic of their WireGuard devices.
func (f *wiredVMs) carried(ctx context.Context, t *testing.T) map[string]traffic {
	t.Helper()
	all := map[string]traffic{}
	for _, m := range []*VM{f.server, f.agent} {
		const device = "/sys/class/net/flannel-wg/"
		out, err := m.Run(ctx, "cd "+device+" && cat uevent statistics/tx_packets statistics/rx_packets")
		if err != nil {
			t.Fatal(err)
		}
		lines := strings.Fields(out)
		if len(lines) < 3 || lines[0] != "DEVTYPE=wireguard" {
			t.Fatalf("%s: %s is no WireGuard device: %q", m.Name(), device, out)
		}
		sent, err1 := strconv.Atoi(lines[len(lines)-2])
		received, err2 := strconv.Atoi(lines[len(lines)-1])
		if err := errors.Join(err1, err2); err != nil {
			t.Fatal(err)
		}
		all[m.Name()] = traffic{sent, received}
	}
	return all
}

// testKubelet uses the agent's kubelet through the server.
func (f *wiredVMs) testKubelet(t *testing.T) {
	ctx := within(t, clusterLimit)
	pod := waitPods(ctx, t, f.api, "spread", len(f.all))[f.agent.Name()]
	if out, err := f.kubectl(ctx, "exec", pod.Name, "--", "/bin/busybox", "sh", "-c", "echo from-inside; echo to-the-log >/proc/1/fd/1"); err != nil || out != "from-inside\n" {
		t.Errorf("exec on %s: %q, %v", f.agent.Name(), out, err)
	}
	err := poll(ctx, "the log tells what was written", func(ctx context.Context) (bool, error) {
		out, err := f.kubectl(ctx, "logs", pod.Name)
		if err == nil && out != "to-the-log\n" {
			err = fmt.Errorf("the log is %q", out)
		}
		return err == nil, err
	})
	if err != nil {
		t.Error(err)
	}
}

// testPlugs pulls all plugs at once, and expects all of it back once the power is. The machines run until running ends.
func (f *wiredVMs) testPlugs(running context.Context, t *testing.T) {
	gone := make(chan error, len(f.all))
	for _, m := range f.all {
		go func() { gone <- m.Kill() }()
	}
	for range f.all {
		if err := <-gone; err != nil {
			t.Fatal(err)
		}
	}
	begin := time.Now()
	for _, m := range f.all {
		if err := m.Start(running); err != nil {
			t.Fatal(err)
		}
	}
	ctx := within(t, clusterLimit)
	since := f.pace.At(begin).Truncate(time.Second)
	for _, m := range f.all {
		waitFresh(ctx, t, f.api, since, m.Name())
		t.Logf("%s Ready again %s after power-on", m.Name(), f.took(begin))
	}
	ctx = within(t, clusterLimit)
	f.waitContainers(ctx, t, since)
	t.Logf("the pods are ready again %s after power-on", f.took(begin))
	pods := waitPods(ctx, t, f.api, "spread", len(f.all))
	here, there := pods[f.server.Name()], pods[f.agent.Name()]
	if here == nil || there == nil {
		t.Fatalf("the Deployment is on %d nodes; want %d", len(pods), len(f.all))
	}
	for from, to := range map[*corev1.Pod]*corev1.Pod{here: there, there: here} {
		if err := f.fetch(ctx, from, to.Status.PodIP+":8080"); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("pods reach each other again %s after power-on", f.took(begin))
}

// testServerLost pulls the first server's plug for good. The others must go on to take writes, and to run what is new.
func (f *wiredVMs) testServerLost(t *testing.T) {
	ctx := within(t, clusterLimit)
	api, err := Access(ctx, f.second, builtImage(t), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := f.server.Kill(); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	err = poll(ctx, "another server takes a write", func(ctx context.Context) (bool, error) {
		ctx, cancel := context.WithTimeout(ctx, f.pace.Real(10*time.Second))
		defer cancel()
		_, err := api.CoreV1().ConfigMaps(namespace).Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{GenerateName: "after-"}}, metav1.CreateOptions{})
		return err == nil, err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s took a write %s after %s was lost", f.second.Name(), f.took(begin), f.server.Name())
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "after", Labels: map[string]string{"app": "after"}}, Spec: corev1.PodSpec{
		NodeName: f.agent.Name(), Containers: []corev1.Container{{Name: "after", Image: builtImage(t).HelloTag, ImagePullPolicy: corev1.PullNever}},
	}}
	if _, err := api.CoreV1().Pods(namespace).Create(ctx, pod, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	waitPods(ctx, t, api, "after", 1)
	t.Logf("a new pod runs on %s %s after %s was lost", f.agent.Name(), f.took(begin), f.server.Name())
}

// waitContainers waits until the Deployment's pods are ready with containers that were started since a moment.
func (f *wiredVMs) waitContainers(ctx context.Context, t *testing.T, since time.Time) {
	t.Helper()
	err := poll(ctx, "the pods run anew", func(ctx context.Context) (bool, error) {
		list, err := f.api.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: "app=spread"})
		if err != nil {
			return false, err
		}
		fresh := 0
		for _, p := range list.Items {
			for _, c := range p.Status.ContainerStatuses {
				if r := c.State.Running; podReady(&p) && r != nil && !r.StartedAt.Time.Before(since) {
					fresh++
				}
			}
		}
		if fresh != len(f.all) {
			return false, fmt.Errorf("%d are: %s", fresh, podStates(list.Items))
		}
		return true, nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// wiretap counts what crosses the wire.
type wiretap struct {
	pods netip.Prefix

	mu     sync.Mutex // guards counts
	counts wireCounts
}

// wireCounts are numbers of frames.
type wireCounts struct {
	all       int
	wireguard int // to WireGuard's port
	ofPods    int // that show a pod's address
	readable  int // that hold the page's text
}

func (w *wiretap) seen() wireCounts {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.counts
}

// see counts an Ethernet frame.
func (w *wiretap) see(frame []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.counts.all++
	if bytes.Contains(frame, []byte(helloText)) {
		w.counts.readable++
	}
	const ethernet, ipv4, udp, port = 14, 0x0800, 17, 51820
	if len(frame) < ethernet+20 || binary.BigEndian.Uint16(frame[12:]) != ipv4 {
		return
	}
	packet := frame[ethernet:]
	source, destination := netip.AddrFrom4([4]byte(packet[12:])), netip.AddrFrom4([4]byte(packet[16:]))
	if w.pods.Contains(source) || w.pods.Contains(destination) {
		w.counts.ofPods++
	}
	header := int(packet[0]&0xf) * 4
	if packet[9] == udp && len(packet) >= header+8 && binary.BigEndian.Uint16(packet[header+2:]) == port {
		w.counts.wireguard++
	}
}

func TestWiretap(t *testing.T) {
	// frame is Ethernet with IPv4 and UDP.
	frame := func(source, destination string, port uint16, text string) []byte {
		b := make([]byte, 12, 64)
		b = append(b, 0x08, 0x00, 0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0)
		for _, a := range []string{source, destination} {
			b = append(b, netip.MustParseAddr(a).AsSlice()...)
		}
		b = binary.BigEndian.AppendUint16(append(b, 0, 0), port)
		return append(append(b, 0, 0, 0, 0), text...)
	}
	tap := &wiretap{pods: netip.MustParsePrefix("10.42.0.0/16")}
	for _, b := range [][]byte{
		nil, make([]byte, 60), frame("10.89.0.1", "10.89.0.2", 53, "x"), frame("10.89.0.1", "10.89.0.2", 51820, "x"),
		frame("10.42.0.2", "10.42.1.2", 8080, helloText), frame("10.89.0.1", "10.42.1.2", 8080, ""),
		frame("10.89.0.1", "10.89.0.2", 8472, "x"+string(frame("10.42.0.2", "10.42.1.2", 8080, helloText))),
	} {
		tap.see(b)
	}
	if got, want := tap.seen(), (wireCounts{all: 7, wireguard: 1, ofPods: 2, readable: 2}); got != want {
		t.Errorf("the tap counted %+v; want %+v", got, want)
	}
}
