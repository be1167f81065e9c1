package node

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/kubernetes/cmd/kubelet/app/options"
)

func testNode() *node {
	return &node{Options: DefaultOptions("shop-1"), addresses: []netip.Addr{netip.MustParseAddr("192.0.2.7")}}
}

func TestKubeletServer(t *testing.T) {
	o := testNode()
	o.KubeletArgs = []string{"max-pods=42"}
	o.Labels = map[string]string{"shop": "17", "node-role.kubernetes.io/edge": "true", "node.kubernetes.io/instance-type": "pi"}
	o.Taints = []corev1.Taint{{Key: "till", Effect: corev1.TaintEffectNoSchedule}}
	here, err := inspectHost()
	if err != nil {
		t.Fatal(err)
	}
	for _, v1 := range []bool{false, true} {
		s, err := o.kubeletServer(host{cgroupV1: v1, oomScore: -900})
		if err != nil {
			t.Fatal(err)
		}
		// Upstream's check looks at the machine that it runs on.
		if err := options.ValidateKubeletServer(s); err != nil && v1 == here.cgroupV1 {
			t.Errorf("upstream refuses the configuration: %v", err)
		}
		if s.FailCgroupV1 == v1 {
			t.Errorf("FailCgroupV1 = %v with cgroup v1 = %v", s.FailCgroupV1, v1)
		}
		if s.Authentication.Anonymous.Enabled || s.ReadOnlyPort != 0 || s.Authorization.Mode != "Webhook" {
			t.Error("the kubelet answers strangers")
		}
		if s.MaxPods != 42 {
			t.Errorf("max pods = %d; want the owner's argument, 42", s.MaxPods)
		}
		want := map[string]string{"shop": "17", "node.kubernetes.io/instance-type": "pi"}
		if d := cmp.Diff(want, s.NodeLabels); d != "" {
			t.Errorf("labels at registration: %s", d)
		}
	}
	o.addresses = nil
	if _, err := o.kubeletServer(host{}); err == nil {
		t.Error("kubeletServer without an address: want an error")
	}
	o = testNode()
	o.KubeletArgs = []string{"no-such-argument=1"}
	if _, err := o.kubeletServer(host{}); err == nil || !strings.Contains(err.Error(), "kubelet_args") {
		t.Errorf("kubeletServer with an unknown argument = %v; want an error that names kubelet_args", err)
	}
}

func TestRunParts(t *testing.T) {
	wait := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
	parts := func(f func(context.Context) error) map[string]func(context.Context) error {
		return map[string]func(context.Context) error{"a": wait, "b": f}
	}
	boom := errors.New("boom")
	if err := runParts(t.Context(), parts(func(context.Context) error { return boom })); !errors.Is(err, boom) {
		t.Errorf("runParts = %v; want %v", err, boom)
	}
	if err := runParts(t.Context(), parts(func(context.Context) error { return nil })); err == nil {
		t.Error("a part that ends by itself: want an error")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := runParts(ctx, parts(wait)); err != nil {
		t.Errorf("runParts, asked to stop = %v; want nil", err)
	}
}

func TestIsReady(t *testing.T) {
	begin := time.Date(2026, 11, 20, 12, 0, 0, 700e6, time.UTC)
	node := func(status corev1.ConditionStatus, heartbeat time.Time) *corev1.Node {
		return &corev1.Node{Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{
			{Type: corev1.NodeReady, Status: status, LastHeartbeatTime: metav1.Time{Time: heartbeat}},
		}}}
	}
	for _, tt := range []struct {
		name string
		node *corev1.Node
		now  time.Time
		want bool
	}{
		{"new node", &corev1.Node{}, begin, false},
		{"said before the start", node(corev1.ConditionTrue, begin.Add(-time.Minute)), begin.Add(time.Second), false},
		{"said in the second of the start", node(corev1.ConditionTrue, begin.Truncate(time.Second)), begin.Add(time.Second), true},
		{"not ready", node(corev1.ConditionFalse, begin.Add(time.Second)), begin.Add(time.Second), false},
		{"the clock was set back", node(corev1.ConditionTrue, begin.Add(-time.Hour)), begin.Add(-59 * time.Minute), true},
	} {
		if got := isReady(tt.node, begin, tt.now); got != tt.want {
			t.Errorf("%s: isReady = %t; want %t", tt.name, got, tt.want)
		}
	}
}
