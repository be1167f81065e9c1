package nodes

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/cairn-os/cairn/pkg/control/apiservertest"
	"github.com/cairn-os/cairn/pkg/join"
	"github.com/cairn-os/cairn/pkg/membership"
	"github.com/cairn-os/cairn/pkg/node/declared"
)

// TestCluster runs controllers against one real apiserver: a process can hold no second.
func TestCluster(t *testing.T) {
	server := apiservertest.Start(t, apiservertest.User{Name: "system:node:shop-4", Groups: []string{"system:nodes"}})
	for _, tt := range []struct {
		name string
		run  func(*world)
	}{
		{"Labels", (*world).testLabels},
		{"Removal", (*world).testRemoval},
		{"RemovalCrashes", (*world).testRemovalCrashes},
		{"RemovalWaits", (*world).testRemovalWaits},
		{"OwnServer", (*world).testOwnServer},
		{"Namesake", (*world).testNamesake},
		{"Identities", (*world).testIdentities},
		{"ExternalDatastore", (*world).testExternalDatastore},
		{"Agents", (*world).testAgents},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := &world{t: t, server: server, admin: server.Client(t, apiservertest.Admin)}
			w.await("namespace kube-system", func() bool {
				_, err := w.admin.CoreV1().Namespaces().Get(t.Context(), metav1.NamespaceSystem, metav1.GetOptions{})
				return err == nil
			})
			w.serveStore()
			w.clear()
			tt.run(w)
		})
	}
}

// testLabels has a kubelet declare, with no more rights than it has.
func (w *world) testLabels() {
	w.begin("shop-1:voter:leader")
	w.join("shop-1", roleServer)
	end := w.run("shop-1", crash{}, nil)
	defer end()
	w.await("control plane label and finalizer", func() bool {
		n := w.node("shop-1")
		return n.Labels[controlPlaneLabel] == "true" && len(n.Finalizers) == 1
	})

	w.identity("shop-4", roleAgent)
	kubelet := w.server.Client(w.t, "system:node:shop-4").CoreV1().Nodes()
	declare := func(text string) {
		w.t.Helper()
		patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": map[string]string{declared.Annotation: text}}})
		if err == nil {
			_, err = kubelet.Patch(w.t.Context(), "shop-4", types.MergePatchType, patch, metav1.PatchOptions{})
		}
		if err != nil {
			w.t.Fatal(err)
		}
	}
	if _, err := kubelet.Create(w.t.Context(), &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: "shop-4"}, Spec: corev1.NodeSpec{Taints: []corev1.Taint{taint("till", "", "NoSchedule")}},
	}, metav1.CreateOptions{}); err != nil {
		w.t.Fatal(err)
	}
	declare(`{"labels":{"shop":"17","node-role.kubernetes.io/x":"1","cloud.k8s.io/x":"1"},"taints":[{"key":"till","value":"","effect":"NoSchedule"}]}`)
	w.await("label", func() bool { return w.node("shop-4").Labels["shop"] == "17" })
	if n := w.node("shop-4"); n.Labels["node-role.kubernetes.io/x"] != "" || n.Labels["cloud.k8s.io/x"] != "" || len(n.Finalizers) > 0 || n.Labels[controlPlaneLabel] != "" {
		w.t.Errorf("an agent gave itself a role: %v, %v", n.Labels, n.Finalizers)
	}
	w.await("event", func() bool {
		return strings.Contains(w.told("shop-4", "RestrictedLabel"), "cloud.k8s.io/x, node-role.kubernetes.io/x")
	})

	declare(`{"labels":{"shop":"bad value!"}}`)
	w.await("event", func() bool { return strings.Contains(w.told("shop-4", "InvalidDeclaration"), `value "bad value!"`) })
	if n := w.node("shop-4"); n.Labels["shop"] != "17" || len(taintsOf(n)) != 1 {
		w.t.Errorf("after an invalid declaration: %v %v; want all as it was", n.Labels, n.Spec.Taints)
	}

	// An administrator's taint stays, whatever the machine claims to be its own.
	away := []byte(`{"spec":{"taints":[{"key":"till","effect":"NoSchedule"},{"key":"away","effect":"NoExecute"}]}}`)
	if _, err := w.admin.CoreV1().Nodes().Patch(w.t.Context(), "shop-4", types.MergePatchType, away, metav1.PatchOptions{}); err != nil {
		w.t.Fatal(err)
	}
	for _, forged := range []string{
		`{"metadata":{"labels":{"` + sealLabel + `":"` + owned{taints: []string{"away:NoExecute"}}.seal() + `"}}}`, `{"spec":{"taints":[]}}`,
	} {
		if _, err := kubelet.Patch(w.t.Context(), "shop-4", types.MergePatchType, []byte(forged), metav1.PatchOptions{}); !apierrors.IsForbidden(err) {
			w.t.Errorf("kubelet's patch %s = %v; want it forbidden", forged, err)
		}
	}
	declare(`{"labels":{"shop":"18"},"taints":[]}`)
	w.await("declaration that drops the taint", func() bool { return cmp.Equal(taintsOf(w.node("shop-4")), []string{"away:NoExecute"}) })
	claim := `{"metadata":{"annotations":{"` + ownedTaints + `":"away:NoExecute"}}}`
	if _, err := kubelet.Patch(w.t.Context(), "shop-4", types.MergePatchType, []byte(claim), metav1.PatchOptions{}); err != nil {
		w.t.Fatal(err)
	}
	w.await("claim undone", func() bool { return w.node("shop-4").Annotations[ownedTaints] == "" })
	if got := taintsOf(w.node("shop-4")); !cmp.Equal(got, []string{"away:NoExecute"}) {
		w.t.Errorf("taints after a kubelet's claim: %v; want the administrator's", got)
	}
	w.isQuiet("shop-4")
}

// isQuiet wants no change for a heartbeat.
func (w *world) isQuiet(name string) {
	w.t.Helper()
	before := len(w.record())
	status := `{"status":{"conditions":[{"type":"Ready","status":"False"}]}}`
	if _, err := w.admin.CoreV1().Nodes().Patch(w.t.Context(), name, types.MergePatchType, []byte(status), metav1.PatchOptions{}, "status"); err != nil {
		w.t.Fatal(err)
	}
	time.Sleep(500 * time.Millisecond)
	if now := w.record(); len(now) != before {
		w.t.Errorf("changes for a heartbeat: %v; want none", now[before:])
	}
}

func taintsOf(n *corev1.Node) (names []string) {
	for _, t := range n.Spec.Taints {
		if !strings.HasPrefix(t.Key, "node.kubernetes.io/") {
			names = append(names, declared.Name(t))
		}
	}
	return names
}

// three makes a cluster of three servers whose Nodes have their finalizers; shop-2 leads the store.
func (w *world) three() {
	w.t.Helper()
	w.clear()
	w.begin("shop-2:voter:leader shop-1:voter shop-3:voter")
	for _, name := range []string{"shop-1", "shop-2", "shop-3"} {
		w.join(name, roleServer)
	}
	end := w.run("shop-1", crash{}, nil)
	w.await("finalizers", func() bool {
		return len(w.node("shop-1").Finalizers)+len(w.node("shop-2").Finalizers)+len(w.node("shop-3").Finalizers) == 3
	})
	if err := end(); err != nil {
		w.t.Fatal(err)
	}
	w.begin("shop-2:voter:leader shop-1:voter shop-3:voter")
}

// removal is the order in which the server that leads the store goes.
var removal = []string{
	"store: lead another",
	"store: remove 0000000000000001",
	"DELETE /api/v1/namespaces/kube-system/secrets/cairn-node-shop-2",
	"PATCH /api/v1/nodes/shop-2",
}

func (w *world) testRemoval() {
	w.three()
	w.deleteNode("shop-2")
	end := w.run("shop-1", crash{}, nil)
	w.await("Node gone", func() bool { return w.node("shop-2") == nil })
	if err := end(); err != nil {
		w.t.Errorf("Run, asked to stop = %v; want nil", err)
	}
	if d := cmp.Diff(removal, w.removal()); d != "" {
		w.t.Errorf("changes: %s", d)
	}
	for _, reason := range []string{"StoreLeadHandedOver", "StoreMemberRemoved", "IdentityDeleted"} {
		w.await("event "+reason, func() bool { return w.told("shop-2", reason) != "" })
	}
	w.createNode("shop-2", &corev1.Node{}) // nothing keeps the machine from registering
}

// testRemovalCrashes cuts the controller off at each change, before and after, and has another one go on.
func (w *world) testRemovalCrashes() {
	for _, before := range []bool{true, false} {
		for at := 1; at <= len(removal); at++ {
			name := fmt.Sprintf("crash at %q, before: %t", removal[at-1], before)
			w.three()
			w.deleteNode("shop-2")
			end := w.run("shop-1", crash{at: at, before: before}, nil)
			w.await(name, func() bool { w.mu.Lock(); defer w.mu.Unlock(); return w.crash.done })
			if err := end(); err != nil {
				w.t.Errorf("%s: Run = %v; want nil", name, err)
			}
			end = w.run("shop-3", crash{}, nil)
			w.await(name+": Node gone", func() bool { return w.node("shop-2") == nil })
			if err := end(); err != nil {
				w.t.Errorf("%s: Run of the next = %v; want nil", name, err)
			}
			if d := cmp.Diff(removal, w.removal()); d != "" {
				w.t.Errorf("%s: changes: %s", name, d)
			}
			if w.knows("shop-2") {
				w.t.Errorf("%s: the identity is left", name)
			}
		}
	}
}

// testRemovalWaits lets nothing happen that harms the store, and goes on when it may.
func (w *world) testRemovalWaits() {
	w.three()
	w.begin("shop-1:voter:leader shop-2:voter shop-3:voter:away")
	w.deleteNode("shop-2")
	end := w.run("shop-1", crash{}, nil)
	defer end()
	w.await("event", func() bool { return strings.Contains(w.told("shop-2", "RemovalWaits"), "would lose its quorum") })
	if got := w.record(); len(got) > 0 {
		w.t.Errorf("changes while a voter is away: %v; want none", got)
	}
	if w.node("shop-2") == nil || !w.knows("shop-2") {
		w.t.Error("the Node or the identity went before the member")
	}
	w.begin("shop-1:voter:leader shop-2:voter shop-3:voter")
	w.await("Node gone", func() bool { return w.node("shop-2") == nil })
}

// testOwnServer wants the removal of the server that the controller runs on to be left to another one, if any.
func (w *world) testOwnServer() {
	w.three()
	w.deleteNode("shop-1")
	end := w.run("shop-1", crash{}, nil)
	w.await("event", func() bool { return w.told("shop-1", "LeadHandedOver") != "" })
	if err := end(); !errors.Is(err, ErrHandOver) {
		w.t.Errorf("Run on the server that goes = %v; want %v", err, ErrHandOver)
	}
	if got := w.record(); len(got) > 0 {
		w.t.Errorf("changes by the server that goes: %v; want none", got)
	}
	end = w.run("shop-3", crash{}, nil)
	w.await("Node gone", func() bool { return w.node("shop-1") == nil })
	w.deleteNode("shop-2")
	w.await("second Node gone", func() bool { return w.node("shop-2") == nil })
	w.deleteNode("shop-3")
	w.await("event", func() bool { return strings.Contains(w.told("shop-3", "LastServer"), "cannot be removed") })
	if err := end(); err != nil {
		w.t.Errorf("Run on the last server = %v; want nil", err)
	}
	if w.node("shop-3") == nil || !w.knows("shop-3") {
		w.t.Error("the last server is gone")
	}
}

// testNamesake has a machine join with the name of a server that is being removed: the new one loses nothing.
func (w *world) testNamesake() {
	w.three()
	w.deleteNode("shop-2")
	if err := w.admin.CoreV1().Secrets(metav1.NamespaceSystem).Delete(w.t.Context(), identityPrefix+"shop-2", metav1.DeleteOptions{}); err != nil {
		w.t.Fatal(err)
	}
	w.identitySince("shop-2", roleServer, time.Now().Add(2*time.Second))
	end := w.run("shop-1", crash{}, nil)
	w.await("Node gone", func() bool { return w.node("shop-2") == nil })
	if err := end(); err != nil {
		w.t.Error(err)
	}
	if d := cmp.Diff(removal[3:], w.removal()); d != "" {
		w.t.Errorf("changes: %s", d)
	}
}

// testIdentities wants the Secrets of these tests to be what pkg/join takes them for.
func (w *world) testIdentities() {
	at := time.Now().Add(-time.Hour).UTC().Truncate(time.Second)
	w.identitySince("shop-1", roleServer, at)
	got, err := join.ListNodes(w.t.Context(), w.admin)
	if err != nil {
		w.t.Fatal(err)
	}
	want := []join.NodeRecord{{Name: "shop-1", Identity: "aa", Role: membership.Server, Joined: at}}
	if d := cmp.Diff(want, got); d != "" {
		w.t.Error(d)
	}
}

func (w *world) testExternalDatastore() {
	w.three()
	w.deleteNode("shop-2")
	end := w.run("shop-2", crash{}, func(o *Options) { o.Store = nil })
	defer end()
	w.await("Node gone", func() bool { return w.node("shop-2") == nil })
	if d := cmp.Diff(removal[2:], w.removal()); d != "" {
		w.t.Errorf("changes: %s", d)
	}
}

// testAgents deletes the identities of agents whose Nodes were deleted, and no other.
func (w *world) testAgents() {
	w.begin("shop-1:voter:leader")
	w.join("shop-1", roleServer)
	w.join("shop-4", roleAgent)
	w.identity("missed", roleAgent)
	w.identity("tower", "witness")
	w.identity("server-without-node", roleServer)
	end := w.run("shop-1", crash{}, nil)
	w.await("finalizer", func() bool { return len(w.node("shop-1").Finalizers) == 1 })
	w.deleteNode("shop-4")
	w.await("identity gone", func() bool { return !w.knows("shop-4") })
	if !w.knows("missed") {
		w.t.Error("the identity of an agent that joined a moment ago is gone")
	}
	if err := end(); err != nil {
		w.t.Error(err)
	}
	// A machine that joined with the name since the Node went keeps it.
	w.identity("shop-6", roleAgent)
	if err := New(Options{Client: w.admin, Log: slog.New(slog.DiscardHandler)}).reap(w.t.Context(), key{name: "shop-6", gone: "1"}); err != nil {
		w.t.Fatal(err)
	}
	if !w.knows("shop-6") {
		w.t.Error("the identity of a machine that joined again is gone")
	}
	// A day and a minute later, which is when the next one starts.
	end = w.run("shop-1", crash{}, func(o *Options) { o.Now = func() time.Time { return time.Now().Add(sweepAge + time.Minute) } })
	defer end()
	w.await("identity swept", func() bool { return !w.knows("missed") })
	time.Sleep(300 * time.Millisecond)
	for _, name := range []string{"shop-1", "tower", "server-without-node"} {
		if !w.knows(name) {
			w.t.Errorf("the identity of %s is gone", name)
		}
	}
}
