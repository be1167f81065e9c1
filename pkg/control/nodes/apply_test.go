package nodes

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/strategicpatch"

	"github.com/cairn-os/cairn/pkg/node/declared"
)

func nodeWith(labels map[string]string, taints ...corev1.Taint) *corev1.Node {
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: "n", ResourceVersion: "7", Labels: labels, Annotations: map[string]string{}},
		Spec:       corev1.NodeSpec{Taints: taints},
	}
}

// remembering notes on the node what was set on it, as the controller does.
func remembering(n *corev1.Node, labels, taints string) *corev1.Node {
	n.Annotations[ownedLabels], n.Annotations[ownedTaints] = labels, taints
	if n.Labels == nil {
		n.Labels = map[string]string{}
	}
	n.Labels[sealLabel] = owned{strings.Fields(labels), strings.Fields(taints)}.seal()
	return n
}

func taint(key, value string, effect corev1.TaintEffect) corev1.Taint {
	return corev1.Taint{Key: key, Value: value, Effect: effect}
}

func wants(labels map[string]string, taints ...corev1.Taint) *declared.Declaration {
	return &declared.Declaration{Labels: labels, Taints: taints}
}

func TestNodePatch(t *testing.T) {
	notReady := taint("node.kubernetes.io/not-ready", "", corev1.TaintEffectNoSchedule)
	till := taint("till", "", corev1.TaintEffectNoSchedule)
	seal := func(labels, taints string) string {
		return owned{strings.Fields(labels), strings.Fields(taints)}.seal()
	}
	forged := remembering(nodeWith(nil, till), "", "")
	forged.Annotations[ownedTaints] = "till:NoSchedule"
	final := remembering(nodeWith(map[string]string{controlPlaneLabel: "true"}), controlPlaneLabel, "")
	final.Finalizers = []string{Finalizer}
	for _, tt := range []struct {
		name string
		node *corev1.Node
		want want
		out  string
	}{
		{
			"new server", nodeWith(nil, notReady), want{server: true, declared: wants(map[string]string{"shop": "17"}, till)},
			`{"metadata":{"annotations":{"cairn-os.io/labels":"node-role.kubernetes.io/control-plane shop","cairn-os.io/taints":"till:NoSchedule"},` +
				`"finalizers":["cairn-os.io/member"],"labels":{"cairn.node-restriction.kubernetes.io/owned":"` + seal(controlPlaneLabel+" shop", "till:NoSchedule") +
				`","node-role.kubernetes.io/control-plane":"true","shop":"17"},"resourceVersion":"7"},` +
				`"spec":{"taints":[{"key":"node.kubernetes.io/not-ready","effect":"NoSchedule"},{"key":"till","effect":"NoSchedule"}]}}`,
		},
		{
			"new server that declared nothing yet", nodeWith(nil, notReady), want{server: true},
			`{"metadata":{"finalizers":["cairn-os.io/member"],"labels":{"node-role.kubernetes.io/control-plane":"true"},"resourceVersion":"7"}}`,
		},
		{"new agent that declared nothing yet", nodeWith(nil, notReady), want{}, ""},
		{
			"agent that registered with its taint", nodeWith(map[string]string{"shop": "17"}, till, notReady), want{declared: wants(map[string]string{"shop": "17"}, till)},
			`{"metadata":{"annotations":{"cairn-os.io/labels":"shop","cairn-os.io/taints":"till:NoSchedule"},"labels":{"cairn.node-restriction.kubernetes.io/owned":"` +
				seal("shop", "till:NoSchedule") + `"},"resourceVersion":"7"}}`,
		},
		{
			"nothing to do, in another order", remembering(nodeWith(map[string]string{"shop": "17"}, till, notReady), "shop", "till:NoSchedule"),
			want{declared: wants(map[string]string{"shop": "17"}, till)}, "",
		},
		{
			"taken out of the configuration", remembering(nodeWith(map[string]string{"shop": "17", "mine": "x"}, till, notReady), "shop", "till:NoSchedule"),
			want{declared: wants(nil)},
			`{"metadata":{"annotations":{"cairn-os.io/labels":"","cairn-os.io/taints":""},"labels":{"cairn.node-restriction.kubernetes.io/owned":"` +
				seal("", "") + `","shop":null},"resourceVersion":"7"},"spec":{"taints":[{"key":"node.kubernetes.io/not-ready","effect":"NoSchedule"}]}}`,
		},
		{
			"all taken out", remembering(nodeWith(nil, till), "", "till:NoSchedule"), want{declared: wants(nil)},
			`{"metadata":{"annotations":{"cairn-os.io/taints":""},"labels":{"cairn.node-restriction.kubernetes.io/owned":"` +
				seal("", "") + `"},"resourceVersion":"7"},"spec":{"taints":null}}`,
		},
		{
			"another value", remembering(nodeWith(map[string]string{"shop": "17"}, till), "shop", "till:NoSchedule"),
			want{declared: wants(map[string]string{"shop": "18"}, taint("till", "2", corev1.TaintEffectNoSchedule))},
			`{"metadata":{"labels":{"shop":"18"},"resourceVersion":"7"},"spec":{"taints":[{"key":"till","value":"2","effect":"NoSchedule"}]}}`,
		},
		{
			"nothing valid declared: all stays", remembering(nodeWith(map[string]string{"shop": "17"}, till), "shop", "till:NoSchedule"), want{}, "",
		},
		{"a forged memory", forged, want{declared: wants(nil)}, `{"metadata":{"annotations":{"cairn-os.io/taints":""},"resourceVersion":"7"}}`},
		{
			"an administrator's taint is not taken over", remembering(nodeWith(nil, taint("till", "away", corev1.TaintEffectNoSchedule)), "", ""),
			want{declared: wants(nil, till)}, "",
		},
		{
			"a server became an agent", final, want{declared: wants(nil)},
			`{"metadata":{"annotations":{"cairn-os.io/labels":""},"labels":{"cairn.node-restriction.kubernetes.io/owned":"` + seal("", "") +
				`","node-role.kubernetes.io/control-plane":null},"resourceVersion":"7"}}`,
		},
	} {
		got, err := nodePatch(tt.node, tt.want)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(tt.out, string(got)); d != "" {
			t.Errorf("%s: %s", tt.name, d)
		}
		if got != nil {
			settles(t, tt.name, tt.node, tt.want, got)
		}
	}
}

// settles applies the patch, as the apiserver does, and wants that nothing is left to do.
func settles(t *testing.T, name string, node *corev1.Node, w want, patch []byte) {
	t.Helper()
	before, err := json.Marshal(node)
	if err != nil {
		t.Fatal(err)
	}
	// Both kinds of patches mean the same for what is in these, but for lists.
	if strings.Contains(string(patch), `"taints":[`) {
		patch = []byte(strings.Replace(string(patch), `"taints":[`, `"taints":[{"$patch":"replace"},`, 1))
	}
	after, err := strategicpatch.StrategicMergePatch(before, patch, corev1.Node{})
	if err != nil {
		t.Fatal(err)
	}
	var got corev1.Node
	if err := json.Unmarshal(after, &got); err != nil {
		t.Fatal(err)
	}
	if again, err := nodePatch(&got, w); err != nil || again != nil {
		t.Errorf("%s: after the patch another one: %s, %v; want none", name, again, err)
	}
}

func TestRestricted(t *testing.T) {
	for key, want := range map[string]bool{
		"shop": false, "node-role.kubernetes.io/edge": true, "node-restriction.kubernetes.io/x": true,
		"a.node-restriction.kubernetes.io/x": true, "topology.kubernetes.io/zone": false, "xnode-restriction.kubernetes.io/x": true, "node-restriction.example.com/x": false,
		"a.node-role.kubernetes.io/x": true, "node-role.kubernetes.io": false,
		"topology.kubernetes.io/region": false, "kubernetes.io/hostname": false, "node.kubernetes.io/instance-type": false,
		"node.kubernetes.io/x": false, "a.node.kubernetes.io/x": false, "kubelet.kubernetes.io/x": false,
		"kubernetes.io/x": true, "topology.kubernetes.io/x": true, "app.kubernetes.io/name": true, "x.k8s.io/y": true, "k8s.io/y": true,
		"notkubernetes.io/x": false, "example.com/x": false,
	} {
		if got := restricted(key); got != want {
			t.Errorf("restricted(%s) = %t; want %t", key, got, want)
		}
	}
	d, refused := withoutRestricted(*wants(map[string]string{"shop": "17", "node-role.kubernetes.io/b": "", "node-role.kubernetes.io/a": "", "cloud.k8s.io/x": ""}))
	if diff := cmp.Diff([]string{"cloud.k8s.io/x", "node-role.kubernetes.io/a", "node-role.kubernetes.io/b"}, refused); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(map[string]string{"shop": "17"}, d.Labels); diff != "" {
		t.Error(diff)
	}
}

func TestDiffers(t *testing.T) {
	base := func() *corev1.Node {
		return remembering(nodeWith(map[string]string{"shop": "17"}, taint("till", "", "NoSchedule")), "shop", "")
	}
	for _, tt := range []struct {
		name   string
		change func(*corev1.Node)
		want   bool
	}{
		{"a heartbeat", func(n *corev1.Node) {
			n.ResourceVersion = "8"
			n.Status.Images = []corev1.ContainerImage{{SizeBytes: 1}}
		}, false},
		{"another's annotation", func(n *corev1.Node) { n.Annotations["x"] = "y" }, false},
		{"declaration", func(n *corev1.Node) { n.Annotations[declared.Annotation] = "{}" }, true},
		{"memory", func(n *corev1.Node) { n.Annotations[ownedTaints] = "x" }, true},
		{"label", func(n *corev1.Node) { n.Labels["x"] = "y" }, true},
		{"taint", func(n *corev1.Node) { n.Spec.Taints = nil }, true},
		{"finalizer", func(n *corev1.Node) { n.Finalizers = []string{Finalizer} }, true},
		{"deletion", func(n *corev1.Node) { now := metav1.Now(); n.DeletionTimestamp = &now }, true},
		{"created again", func(n *corev1.Node) { n.UID = "2" }, true},
	} {
		after := base()
		tt.change(after)
		if got := differs(base(), after); got != tt.want {
			t.Errorf("%s: differs = %t; want %t", tt.name, got, tt.want)
		}
	}
}
