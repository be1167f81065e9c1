package control

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/cairn-os/cairn/pkg/control/admin"
	"github.com/cairn-os/cairn/pkg/pki"
)

// serverEnv holds the options of a server that runs in a process of its own: Kubernetes' parts share too much for two in
// one.
const serverEnv = "CAIRN_CONTROL_TEST_SERVER"

func TestMain(m *testing.M) {
	text := os.Getenv(serverEnv)
	if text == "" {
		os.Exit(m.Run())
	}
	if err := runServer(text); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// serverProcess is a server in a process of its own.
type serverProcess struct {
	Dir, Node, Store, Listen, Announce string
	Port                               int
	Joined                             bool
	Identity                           string        // of the machine; with one it founds a cluster
	Life                               time.Duration // of certificates

	cmd  *exec.Cmd
	done chan error
}

func (s *serverProcess) options() Options {
	o := localOptions(s.Dir, s.Node, s.Store, netip.MustParseAddr(s.Listen), netip.MustParseAddr(s.Announce), s.Port)
	o.Joined, o.lease = s.Joined, leaseTimes{} // the times of a node: they are what is measured
	o.Identity, o.Life = s.Identity, s.Life
	if s.Identity != "" {
		o.Founding = &Founding{}
	}
	return o
}

func runServer(text string) error {
	var s serverProcess
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		return err
	}
	ctx, cancel := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer cancel()
	return Run(ctx, slog.New(slog.NewTextHandler(os.Stderr, nil)), s.options(), func() error { _, err := fmt.Println("ready"); return err })
}

// start starts the process and returns after how long it was ready.
func (s *serverProcess) start(t *testing.T) time.Duration {
	t.Helper()
	text, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	s.cmd = exec.Command(os.Args[0])
	s.cmd.Env = append(os.Environ(), serverEnv+"="+string(text))
	s.cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	log, err := os.OpenFile(filepath.Join(s.Dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	s.cmd.Stderr = log
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ready := make(chan bool, 1)
	s.done = make(chan error, 1)
	go func() {
		line, _ := bufio.NewReader(out).ReadString('\n')
		ready <- line == "ready\n"
		s.done <- s.cmd.Wait()
	}()
	t.Cleanup(func() { _ = s.cmd.Process.Kill() }) // it has ended, most of the time
	select {
	case ok := <-ready:
		if !ok {
			s.showLog(t)
			t.Fatalf("%s ended before it was ready", s.Node)
		}
	case <-time.After(2 * time.Minute):
		s.showLog(t)
		t.Fatalf("%s is not ready after 2 minutes", s.Node)
	}
	return time.Since(begin)
}

func (s *serverProcess) showLog(t *testing.T) {
	data, err := os.ReadFile(filepath.Join(s.Dir, "log"))
	t.Logf("log of %s: %v\n%s", s.Node, err, data[max(0, len(data)-8000):])
}

// end sends the signal and waits until the process has gone.
func (s *serverProcess) end(t *testing.T, signal os.Signal) time.Duration {
	t.Helper()
	begin := time.Now()
	if err := s.cmd.Process.Signal(signal); err != nil {
		t.Fatal(err)
	}
	err := <-s.done
	if signal == unix.SIGTERM && err != nil {
		s.showLog(t)
		t.Errorf("%s: %v; want no error when it is asked to stop", s.Node, err)
	}
	return time.Since(begin)
}

// memory is what the process has of its own, as the kernel tells.
func (s *serverProcess) memory(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", s.cmd.Process.Pid))
	if err != nil {
		return err.Error()
	}
	for line := range strings.Lines(string(data)) {
		if text, ok := strings.CutPrefix(line, "Anonymous:"); ok {
			return strings.TrimSpace(text)
		}
	}
	return "unknown"
}

// handAuthorities gives to what a server that joins receives.
func (s *serverProcess) handAuthorities(t *testing.T, to *serverProcess) {
	t.Helper()
	from, into := s.options(), to.options()
	if err := os.MkdirAll(into.tls(), 0o700); err != nil {
		t.Fatal(err)
	}
	files := map[string]string{from.encryption(): into.encryption(), pki.ServiceAccountKey(from.tls()): pki.ServiceAccountKey(into.tls())}
	all, err := filepath.Glob(filepath.Join(from.tls(), "*-ca.*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range all {
		files[file] = filepath.Join(into.tls(), filepath.Base(file))
	}
	for source, target := range files {
		data, err := os.ReadFile(source)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(target, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// TestTwoServers moves the controllers from one server to another, in order and after a death, and sees what the Service
// of the apiservers tells.
func TestTwoServers(t *testing.T) {
	if testing.Short() {
		t.Skip("starts control planes")
	}
	port, err := strconv.Atoi(freePort(t))
	if err != nil {
		t.Fatal(err)
	}
	store := startEtcd(t, nil)
	one := &serverProcess{Dir: t.TempDir(), Node: "shop-1", Store: store, Listen: "127.0.0.1", Announce: "192.0.2.1", Port: port}
	two := &serverProcess{Dir: t.TempDir(), Node: "shop-2", Store: store, Listen: "127.0.0.2", Announce: "192.0.2.2", Port: port, Joined: true}
	t.Logf("first server ready after %s", one.start(t))
	one.handAuthorities(t, two)
	t.Logf("second server ready after %s", two.start(t))

	first, second := clientOf(t, one.options()), clientOf(t, two.options())
	makeNode(t, first)
	awaitServers(t, second, "192.0.2.1", "192.0.2.2")
	if got := holder(t, first); got != "shop-1" {
		t.Errorf("controllers of %s are at work; want those of the first server", got)
	}
	state, err := askOperator(t, two)
	if err != nil || state.Controllers != "shop-1" || len(state.Servers) != 2 {
		t.Errorf("the second server tells %+v, %v", state, err)
	}

	t.Logf("anonymous memory: leader %s, follower %s", one.memory(t), two.memory(t))
	t.Logf("the leader stopped within %s", one.end(t, unix.SIGTERM))
	begin := time.Now()
	awaitHolder(t, second, "shop-2", 8*time.Second)
	t.Logf("the second server leads %s after that", time.Since(begin))
	deploy(t, second, "after-stop")
	awaitServers(t, second, "192.0.2.2")
	t.Logf("the first server is out of the endpoints after %s", time.Since(begin))

	t.Logf("first server ready again, as a follower, after %s", one.start(t))
	awaitServers(t, second, "192.0.2.1", "192.0.2.2")
	if got := holder(t, second); got != "shop-2" {
		t.Errorf("controllers of %s are at work; want those of the second server still", got)
	}
	two.end(t, unix.SIGKILL)
	begin = time.Now()
	awaitHolder(t, first, "shop-1", 30*time.Second)
	t.Logf("after its death the first server leads after %s", time.Since(begin))
	deploy(t, first, "after-death")
	awaitServers(t, first, "192.0.2.1")
	t.Logf("the dead one is out of the endpoints after %s", time.Since(begin))

	// A power cut of a single server: the lease is still that of its dead process.
	one.end(t, unix.SIGKILL)
	took := one.start(t)
	t.Logf("ready after a power cut: %s", took)
	if took > 12*time.Second {
		t.Errorf("ready %s after a power cut; want no waiting for the own old lease", took)
	}
	deploy(t, clientOf(t, one.options()), "after-cut")
	one.end(t, unix.SIGTERM)
}

func askOperator(t *testing.T, s *serverProcess) (admin.Cluster, error) {
	client := admin.Open(s.options().AdminSocket)
	defer client.Close()
	return client.Cluster(t.Context())
}

func holder(t *testing.T, client kubernetes.Interface) string {
	lease, err := client.CoordinationV1().Leases(leaseNamespace).Get(t.Context(), leaseName, metav1.GetOptions{})
	if err != nil || lease.Spec.HolderIdentity == nil {
		return fmt.Sprint(err)
	}
	return nodeOfHolder(*lease.Spec.HolderIdentity)
}

func awaitHolder(t *testing.T, client kubernetes.Interface, node string, limit time.Duration) {
	t.Helper()
	eventually(t, limit, "leading by "+node, func() bool { return holder(t, client) == node })
}

// awaitServers waits until the Service default/kubernetes has these endpoints and no other.
func awaitServers(t *testing.T, client kubernetes.Interface, want ...string) {
	t.Helper()
	eventually(t, 30*time.Second, "endpoints "+strings.Join(want, " "), func() bool {
		slice, err := client.DiscoveryV1().EndpointSlices("default").Get(t.Context(), "kubernetes", metav1.GetOptions{})
		if err != nil {
			return false
		}
		var all []string
		for _, e := range slice.Endpoints {
			all = append(all, e.Addresses...)
		}
		slices.Sort(all)
		return slices.Equal(all, want)
	})
}
