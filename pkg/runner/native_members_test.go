package runner

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/cairn-os/cairn/pkg/build/lane"
)

const yardURL = "https://10.88.0.71:6443"

// TestNativeMembers has machines of a cluster of two servers and a witness come, change, go and come back.
func TestNativeMembers(t *testing.T) {
	lane.Require(t, "native")
	f := newFleet(t, first("yard-1", "10.88.0.71"), server("yard-2", "10.88.0.72", yardURL),
		fleetSpec{name: "eye-1", address: "10.88.0.73", config: fmt.Sprintf("cairn: {role: witness, server_url: %q, token: %s}\n", yardURL, fleetToken)},
		agent("cart-1", "10.88.0.76", yardURL), agent("cart-2", "10.88.0.77", yardURL))
	f.startAll()
	ctx := within(t, 4*time.Minute)
	c := f.access(ctx, t, "yard-1")
	waitReady(ctx, t, c, "yard-1", "yard-2", "cart-1", "cart-2")
	f.waitVoters(ctx, t, "yard-1", "eye-1", "yard-1", "yard-2")
	t.Run("a server lost beside a witness", func(t *testing.T) { testWitness(t, f) })
	t.Run("labels and taints", func(t *testing.T) { testChangedLabels(t, f) })
	t.Run("machines that come back empty", func(t *testing.T) { testComeBack(t, f) })
	t.Run("an agent that runs is deleted", func(t *testing.T) { testDeletedInService(t, f) })
	t.Run("an agent is deleted", func(t *testing.T) { testDeletedAgent(t, f) })
}

// testDeletedInService deletes the Node of an agent that runs: the cluster refuses it, and it joins again by itself, for
// it has a token.
func testDeletedInService(t *testing.T, f *fleet) {
	ctx := within(t, 4*time.Minute)
	c := f.access(ctx, t, "yard-1")
	node, err := c.CoreV1().Nodes().Get(ctx, "cart-1", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	if err := c.CoreV1().Nodes().Delete(ctx, "cart-1", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	err = poll(ctx, "cart-1 is a new Node and Ready", func(ctx context.Context) (bool, error) {
		now, err := c.CoreV1().Nodes().Get(ctx, "cart-1", metav1.GetOptions{})
		return err == nil && now.UID != node.UID && nodeReady(now), err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("Ready again %.0f s after its Node was deleted", time.Since(begin).Seconds())
}

// testWitness takes each server away for a while: the other one and the witness are a majority.
func testWitness(t *testing.T, f *fleet) {
	ctx := within(t, 4*time.Minute)
	if out, err := f.machine("yard-1").Run(ctx, "kubectl get node eye-1"); err == nil {
		t.Errorf("the witness is a Node:\n%s", out)
	}
	for _, p := range []struct{ lost, left string }{{"yard-1", "yard-2"}, {"yard-2", "yard-1"}} {
		c := f.access(ctx, t, p.left)
		gap := watchWrites(ctx, t, c)
		f.kill(p.lost)
		pause(ctx, 10*time.Second)
		longest := gap()
		t.Logf("%s lost: longest time without an accepted write by %s: %.2f s", p.lost, p.left, longest.Seconds())
		if longest > tolerated {
			t.Errorf("no write was accepted for %v; want at most %v", longest, tolerated)
		}
		st, err := f.storeStatus(ctx, p.left)
		if err != nil || !st.Quorum {
			t.Errorf("the store has no quorum: %+v, %v", st, err)
		}
		begin := time.Now()
		f.mustStart(f.specs[p.lost])
		f.waitVoters(ctx, t, p.left, "eye-1", "yard-1", "yard-2")
		t.Logf("three voters again %.1f s after %s has power", time.Since(begin).Seconds(), p.lost)
		if err := poll(ctx, p.lost+" serves", func(ctx context.Context) (bool, error) {
			err := readyz(ctx, f.access(ctx, t, p.lost))
			return err == nil, err
		}); err != nil {
			t.Fatal(err)
		}
	}
}

// testChangedLabels changes an agent's configuration after it has registered.
func testChangedLabels(t *testing.T, f *fleet) {
	ctx := within(t, 4*time.Minute)
	const name = "cart-1"
	c := f.access(ctx, t, "yard-1")
	f.run(ctx, t, "yard-1", "kubectl label node "+name+" by-hand=stays")
	plain := f.specs[name]
	for _, step := range []struct {
		config string // added to the agent's
		labels map[string]string
		taints []corev1.Taint
	}{
		{
			`, labels: {shelf: "7", lane: left}, taints: ["role=till:NoSchedule", "wet:PreferNoSchedule"]`,
			map[string]string{"shelf": "7", "lane": "left"},
			[]corev1.Taint{{Key: "role", Value: "till", Effect: "NoSchedule"}, {Key: "wet", Effect: "PreferNoSchedule"}},
		},
		{
			`, labels: {shelf: "8"}, taints: ["role=kiosk:NoSchedule"]`,
			map[string]string{"shelf": "8"}, []corev1.Taint{{Key: "role", Value: "kiosk", Effect: "NoSchedule"}},
		},
		{"", map[string]string{}, nil},
	} {
		s := plain
		s.config = strings.Replace(s.config, "}\n", step.config+"}\n", 1)
		f.reboot(ctx, t, s)
		begin := time.Now()
		err := poll(ctx, fmt.Sprintf("%s has %v, %v", name, step.labels, step.taints), func(ctx context.Context) (bool, error) {
			node, err := c.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
			if err != nil {
				return false, err
			}
			return asDeclared(node, step.labels, step.taints)
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("labels %v and taints %v applied %.1f s after power-on", step.labels, step.taints, time.Since(begin).Seconds())
	}
	waitReady(ctx, t, c, name)
}

// asDeclared compares the labels and taints that the test uses.
func asDeclared(node *corev1.Node, labels map[string]string, taints []corev1.Taint) (bool, error) {
	for _, key := range []string{"shelf", "lane"} {
		want, wanted := labels[key]
		if have, ok := node.Labels[key]; have != want || ok != wanted {
			return false, fmt.Errorf("label %s is %q", key, have)
		}
	}
	if node.Labels["by-hand"] != "stays" {
		return false, errors.New("the label that was set by hand is gone")
	}
	var have []string
	for _, taint := range node.Spec.Taints {
		if !strings.HasPrefix(taint.Key, "node.kubernetes.io/") {
			have = append(have, taint.ToString())
		}
	}
	var want []string
	for _, taint := range taints {
		want = append(want, taint.ToString())
	}
	slices.Sort(have)
	slices.Sort(want)
	if !slices.Equal(have, want) {
		return false, fmt.Errorf("taints are %v", have)
	}
	return true, nil
}

// reboot restarts a machine in order, as its owner would after changing its configuration.
func (f *fleet) reboot(ctx context.Context, t *testing.T, s fleetSpec) {
	t.Helper()
	f.restart(ctx, t, s, "reboot")
}

// restart runs a command that makes a machine restart, and powers it on again.
func (f *fleet) restart(ctx context.Context, t *testing.T, s fleetSpec, command string) {
	t.Helper()
	m := f.machine(s.name)
	if out, err := m.Run(ctx, command); err != nil {
		t.Logf("%s: %s: %v\n%s", s.name, command, err, out) // the machine may end before the program does
	}
	if _, _, err := m.Console().Wait(ctx, regexp.MustCompile(`^`+s.name+` ended: code 3 <nil>`), 0); err != nil {
		t.Fatal(err)
	}
	f.mustStart(s)
}

// testComeBack resets an agent and takes a server's disk away; both join again under their names.
func testComeBack(t *testing.T, f *fleet) {
	ctx := within(t, 6*time.Minute)
	c := f.access(ctx, t, "yard-1")
	identities := map[string]string{}
	for _, name := range []string{"cart-1", "yard-2"} {
		identities[name] = f.identity(ctx, t, c, name)
	}
	f.kill("yard-2")
	if err := os.RemoveAll(filepath.Join(f.dir, "yard-2")); err != nil {
		t.Fatal(err)
	}
	f.restart(ctx, t, f.specs["cart-1"], "cairnctl reset --keep-config --yes")
	begin := time.Now().Truncate(time.Second)
	if _, _, err := f.machine("cart-1").Console().Wait(ctx, regexp.MustCompile(`factory reset: done`), 0); err != nil {
		t.Fatal(err)
	}
	f.mustStart(f.specs["yard-2"])
	for _, name := range []string{"cart-1", "yard-2"} {
		waitFresh(ctx, t, c, begin, name)
		t.Logf("%s is Ready %.1f s after its power-on, and waited 60 s until its former self counted as gone", name, time.Since(begin).Seconds())
		if now := f.identity(ctx, t, c, name); now == identities[name] {
			t.Errorf("%s has the identity of before", name)
		}
	}
	f.waitVoters(ctx, t, "yard-1", "eye-1", "yard-1", "yard-2")
	t.Logf("three voters after %.1f s", time.Since(begin).Seconds())
	if left, err := filepath.Glob(filepath.Join(f.dir, "cart-1", "var/lib/cairn/reset")); err != nil || len(left) > 0 {
		t.Errorf("the reset left %v, %v", left, err)
	}
}

// identity is what the cluster knows a machine by.
func (f *fleet) identity(ctx context.Context, t *testing.T, c *Cluster, name string) string {
	t.Helper()
	s, err := c.CoreV1().Secrets(metav1.NamespaceSystem).Get(ctx, "cairn-node-"+name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint(s.Data)
}

// testDeletedAgent deletes the Node of an agent without power, whose place another machine takes at once.
func testDeletedAgent(t *testing.T, f *fleet) {
	ctx := within(t, 3*time.Minute)
	const name = "cart-2"
	c := f.access(ctx, t, "yard-1")
	f.kill(name)
	begin := time.Now().Truncate(time.Second)
	f.run(ctx, t, "yard-1", "kubectl delete node "+name+" --timeout=60s")
	err := poll(ctx, "the cluster forgets "+name, func(ctx context.Context) (bool, error) {
		_, err := c.CoreV1().Secrets(metav1.NamespaceSystem).Get(ctx, "cairn-node-"+name, metav1.GetOptions{})
		return apierrors.IsNotFound(err), err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("the Node and the machine's identity were deleted in %.1f s", time.Since(begin).Seconds())
	if err := os.RemoveAll(filepath.Join(f.dir, name)); err != nil {
		t.Fatal(err)
	}
	begin = time.Now()
	f.mustStart(f.specs[name])
	waitFresh(ctx, t, c, begin.Truncate(time.Second), name)
	t.Logf("a new machine of the same name is Ready %.1f s after its power-on", time.Since(begin).Seconds())
}
