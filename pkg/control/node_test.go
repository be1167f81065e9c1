package control

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestNodePatch(t *testing.T) {
	notReady := corev1.Taint{Key: "node.kubernetes.io/not-ready", Effect: corev1.TaintEffectNoSchedule}
	node := func(labels, annotations map[string]string, taints ...corev1.Taint) *corev1.Node {
		return &corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: "n", ResourceVersion: "7", Labels: labels, Annotations: annotations},
			Spec:       corev1.NodeSpec{Taints: taints},
		}
	}
	control := controlPlaneLabel
	for _, tt := range []struct {
		name   string
		node   *corev1.Node
		labels map[string]string
		taints []Taint
		want   string
	}{
		{
			"new node", node(nil, nil, notReady), map[string]string{"shop": "17"}, []Taint{{"till", "", "NoSchedule"}},
			`{"metadata":{"annotations":{"cairn-os.io/labels":"shop","cairn-os.io/taints":"till:NoSchedule"},"labels":{"node-role.kubernetes.io/control-plane":"true","shop":"17"},"resourceVersion":"7"},"spec":{"taints":[{"key":"node.kubernetes.io/not-ready","effect":"NoSchedule"},{"key":"till","effect":"NoSchedule"}]}}`,
		},
		{
			"nothing to do",
			node(map[string]string{control: "true", "shop": "17"}, map[string]string{ownedLabels: "shop", ownedTaints: "till:NoSchedule"}, corev1.Taint{Key: "till", Effect: "NoSchedule"}),
			map[string]string{"shop": "17"}, []Taint{{"till", "", "NoSchedule"}}, "",
		},
		{
			"taken out of the configuration",
			node(map[string]string{control: "true", "shop": "17", "mine": "x"}, map[string]string{ownedLabels: "shop", ownedTaints: "till:NoSchedule"}, corev1.Taint{Key: "till", Effect: "NoSchedule"}, notReady),
			nil, nil,
			`{"metadata":{"annotations":{"cairn-os.io/labels":"","cairn-os.io/taints":""},"labels":{"shop":null},"resourceVersion":"7"},"spec":{"taints":[{"key":"node.kubernetes.io/not-ready","effect":"NoSchedule"}]}}`,
		},
	} {
		got, err := nodePatch(tt.node, tt.labels, tt.taints)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(tt.want, string(got)); d != "" {
			t.Errorf("%s: %s", tt.name, d)
		}
	}
}
