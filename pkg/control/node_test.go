package control

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
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

// TestWatchNodeStays keeps its watch of a node that is as it should be, instead of asking again and again.
func TestWatchNodeStays(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		node := corev1.Node{
			TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Node"},
			ObjectMeta: metav1.ObjectMeta{Name: "n", Labels: map[string]string{controlPlaneLabel: "true"}},
		}
		if err := json.NewEncoder(w).Encode(map[string]any{"type": "ADDED", "object": node}); err != nil {
			t.Error(err)
		}
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	}))
	defer server.Close()
	client, err := kubernetes.NewForConfig(&rest.Config{Host: server.URL, ContentConfig: rest.ContentConfig{ContentType: "application/json"}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := (Options{Node: "n"}).watchNode(ctx, client); ctx.Err() == nil {
		t.Errorf("the watch of a node that needs nothing ended with %v; want it to stay", err)
	}
}
