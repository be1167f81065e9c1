package runner

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/cairn-os/cairn/pkg/build/lane"
)

// podNetwork is a way to let pods reach each other.
type podNetwork struct {
	backend string
	dual    bool // IPv4 and IPv6, else IPv4 alone
	long    bool // only when there is time
}

func (n podNetwork) String() string {
	if n.dual {
		return n.backend + " with both families"
	}
	return n.backend + " with IPv4"
}

// config is the first server's; the others take over what it says.
func (n podNetwork) config() string {
	settings := "flannel: " + n.backend
	if n.dual {
		settings += `, pod_cidr: [10.42.0.0/16, "fd42::/56"], service_cidr: [10.43.0.0/16, "fd43::/112"]`
	}
	return fmt.Sprintf("cairn: {token: %s, cluster: {%s}}\n", fleetToken, settings)
}

// TestNativeNetworks asks pods and Services from pods and nodes, on the same machine and on others, for each back-end
// beside the one of TestNativeCluster.
func TestNativeNetworks(t *testing.T) {
	lane.Require(t, "native")
	for _, n := range []podNetwork{
		{backend: "host-gw", long: true}, {backend: "vxlan", dual: true}, {backend: "host-gw", dual: true}, {backend: "wireguard"},
	} {
		t.Run(n.String(), func(t *testing.T) {
			if n.backend == "wireguard" {
				requireWireguard(t)
			}
			if n.long {
				requireLong(t)
			}
			testNetwork(t, n)
		})
	}
}

// requireWireguard skips where the kernel, which machines in namespaces share with this one, lacks it.
func requireWireguard(t *testing.T) {
	t.Helper()
	device := &netlink.Wireguard{LinkAttrs: netlink.LinkAttrs{Name: "cairn-wg-probe"}}
	if err := netlink.LinkAdd(device); err != nil {
		t.Skipf("this machine's kernel makes no wireguard device (%v): the vm lane tests it", err)
	}
	if err := netlink.LinkDel(device); err != nil {
		t.Fatal(err)
	}
}

func testNetwork(t *testing.T, n podNetwork) {
	const url = "https://10.88.0.61:6443"
	specs := []fleetSpec{
		{name: "hub-1", address: "10.88.0.61", config: n.config()}, agent("leaf-1", "10.88.0.66", url), agent("leaf-2", "10.88.0.67", url),
	}
	if n.dual {
		for i := range specs {
			specs[i].address6 = "fd00:88::" + strings.TrimPrefix(specs[i].address, "10.88.0.")
		}
	}
	f := newFleet(t, specs...)
	f.startAll()
	ctx := within(t, 4*time.Minute)
	c := f.access(ctx, t, "hub-1")
	waitReady(ctx, t, c, "hub-1", "leaf-1", "leaf-2")
	services := deployOnAll(ctx, t, c, "web", n)
	pods := waitPods(ctx, t, c, "web", 3)
	if len(pods) != 3 {
		t.Fatalf("pods are on %d nodes; want one on each of 3", len(pods))
	}
	families := 1
	if n.dual {
		families = 2
	}
	for node, pod := range pods {
		if len(pod.Status.PodIPs) != families {
			t.Errorf("the pod on %s has the addresses %v; want one of each of %d families", node, pod.Status.PodIPs, families)
		}
	}
	if len(services) != families {
		t.Errorf("the Service has the addresses %v; want %d", services, families)
	}
	asked := askAround(ctx, t, f, pods, services)
	t.Logf("%s: %d questions answered, Service %v, first pod %v", n, asked, services, pods["leaf-1"].Status.PodIPs)
}

// askAround asks every pod and every address of the Service, from every node and from every pod.
func askAround(ctx context.Context, t *testing.T, f *fleet, pods map[string]*corev1.Pod, services []string) int {
	t.Helper()
	var targets []string
	for _, pod := range pods {
		for _, ip := range pod.Status.PodIPs {
			targets = append(targets, net.JoinHostPort(ip.IP, "8080"))
		}
	}
	for _, service := range services {
		targets = append(targets, net.JoinHostPort(service, "80"))
	}
	slices.Sort(targets)
	asked := 0
	for node, pod := range pods {
		for _, target := range targets {
			fetch := "wget -qO- -T 5 http://" + target + "/"
			if out, err := f.machine(node).Run(ctx, fetch); err != nil || !strings.Contains(out, helloText) {
				t.Errorf("node %s gets from %s: %q, %v", node, target, out, err)
			}
			out, err := f.machine("hub-1").Run(ctx, "kubectl exec "+pod.Name+" -- /bin/busybox "+fetch)
			if err != nil || !strings.Contains(out, helloText) {
				t.Errorf("the pod on %s gets from %s: %q, %v", node, target, out, err)
			}
			asked += 2
		}
	}
	return asked
}

// deployOnAll runs a pod on every node and returns the addresses of a Service of them.
func deployOnAll(ctx context.Context, t *testing.T, c *Cluster, name string, n podNetwork) []string {
	t.Helper()
	labels, none := map[string]string{"app": name}, int64(1)
	set := &appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: appsv1.DaemonSetSpec{
		Selector: &metav1.LabelSelector{MatchLabels: labels},
		Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: corev1.PodSpec{
			TerminationGracePeriodSeconds: &none,
			Containers: []corev1.Container{{
				Name: name, Image: builtImage(t).HelloTag, ImagePullPolicy: corev1.PullNever,
				ReadinessProbe: &corev1.Probe{PeriodSeconds: 1, ProbeHandler: corev1.ProbeHandler{
					HTTPGet: &corev1.HTTPGetAction{Path: "/", Port: intstr.FromInt32(8080)},
				}},
			}},
		}},
	}}
	if _, err := c.AppsV1().DaemonSets(namespace).Create(ctx, set, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	spec := corev1.ServiceSpec{Selector: labels, Ports: []corev1.ServicePort{{Port: 80, TargetPort: intstr.FromInt32(8080)}}}
	if n.dual {
		policy := corev1.IPFamilyPolicyRequireDualStack
		spec.IPFamilyPolicy = &policy
	}
	service, err := c.CoreV1().Services(namespace).Create(ctx, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: spec}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, ip := range service.Spec.ClusterIPs {
		if _, err := netip.ParseAddr(ip); err != nil {
			t.Fatal(errors.Join(errors.New("the Service has no address"), err))
		}
	}
	return service.Spec.ClusterIPs
}
