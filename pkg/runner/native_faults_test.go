package runner

import (
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/cairn-os/cairn/pkg/build/lane"
	"github.com/cairn-os/cairn/pkg/nodens"
)

// requireLong skips what takes minutes.
func requireLong(t *testing.T) {
	t.Helper()
	if os.Getenv("CAIRN_LONG") != "1" {
		t.Skip("takes minutes: set CAIRN_LONG=1")
	}
}

// outage is how long a link stays faulty: long enough for a store without its leader to look for what is wrong with it.
const outage = 60 * time.Second

// tolerated is the longest time that a client may wait for a server whose own links are whole. The budget is 5 s on a
// machine that does nothing else; what is measured is logged.
const tolerated = 15 * time.Second

// lineFault is a fault of links: what it does, what goes on meanwhile, and what does not.
type lineFault struct {
	name  string
	apply func(l links) error
	// stopped are the servers that accept no write meanwhile; the others accept them all the time.
	stopped func(l links) []string
	// unreachable are the servers through which there is no way into the agent's pod meanwhile.
	unreachable func(l links) []string
	moves       bool                 // the agent asks another server then
	lost        func(l links) string // whose Node is not Ready when it lasts
}

// links are the parts of the cluster as they are when a fault begins.
type links struct {
	f             *fleet
	leader        string // of the store
	other, third  string // the other servers
	agent, active string // an agent and the server that it asks
}

func (l links) cable(name string) *nodens.Link { return l.f.machine(name).node.Link() }

func (l links) block(a, b string, d nodens.Direction) error {
	return l.cable(a).Block(l.f.machine(b).node, d)
}

func lineFaults() []lineFault {
	other := func(l links) []string { return []string{l.other} }
	leader := func(l links) []string { return []string{l.leader} }
	active := func(l links) []string { return []string{l.active} }
	return []lineFault{
		{
			name:  "the store's leader and another server",
			apply: func(l links) error { return l.block(l.leader, l.other, nodens.Both) },
			// It would elect itself, if the third one did not hear the leader.
			stopped: other, unreachable: other,
		},
		{
			name:  "two servers that follow",
			apply: func(l links) error { return l.block(l.other, l.third, nodens.Both) },
		},
		{
			name:    "the leader is not heard by another server",
			apply:   func(l links) error { return l.block(l.leader, l.other, nodens.Outbound) },
			stopped: other, unreachable: other,
		},
		{
			name:    "the leader does not hear another server",
			apply:   func(l links) error { return l.block(l.leader, l.other, nodens.Inbound) },
			stopped: other, unreachable: other,
		},
		{
			name:        "an agent and the server that it asks",
			apply:       func(l links) error { return l.block(l.agent, l.active, nodens.Both) },
			unreachable: active, moves: true,
		},
		{
			name:        "an agent's server does not hear it",
			apply:       func(l links) error { return l.block(l.agent, l.active, nodens.Outbound) },
			unreachable: active, moves: true,
		},
		{
			name:        "an agent does not hear its server",
			apply:       func(l links) error { return l.block(l.agent, l.active, nodens.Inbound) },
			unreachable: active, moves: true,
		},
		{
			name:    "the leader's server is cut off",
			apply:   func(l links) error { return l.cable(l.leader).Cut() },
			stopped: leader, unreachable: leader, lost: func(l links) string { return l.leader },
		},
		{
			name:    "another server is cut off",
			apply:   func(l links) error { return l.cable(l.other).Cut() },
			stopped: other, unreachable: other, lost: func(l links) string { return l.other },
		},
		{
			name:  "an agent behind a bad line",
			apply: func(l links) error { return l.cable(l.agent).Impair(badLine) },
		},
		{
			name:  "a server behind a bad line",
			apply: func(l links) error { return l.cable(l.other).Impair(badLine) },
		},
		{
			name:  "the leader behind a bad line",
			apply: func(l links) error { return l.cable(l.leader).Impair(badLine) },
		},
	}
}

// badLine answers a ping after 300 ms and loses two packets of a hundred each way.
var badLine = nodens.Impairment{Delay: 150 * time.Millisecond, Loss: 2}

// TestNativeLinks makes links between machines fail one after the other, and expects that what needs a link stops, that
// all else goes on, and that everything is back afterwards without a hand or a restart.
func TestNativeLinks(t *testing.T) {
	lane.Require(t, "native")
	requireLong(t)
	servers := []string{"post-1", "post-2", "post-3"}
	agents := []string{"desk-1", "desk-2"}
	const url = "https://10.88.0.41:6443"
	f := newFleet(t, first("post-1", "10.88.0.41"), server("post-2", "10.88.0.42", url), server("post-3", "10.88.0.43", url),
		agent("desk-1", "10.88.0.46", url), agent("desk-2", "10.88.0.47", url))
	f.startAll()
	ctx := within(t, 4*time.Minute)
	c := f.access(ctx, t, "post-1")
	waitReady(ctx, t, c, slices.Concat(servers, agents)...)
	f.waitVoters(ctx, t, "post-1", servers...)
	deploySpread(ctx, t, c, "pod", 5)
	pods := waitPods(ctx, t, c, "pod", 5)
	doors := map[string]*door{}
	for _, name := range servers {
		doors[name] = f.door(ctx, t, name)
	}
	faults := lineFaults()
	for _, fault := range faults {
		t.Run(fault.name, func(t *testing.T) {
			testLineFault(t, f, doors, agents[0], pods[agents[0]].Name, fault)
		})
	}
}

// look finds out who does what at the moment.
func look(ctx context.Context, t *testing.T, f *fleet, servers []string, agent string) links {
	t.Helper()
	l := links{f: f, agent: agent, active: f.active(ctx, t, agent, servers)}
	st, err := f.storeStatus(ctx, servers[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range st.Members {
		if m.Leader {
			l.leader = m.Name
		}
	}
	rest := slices.DeleteFunc(slices.Clone(servers), func(s string) bool { return s == l.leader })
	if len(rest) != len(servers)-1 {
		t.Fatalf("the store names no leader: %+v", st)
	}
	l.other, l.third = rest[0], rest[1]
	return l
}

func testLineFault(t *testing.T, f *fleet, doors map[string]*door, agent, pod string, fault lineFault) {
	ctx := within(t, outage+4*time.Minute)
	var servers []string
	for name := range doors {
		servers = append(servers, name)
	}
	slices.Sort(servers)
	waitReach(ctx, t, doors, servers, pod, "before")
	l := look(ctx, t, f, servers, agent)
	t.Logf("the store's leader is %s, the agent's server %s", l.leader, l.active)
	var stopped, unreachable []string
	if fault.stopped != nil {
		stopped = fault.stopped(l)
	}
	if fault.unreachable != nil {
		unreachable = fault.unreachable(l)
	}
	lost := ""
	if fault.lost != nil {
		lost = fault.lost(l)
	}
	before, ready := f.instances(ctx, t), doors[l.third].readiness(ctx, t)
	watched, finish := followWrites(ctx, t, doors)
	if err := fault.apply(l); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	for _, w := range watched {
		w.begin()
	}
	pause(ctx, outage/3)
	for _, name := range servers {
		checkReach(ctx, t, doors[name], pod, !slices.Contains(unreachable, name))
	}
	pause(ctx, time.Until(begin.Add(outage)))
	for name, w := range watched {
		longest, since := w.end()
		t.Logf("%s: longest time without an accepted write %.2f s, at the end %.2f s", name, longest.Seconds(), since.Seconds())
		switch {
		case slices.Contains(stopped, name) && since < outage/3:
			t.Errorf("%s accepted a write %v before the end of a fault that cuts it off", name, since)
		case !slices.Contains(stopped, name) && longest > tolerated:
			t.Errorf("%s accepted no write for %v; want at most %v", name, longest, tolerated)
		}
	}
	if now := f.active(ctx, t, agent, servers); fault.moves && now == l.active {
		t.Errorf("%s goes on to ask %s, which it cannot reach", agent, now)
	}
	if lost != "" {
		waitLost(ctx, t, doors[l.third], lost)
		t.Logf("%s counts as lost after %.0f s", lost, time.Since(begin).Seconds())
	}
	for _, name := range slices.Concat(servers, []string{agent}) {
		if err := l.cable(name).Repair(); err != nil {
			t.Fatal(err)
		}
	}
	healed := time.Now()
	waitReach(ctx, t, doors, servers, pod, "again")
	for name, w := range watched {
		at, err := w.accepted(ctx, healed)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s accepted a write %.2f s after the link was whole", name, at.Seconds())
	}
	f.waitVoters(ctx, t, l.third, servers...)
	t.Logf("all members of the store are back after %.1f s", time.Since(healed).Seconds())
	waitReady(ctx, t, doors[l.third].Cluster, slices.Collect(maps.Keys(before))...)
	finish(healed)
	checkReadiness(t, ready, doors[l.third].readiness(ctx, t), lost)
	checkInstances(t, before, f.instances(ctx, t))
}

// waitLost waits until a node that is silent counts as not Ready: after kube-controller-manager's 50 s, which begin anew
// when another server's takes over.
func waitLost(ctx context.Context, t *testing.T, d *door, name string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	err := poll(ctx, name+" is not Ready any more", func(ctx context.Context) (bool, error) {
		node, err := d.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
		return err == nil && !nodeReady(node), err
	})
	if err != nil {
		t.Error(err)
	}
}

// pause waits for d, or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(max(0, d)):
	}
}

// door is a client of one server alone: what it asks does not find another way.
type door struct {
	*Cluster
	name string
	dir  string // with a kubeconfig and kubectl
}

// door returns a client with an operator's certificate, whose connections last as long as they can.
func (f *fleet) door(ctx context.Context, t *testing.T, name string) *door {
	t.Helper()
	d := &door{name: name, dir: t.TempDir()}
	if _, err := Access(ctx, f.machine(name), builtImage(t), d.dir); err != nil {
		t.Fatal(err)
	}
	// The administrator's own certificate lives as long as the cluster's others, which may be minutes.
	// A server's node is Ready as soon as any apiserver answers: its own may need a moment more.
	var text string
	err := poll(ctx, name+" hands out a kubeconfig", func(ctx context.Context) (bool, error) {
		var err error
		text, err = f.machine(name).Run(ctx, "cairnctl kubeconfig --user tester --group system:masters --ttl 2h --server "+f.machine(name).API())
		return err == nil, err
	})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(d.dir, "kubeconfig")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		t.Fatal(err)
	}
	cfg.QPS, cfg.Burst = 100, 100
	if d.Cluster, err = connect(cfg); err != nil {
		t.Fatal(err)
	}
	return d
}

// kubectl returns the built kubectl with a command line, for this server.
func (d *door) kubectl(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, filepath.Join(d.dir, "kubectl"), append([]string{"--kubeconfig", filepath.Join(d.dir, "kubeconfig")}, args...)...)
}

// reach runs a program in a pod and reads the pod's log.
func (d *door) reach(ctx context.Context, pod string) error {
	out, err := d.kubectl(ctx, "exec", pod, "--", "/bin/busybox", "echo", "from-inside").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "from-inside") {
		return fmt.Errorf("exec by %s: %w: %s", d.name, err, out)
	}
	if out, err := d.kubectl(ctx, "logs", "--tail=1", pod).CombinedOutput(); err != nil {
		return fmt.Errorf("logs by %s: %w: %s", d.name, err, out)
	}
	return nil
}

// checkReach expects a way into a pod through a server, or none.
func checkReach(ctx context.Context, t *testing.T, d *door, pod string, want bool) {
	t.Helper()
	limit := 3 * time.Second
	if want {
		limit = 20 * time.Second
	}
	attempt, done := context.WithTimeout(ctx, limit)
	defer done()
	begin := time.Now()
	err := d.reach(attempt, pod)
	t.Logf("through %s: exec and logs end after %.1f s, %v", d.name, time.Since(begin).Seconds(), err)
	if want && err != nil {
		t.Error(err)
	}
	if !want && err == nil {
		t.Errorf("the pod is reached through %s, whose link is cut", d.name)
	}
}

// waitReach waits until there is a way into a pod through all the servers.
func waitReach(ctx context.Context, t *testing.T, doors map[string]*door, servers []string, pod, when string) {
	t.Helper()
	begin := time.Now()
	for _, name := range servers {
		err := poll(ctx, "the pod is reached through "+name, func(ctx context.Context) (bool, error) {
			attempt, done := context.WithTimeout(ctx, 10*time.Second)
			defer done()
			err := doors[name].reach(attempt, pod)
			return err == nil, err
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s is the pod reached through %s after %.1f s", when, name, time.Since(begin).Seconds())
	}
}

// active is the server that an agent's balancer uses: the one with the most connections, for tunnels lead to all.
func (f *fleet) active(ctx context.Context, t *testing.T, agent string, servers []string) string {
	t.Helper()
	// proc_net_tcp: local and remote address as hexadecimal digits, then the state, of which 01 is established.
	table := f.run(ctx, t, agent, "cat /proc/net/tcp")
	best, most := "", 0
	for _, name := range servers {
		a := f.machine(name).o.Address.Addr().As4()
		remote := regexp.MustCompile(fmt.Sprintf(`\d+: [0-9A-F:]+ %02X%02X%02X%02X:192B 01 `, a[3], a[2], a[1], a[0]))
		if n := len(remote.FindAllString(table, -1)); n > most {
			best, most = name, n
		}
	}
	if best == "" {
		t.Fatalf("%s has no connection to a server:\n%s", agent, table)
	}
	return best
}

// readiness is the condition Ready of each node.
func (d *door) readiness(ctx context.Context, t *testing.T) map[string]corev1.NodeCondition {
	t.Helper()
	nodes, err := d.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]corev1.NodeCondition{}
	for _, n := range nodes.Items {
		for _, c := range n.Status.Conditions {
			if c.Type == corev1.NodeReady {
				all[n.Name] = c
			}
		}
	}
	return all
}

// checkReadiness expects that nodes were Ready all the time, but for the one that was lost.
func checkReadiness(t *testing.T, before, after map[string]corev1.NodeCondition, lost string) {
	t.Helper()
	for name, was := range before {
		is := after[name]
		if name != lost && (is.Status != corev1.ConditionTrue || !is.LastTransitionTime.Equal(&was.LastTransitionTime)) {
			t.Errorf("%s was not Ready all the time: %s since %v, before %s since %v", name, is.Status, is.LastTransitionTime, was.Status, was.LastTransitionTime)
		}
	}
}

// instances are the running processes of all machines: machine to process to its process id and number of restarts.
func (f *fleet) instances(ctx context.Context, t *testing.T) map[string]map[string]string {
	t.Helper()
	f.mu.Lock()
	var names []string
	for name := range f.machines {
		names = append(names, name)
	}
	f.mu.Unlock()
	all := map[string]map[string]string{}
	for _, name := range names {
		st, err := machineStatus(ctx, f.machine(name))
		if err != nil {
			t.Fatal(err)
		}
		all[name] = map[string]string{}
		for _, p := range st.Processes {
			all[name][p.Name] = "pid " + strconv.Itoa(p.PID) + ", " + strconv.Itoa(p.Restarts) + " restarts"
			if p.LastExit != "" {
				all[name][p.Name] += ", last exit: " + p.LastExit
			}
		}
	}
	return all
}

// checkInstances expects that no process of a machine that runs still was started anew.
func checkInstances(t *testing.T, before, after map[string]map[string]string) {
	t.Helper()
	for machine, processes := range before {
		for name, was := range processes {
			if is, ok := after[machine][name]; ok && is != was {
				t.Errorf("%s on %s was %s and is %s: want that nothing restarts", name, machine, was, is)
			}
		}
	}
}
