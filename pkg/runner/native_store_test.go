package runner

import (
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// testRestore goes back to a snapshot, as an operator does on the machine: the
// API server comes back with the old state, the revision goes on, and the pod
// notices nothing.
func testRestore(t *testing.T, m Machine, c *Cluster) {
	ctx := within(t, 4*time.Minute)
	maps := c.CoreV1().ConfigMaps(namespace)
	create := func(name string) {
		t.Helper()
		if _, err := maps.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	operate := func(line string) string {
		t.Helper()
		out, err := m.Run(ctx, line)
		if err != nil {
			t.Fatalf("%s: %v\n%s", line, err, out)
		}
		return out
	}
	pod, err := c.WaitPod(ctx, helloName)
	if err != nil {
		t.Fatal(err)
	}
	create("kept")
	operate("cairnctl store snapshot --output-file /run/before.db")
	create("lost")
	list, err := maps.List(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	t.Logf("restore:\n%s", operate("cairnctl store restore /run/before.db --yes"))
	t.Logf("restored and ready after %s", time.Since(start).Round(10*time.Millisecond))

	if _, err := maps.Get(ctx, "kept", metav1.GetOptions{}); err != nil {
		t.Errorf("what was there before the snapshot: %v", err)
	}
	if _, err := maps.Get(ctx, "lost", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("what came after the snapshot: %v; want that it is not found", err)
	}
	create("after")
	now, err := maps.List(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	before, _ := strconv.ParseInt(list.ResourceVersion, 10, 64)
	if after, err := strconv.ParseInt(now.ResourceVersion, 10, 64); err != nil || after <= before {
		t.Errorf("revision %s after %s, %v: want a greater one", now.ResourceVersion, list.ResourceVersion, err)
	}
	if err := c.WaitNodeReady(ctx, m.Name()); err != nil {
		t.Error(err)
	}
	same, err := c.WaitPod(ctx, helloName)
	if err != nil {
		t.Fatal(err)
	}
	if same.UID != pod.UID || same.Status.ContainerStatuses[0].ContainerID != pod.Status.ContainerStatuses[0].ContainerID {
		t.Errorf("the pod's container was %s and is %s: a restore must not touch it",
			pod.Status.ContainerStatuses[0].ContainerID, same.Status.ContainerStatuses[0].ContainerID)
	}
	if err := FetchPage(ctx, m.Page()); err != nil {
		t.Error(err)
	}
	if out := operate("cairnctl store status"); !strings.Contains(out, "Quorum     yes, 1 of 1 voters online") {
		t.Errorf("the store's status afterwards:\n%s", out)
	}
	if out, err := m.Run(ctx, "cairnctl store recover --yes"); err == nil {
		t.Errorf("recovery of a store that works succeeds:\n%s", out)
	}
}
