package runner

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/cairn-os/cairn/pkg/nodens"
	"github.com/cairn-os/cairn/pkg/store/admin"
)

// fleetToken is what all machines of a fleet have in their configuration, as k3OS's owners have: a plain secret.
const fleetToken = "a-secret-of-the-shops-0421"

// fleet is machines in namespaces that form one cluster.
type fleet struct {
	t   *testing.T
	dir string

	mu       sync.Mutex
	machines map[string]*Native
	specs    map[string]fleetSpec
}

// fleetSpec is one machine.
type fleetSpec struct {
	name     string
	address  string
	config   string
	address6 string // for a machine with both families
}

// server, agent and first are the cloud-configs of a fleet; url is of a server that is there already.
func first(name, address string) fleetSpec {
	return fleetSpec{name: name, address: address, config: "cairn: {token: " + fleetToken + "}\n"}
}

func server(name, address, url string) fleetSpec {
	return fleetSpec{name: name, address: address, config: fmt.Sprintf("cairn: {role: server, server_url: %q, token: %s}\n", url, fleetToken)}
}

func agent(name, address, url string) fleetSpec {
	return fleetSpec{name: name, address: address, config: fmt.Sprintf("cairn: {server_url: %q, token: %s}\n", url, fleetToken)}
}

func newFleet(t *testing.T, specs ...fleetSpec) *fleet {
	t.Helper()
	if err := nodens.Available(); err != nil {
		t.Skip(err)
	}
	f := &fleet{t: t, dir: t.TempDir(), machines: map[string]*Native{}, specs: map[string]fleetSpec{}}
	for _, s := range specs {
		f.specs[s.name] = s
	}
	t.Cleanup(func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		for name, m := range f.machines {
			if t.Failed() {
				t.Logf("the end of %s's console:\n%s", name, m.Console().Tail(40))
				for _, process := range []string{"join", "store", "control", "node"} {
					if out, err := m.Run(context.Background(), "tail -n 25 /run/cairn/log/"+process+".log"); err == nil {
						t.Logf("the end of %s's log of %s:\n%s", name, process, out)
					}
				}
			}
			if err := m.Kill(); err != nil {
				t.Error(err)
			}
		}
	})
	return f
}

// start powers a machine on; one that was on before finds its data.
func (f *fleet) start(ctx context.Context, s fleetSpec) (*Native, error) {
	o := NativeOptions{Name: s.name, Address: mustPrefix(s.address), State: filepath.Join(f.dir, s.name), Config: []byte(s.config)}
	if s.address6 != "" {
		o.Address6 = netip.MustParsePrefix(s.address6 + "/64")
	}
	m, err := StartNative(ctx, builtImage(f.t), o)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.machines[s.name], f.specs[s.name] = m, s
	return m, nil
}

func (f *fleet) mustStart(s fleetSpec) *Native {
	f.t.Helper()
	m, err := f.start(f.t.Context(), s)
	if err != nil {
		f.t.Fatal(err)
	}
	return m
}

// startAll powers all machines on at the same moment, in an order of its own.
func (f *fleet) startAll() {
	f.t.Helper()
	var specs []fleetSpec
	for _, s := range f.specs {
		specs = append(specs, s)
	}
	rand.Shuffle(len(specs), func(i, j int) { specs[i], specs[j] = specs[j], specs[i] })
	errs := make(chan error, len(specs))
	for _, s := range specs {
		go func() {
			_, err := f.start(f.t.Context(), s)
			errs <- err
		}()
	}
	for range specs {
		if err := <-errs; err != nil {
			f.t.Fatal(err)
		}
	}
}

// kill cuts a machine's power.
func (f *fleet) kill(name string) {
	f.t.Helper()
	f.mu.Lock()
	m := f.machines[name]
	delete(f.machines, name)
	f.mu.Unlock()
	if err := m.Kill(); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fleet) machine(name string) *Native {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.machines[name]
}

// access waits for a server's kubeconfig and returns a client that asks this server alone.
func (f *fleet) access(ctx context.Context, t *testing.T, name string) *Cluster {
	t.Helper()
	dir := t.TempDir()
	c, err := Access(ctx, f.machine(name), builtImage(t), dir)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// run runs a command line on a machine, which must succeed.
func (f *fleet) run(ctx context.Context, t *testing.T, name, line string) string {
	t.Helper()
	out, err := f.machine(name).Run(ctx, line)
	if err != nil {
		t.Fatalf("%s: %s: %v\n%s", name, line, err, out)
	}
	return out
}

// waitReady waits until exactly the named nodes are Ready, and returns when each was seen to be.
func waitReady(ctx context.Context, t *testing.T, c *Cluster, names ...string) map[string]time.Duration {
	t.Helper()
	begin, at := time.Now(), map[string]time.Duration{}
	err := poll(ctx, fmt.Sprintf("%v are Ready", names), func(ctx context.Context) (bool, error) {
		nodes, err := c.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
		if err != nil {
			return false, err
		}
		var missing []string
		ready := map[string]bool{}
		for _, n := range nodes.Items {
			ready[n.Name] = nodeReady(&n)
		}
		for _, name := range names {
			if !ready[name] {
				missing = append(missing, name)
				delete(at, name)
			} else if _, ok := at[name]; !ok {
				at[name] = time.Since(begin)
			}
		}
		if len(missing) > 0 {
			return false, fmt.Errorf("not Ready: %v", missing)
		}
		return true, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return at
}

func nodeReady(n *corev1.Node) bool {
	return slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
	})
}

// deploySpread creates a Deployment whose pods are spread over the nodes, and a Service of it.
func deploySpread(ctx context.Context, t *testing.T, c *Cluster, name string, replicas int32) {
	t.Helper()
	labels := map[string]string{"app": name}
	none := int64(1)
	deployment := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: appsv1.DeploymentSpec{
		Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: labels},
		Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: corev1.PodSpec{
			TerminationGracePeriodSeconds: &none,
			TopologySpreadConstraints: []corev1.TopologySpreadConstraint{{
				MaxSkew: 1, TopologyKey: corev1.LabelHostname, WhenUnsatisfiable: corev1.ScheduleAnyway,
				LabelSelector: &metav1.LabelSelector{MatchLabels: labels},
			}},
			Containers: []corev1.Container{{
				Name: name, Image: builtImage(t).HelloTag, ImagePullPolicy: corev1.PullNever,
				ReadinessProbe: &corev1.Probe{PeriodSeconds: 1, ProbeHandler: corev1.ProbeHandler{
					HTTPGet: &corev1.HTTPGetAction{Path: "/", Port: intstr.FromInt32(8080)},
				}},
			}},
		}},
	}}
	if _, err := c.AppsV1().Deployments(namespace).Create(ctx, deployment, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	service := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.ServiceSpec{
		Selector: labels, Ports: []corev1.ServicePort{{Port: 80, TargetPort: intstr.FromInt32(8080)}},
	}}
	if _, err := c.CoreV1().Services(namespace).Create(ctx, service, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// waitPods waits until count pods of a Deployment are ready and returns one of each node.
func waitPods(ctx context.Context, t *testing.T, c *Cluster, name string, count int) map[string]*corev1.Pod {
	t.Helper()
	byNode := map[string]*corev1.Pod{}
	err := poll(ctx, fmt.Sprintf("%d pods of %s are ready", count, name), func(ctx context.Context) (bool, error) {
		pods, err := c.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: "app=" + name})
		if err != nil {
			return false, err
		}
		clear(byNode)
		ready := 0
		for i := range pods.Items {
			if p := &pods.Items[i]; podReady(p) {
				ready++
				byNode[p.Spec.NodeName] = p
			}
		}
		if ready < count {
			return false, fmt.Errorf("%d are ready: %s", ready, podStates(pods.Items))
		}
		return true, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return byNode
}

// kubectl runs the built kubectl against a server.
func kubectl(ctx context.Context, t *testing.T, m Machine, args ...string) *exec.Cmd {
	t.Helper()
	dir := t.TempDir()
	if _, err := Access(ctx, m, builtImage(t), dir); err != nil {
		t.Fatal(err)
	}
	return exec.CommandContext(ctx, filepath.Join(dir, "kubectl"), append([]string{"--kubeconfig", filepath.Join(dir, "kubeconfig")}, args...)...)
}

// storeStatus is the store as a server tells it.
func (f *fleet) storeStatus(ctx context.Context, name string) (admin.Status, error) {
	var st admin.Status
	out, err := f.machine(name).Run(ctx, "cairnctl store status --output json")
	if err != nil {
		return st, err
	}
	return st, json.Unmarshal([]byte(out), &st)
}

// waitVoters waits until exactly the named members vote and are online.
func (f *fleet) waitVoters(ctx context.Context, t *testing.T, at string, names ...string) {
	t.Helper()
	slices.Sort(names)
	err := poll(ctx, fmt.Sprintf("%v vote", names), func(ctx context.Context) (bool, error) {
		st, err := f.storeStatus(ctx, at)
		if err != nil {
			return false, err
		}
		var voters, all []string
		for _, m := range st.Members {
			all = append(all, fmt.Sprintf("%s %s online=%v", m.Name, m.Role, m.Online))
			if m.Role == "voter" && m.Online {
				voters = append(voters, m.Name)
			}
		}
		slices.Sort(voters)
		if !slices.Equal(voters, names) || len(st.Members) != len(names) {
			return false, fmt.Errorf("members: %s", strings.Join(all, "; "))
		}
		return true, nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// mustPrefix is an address in the network of all fleets.
func mustPrefix(address string) netip.Prefix { return netip.MustParsePrefix(address + "/24") }

// powerCuts is how often the power of a whole fleet is cut: a few times in CI, as often as asked for otherwise.
func powerCuts() int {
	n, err := strconv.Atoi(os.Getenv("CAIRN_FLEETCUTS"))
	if err != nil || n < 1 {
		return 1
	}
	return n
}

// readyz asks a server whether its API is ready.
func readyz(ctx context.Context, c *Cluster) error {
	return c.CoreV1().RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
}
