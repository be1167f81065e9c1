package control

import (
	"context"
	"encoding/pem"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/rest"

	"github.com/cairn-os/cairn/pkg/control/approver"
	"github.com/cairn-os/cairn/pkg/join"
	"github.com/cairn-os/cairn/pkg/membership"
	"github.com/cairn-os/cairn/pkg/pki"
)

// secretOf is a record as the cluster has it.
func secretOf(r join.NodeRecord) *corev1.Secret {
	var addresses []string
	for _, a := range r.Addresses {
		addresses = append(addresses, a.String())
	}
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: join.NodePrefix + r.Name, Namespace: join.Namespace}, Type: join.NodeType,
		Data: map[string][]byte{
			"identity": []byte(r.Identity), "role": []byte(r.Role), "joined": []byte(r.Joined.UTC().Format(time.RFC3339)),
			"addresses": []byte(strings.Join(addresses, " ")), "clientkey": []byte(strings.Join(r.ClientKeys, " ")),
		},
	}
}

func parseAddresses(texts ...string) (all []netip.Addr) {
	for _, text := range texts {
		all = append(all, netip.MustParseAddr(text))
	}
	return all
}

// TestNodeAddresses believes what was recorded, and nothing that a kubelet tells.
func TestNodeAddresses(t *testing.T) {
	record := func(name string, role membership.Role, addresses ...string) join.NodeRecord {
		return join.NodeRecord{Name: name, Identity: name, Role: role, Addresses: parseAddresses(addresses...)}
	}
	client := fake.NewClientset(
		secretOf(record("server", membership.Server, "192.0.2.1", "2001:db8::1")),
		secretOf(record("agent", membership.Agent, "192.0.2.2", "192.0.2.1", "10.43.0.10", "10.42.3.4", "127.0.0.1", "0.0.0.0", "169.254.169.254")),
		secretOf(record("other", membership.Agent, "192.0.2.3", "192.0.2.4")),
		secretOf(record("third", membership.Agent, "192.0.2.4")),
		&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "agent"}, Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.0.2.77"}}}},
		&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "other"}, Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.0.2.2"}}}},
	)
	b := newNodeBook(client, parsePrefixes("10.42.0.0/16", "10.43.0.0/16"))
	gone := make(chan string, 10)
	b.gone = func(node string) { gone <- node }
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- b.run(ctx) }()
	defer func() { cancel(); <-done }()
	eventually(t, 5*time.Second, "records", b.ready)
	for node, want := range map[string][]netip.Addr{
		"server": parseAddresses("192.0.2.1", "2001:db8::1"), "agent": parseAddresses("192.0.2.2"), "other": parseAddresses("192.0.2.3"),
		"third": nil, "unknown": nil,
	} {
		got := b.addresses(node)
		if !slices.Equal(got, want) {
			t.Errorf("addresses(%s) = %v; want %v", node, got, want)
		}
		if got, want := b.isServer(node), node == "server"; got != want {
			t.Errorf("isServer(%s) = %t", node, got)
		}
	}
	secrets := client.CoreV1().Secrets(join.Namespace)
	moved := record("third", membership.Agent, "192.0.2.5")
	if _, err := secrets.Update(ctx, secretOf(moved), metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, 5*time.Second, "new addresses", func() bool { return slices.Equal(b.addresses("third"), parseAddresses("192.0.2.5")) })
	moved.Identity = "another machine"
	if _, err := secrets.Update(ctx, secretOf(moved), metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if got := <-gone; got != "third" {
		t.Errorf("the node %s is told to be another machine; want third", got)
	}
	if err := secrets.Delete(ctx, join.NodePrefix+"agent", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if got := <-gone; got != "agent" || b.addresses("agent") != nil {
		t.Errorf("the node %s is told to be gone; want agent, without addresses", got)
	}
}

// TestRecordSelf has servers record themselves, also one that joined and has another name since.
func TestRecordSelf(t *testing.T) {
	client := fake.NewClientset()
	o := testOptions()
	for _, step := range []struct {
		node      string
		addresses []netip.Addr
	}{
		{"shop-1", parseAddresses("192.0.2.7", "2001:db8::7")}, {"shop-1", parseAddresses("192.0.2.8")}, {"shop-9", parseAddresses("192.0.2.8")},
	} {
		o.Node, o.Identity, o.Joined, o.addresses = step.node, strings.Repeat("a", 64), true, step.addresses
		if err := o.recordSelf(t.Context(), client); err != nil {
			t.Fatal(err)
		}
		r := recorded(t, client, step.node)
		if r.Role != membership.Server || r.Identity != o.Identity || !slices.Equal(r.Addresses, step.addresses) {
			t.Errorf("record of %s = %+v; want %v", step.node, r, step.addresses)
		}
	}
}

func recorded(t *testing.T, client kubernetes.Interface, node string) *join.NodeRecord {
	t.Helper()
	s, err := client.CoreV1().Secrets(join.Namespace).Get(t.Context(), join.NodePrefix+node, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	r, err := join.ReadNode(s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// agentClient asks the apiserver with a certificate of the node.
func agentClient(t *testing.T, o Options, node string) (kubernetes.Interface, string) {
	t.Helper()
	c, key := certificate(t, o, pki.ClientCA, pki.ClientRequest(pki.NodeUser(node), pki.NodeGroup))
	der := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
	pair, err := pki.EncodePair(der, key)
	if err != nil {
		t.Fatal(err)
	}
	client, err := kubernetes.NewForConfig(&rest.Config{Host: o.url(), TLSClientConfig: rest.TLSClientConfig{
		CAFile: o.authority(pki.ServerCA), CertData: pair, KeyData: pair,
	}})
	if err != nil {
		t.Fatal(err)
	}
	return client, approver.KeyHash(c.RawSubjectPublicKeyInfo)
}

// testNodes has an agent ask with its certificate before it is recorded, while it is, and after its removal, and try to
// give itself the pods' addresses of another.
func testNodes(t *testing.T, admin kubernetes.Interface, o Options) {
	if r := recorded(t, admin, o.Node); r.Role != membership.Server || !slices.Contains(r.Addresses, netip.MustParseAddr("192.0.2.1")) {
		t.Errorf("own record = %+v; want a server's at 192.0.2.1", r)
	}
	const name = "till-9"
	client, key := agentClient(t, o, name)
	nodes := client.CoreV1().Nodes()
	if _, err := nodes.Get(t.Context(), name, metav1.GetOptions{}); !apierrors.IsUnauthorized(err) || !strings.Contains(err.Error(), "was removed") {
		t.Errorf("a node without a record: %v; want it unauthorized", err)
	}
	record := secretOf(join.NodeRecord{Name: name, Identity: "a", Role: membership.Agent, Joined: time.Now(), ClientKeys: []string{key}})
	if _, err := admin.CoreV1().Secrets(join.Namespace).Create(t.Context(), record, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.NodeSpec{PodCIDR: "10.42.0.0/24", PodCIDRs: []string{"10.42.0.0/24"}}}
	eventually(t, 30*time.Second, "the policy to refuse pod addresses", func() bool {
		_, err := nodes.Create(t.Context(), node, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		return apierrors.IsForbidden(err) && strings.Contains(err.Error(), "spec.podCIDR")
	})
	node.Spec = corev1.NodeSpec{}
	if _, err := nodes.Create(t.Context(), node, metav1.CreateOptions{}); err != nil {
		t.Fatalf("register without pod addresses: %v", err)
	}
	patch := func(text string) error {
		_, err := nodes.Patch(t.Context(), name, types.StrategicMergePatchType, []byte(text), metav1.PatchOptions{})
		return err
	}
	eventually(t, 30*time.Second, "pod addresses from the cluster", func() bool {
		n, err := nodes.Get(t.Context(), name, metav1.GetOptions{})
		return err == nil && len(n.Spec.PodCIDRs) == 2
	})
	if err := patch(`{"metadata":{"annotations":{"a":"b"}}}`); err != nil {
		t.Errorf("write something else: %v", err)
	}
	if err := patch(`{"spec":{"podCIDRs":["10.42.0.0/16"]}}`); !apierrors.IsForbidden(err) && !apierrors.IsInvalid(err) {
		t.Errorf("take another share: %v; want it forbidden", err)
	}
	if err := admin.CoreV1().Nodes().Delete(t.Context(), name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := admin.CoreV1().Secrets(join.Namespace).Delete(t.Context(), record.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "the removed node's certificate to count no more", func() bool {
		_, err := nodes.Get(t.Context(), name, metav1.GetOptions{})
		return apierrors.IsUnauthorized(err)
	})
}

// TestNodePolicy has the policy written again as it should be.
func TestNodePolicy(t *testing.T) {
	client := fake.NewClientset()
	policies := client.AdmissionregistrationV1().ValidatingAdmissionPolicies()
	for range 2 {
		if err := ensureNodePolicy(t.Context(), client); err != nil {
			t.Fatal(err)
		}
		have, err := policies.Get(t.Context(), nodePolicyName, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(nodePolicy().Spec, have.Spec); d != "" {
			t.Error(d)
		}
		have.Spec.Validations = nil // somebody's, or an older version's
		if _, err := policies.Update(t.Context(), have, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
}
