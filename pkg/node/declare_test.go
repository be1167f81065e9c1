package node

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/cairn-os/cairn/pkg/node/declared"
)

func awaitDeclared(t *testing.T, client kubernetes.Interface, want string) {
	t.Helper()
	got := ""
	for range 200 {
		n, err := client.CoreV1().Nodes().Get(t.Context(), "shop-1", metav1.GetOptions{})
		if err == nil && n.Annotations[declared.Annotation] == want {
			return
		}
		if err == nil {
			got = n.Annotations[declared.Annotation]
		}
		time.Sleep(25 * time.Millisecond)
	}
	t.Fatalf("declaration = %q after 5s; want %q", got, want)
}

// TestDeclare follows a Node that appears late, is changed by somebody, and goes and returns.
func TestDeclare(t *testing.T) {
	client := fake.NewClientset()
	var failures atomic.Int32
	failures.Store(1)
	client.PrependReactor("patch", "nodes", func(clienttesting.Action) (bool, runtime.Object, error) {
		if failures.Add(-1) >= 0 {
			return true, nil, errors.New("the apiserver went away")
		}
		return false, nil, nil
	})
	n := &node{
		Options: Options{Name: "shop-1", Labels: map[string]string{"shop": "17"}, Taints: []corev1.Taint{{Key: "till", Effect: "NoSchedule"}}},
		log:     slog.New(slog.DiscardHandler), client: client,
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- n.declare(ctx) }()

	const want = `{"labels":{"shop":"17"},"taints":[{"key":"till","value":"","effect":"NoSchedule"}]}`
	nodes := client.CoreV1().Nodes()
	create := func() {
		if _, err := nodes.Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "shop-1"}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	create()
	awaitDeclared(t, client, want)
	if failures.Load() >= 0 {
		t.Error("the request that fails was not made")
	}
	other := []byte(`{"metadata":{"annotations":{"` + declared.Annotation + `":"junk"}}}`)
	if _, err := nodes.Patch(ctx, "shop-1", types.MergePatchType, other, metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	awaitDeclared(t, client, want)
	if err := nodes.Delete(ctx, "shop-1", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	create()
	awaitDeclared(t, client, want)

	writes := 0
	for _, a := range client.Actions() {
		if a.GetVerb() == "patch" {
			writes++
		}
	}
	if writes != 5 { // one failed, three to keep it, one by the test
		t.Errorf("%d patches; want 5", writes)
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("declare, asked to stop = %v; want nil", err)
	}
}
