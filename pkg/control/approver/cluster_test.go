package approver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/cairn-os/cairn/pkg/control/apiservertest"
	"github.com/cairn-os/cairn/pkg/join"
)

// world is a cluster with a real apiserver.
type world struct {
	t      *testing.T
	server *apiservertest.Server
	admin  kubernetes.Interface
	asked  int
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil && !apierrors.IsAlreadyExists(err) {
		w.t.Fatal(err)
	}
}

// node makes a Node whose record has an address, and whose kubelet tells one and was heard of so long ago.
func (w *world) node(name, role, recorded, address string, heard time.Duration) {
	w.t.Helper()
	ctx := w.t.Context()
	n, err := w.admin.CoreV1().Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	w.must(err)
	n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: address}, {Type: corev1.NodeHostName, Address: name}}
	_, err = w.admin.CoreV1().Nodes().UpdateStatus(ctx, n, metav1.UpdateOptions{})
	w.must(err)
	_, err = w.admin.CoreV1().Secrets(join.Namespace).Create(ctx, &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: join.NodePrefix + name}, Type: join.NodeType, Data: map[string][]byte{"role": []byte(role), "addresses": []byte(recorded)},
	}, metav1.CreateOptions{})
	w.must(err)
	at := metav1.NewMicroTime(now().Add(-heard))
	_, err = w.admin.CoordinationV1().Leases(corev1.NamespaceNodeLease).Create(ctx, &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: coordinationv1.LeaseSpec{RenewTime: &at},
	}, metav1.CreateOptions{})
	w.must(err)
}

// ready says of a Node whether it is Ready, and since when.
func (w *world) ready(name string, status corev1.ConditionStatus, since time.Duration) {
	w.t.Helper()
	n, err := w.admin.CoreV1().Nodes().Get(w.t.Context(), name, metav1.GetOptions{})
	w.must(err)
	n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: status, LastTransitionTime: metav1.NewTime(now().Add(-since))}}
	_, err = w.admin.CoreV1().Nodes().UpdateStatus(w.t.Context(), n, metav1.UpdateOptions{})
	w.must(err)
}

// now is an hour ahead of the Nodes' creation.
func now() time.Time { return time.Now().Add(time.Hour) }

// create makes the request as its user, through the API.
func (w *world) create(a asking) *certificatesv1.CertificateSigningRequest {
	w.t.Helper()
	r := a.request(w.t)
	w.asked++
	r.Name = fmt.Sprintf("request-%d", w.asked)
	made, err := w.server.Client(w.t, a.user).CertificatesV1().CertificateSigningRequests().Create(w.t.Context(), r, metav1.CreateOptions{})
	w.must(err)
	return made
}

// answer returns how the request was answered, if it was within seconds.
func (w *world) answer(made *certificatesv1.CertificateSigningRequest, patience time.Duration) string {
	w.t.Helper()
	for late := time.Now().Add(patience); time.Now().Before(late); time.Sleep(20 * time.Millisecond) {
		r, err := w.admin.CertificatesV1().CertificateSigningRequests().Get(w.t.Context(), made.Name, metav1.GetOptions{})
		w.must(err)
		for _, c := range r.Status.Conditions {
			return fmt.Sprintf("%s: %s", c.Type, c.Message)
		}
	}
	return "left alone"
}

func TestCluster(t *testing.T) {
	server := apiservertest.Start(t,
		apiservertest.User{Name: "cairn:join:shop-4", Groups: []string{"cairn:joining"}},
		apiservertest.User{Name: "system:node:shop-4", Groups: []string{"system:nodes"}},
		apiservertest.User{Name: "system:node:shop-1", Groups: []string{"system:nodes"}},
		apiservertest.User{Name: "cairn:join:shop-9", Groups: []string{"cairn:joining"}},
		apiservertest.User{Name: "system:node:shop-9", Groups: []string{"system:nodes"}})
	w := &world{t: t, server: server, admin: server.Client(t, apiservertest.Admin)}
	for _, name := range []string{join.Namespace, corev1.NamespaceNodeLease, metav1.NamespaceDefault} {
		_, err := w.admin.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
		w.must(err)
	}
	_, err := w.admin.RbacV1().ClusterRoleBindings().Create(t.Context(), &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "joining"},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "system:node-bootstrapper"},
		Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.GroupKind, Name: "cairn:joining"}},
	}, metav1.CreateOptions{})
	w.must(err)
	w.node("shop-1", "server", "192.0.2.11", "192.0.2.1", time.Hour)
	w.node("shop-3", "agent", "192.0.2.3", "192.0.2.33", -time.Hour) // it tells an address that nobody gave it
	w.node("shop-5", "agent", "192.0.2.5", "192.0.2.5", 10*time.Minute)
	w.node("shop-4", "agent", "", "192.0.2.251", -time.Hour) // it claims a server's address
	w.node("shop-6", "agent", "192.0.2.6", "192.0.2.6", 10*time.Minute)
	w.ready("shop-6", corev1.ConditionTrue, time.Hour)
	w.node("shop-7", "agent", "192.0.2.7", "192.0.2.7", 10*time.Minute)
	w.node("shop-8", "agent", "192.0.2.8", "192.0.2.8", 10*time.Minute) // the cluster misses it since it is back itself
	w.ready("shop-8", corev1.ConditionUnknown, -time.Minute)
	w.node("shop-10", "agent", "192.0.2.10", "192.0.2.10", 10*time.Minute)
	w.node("shop-11", "agent", "192.0.2.5", "192.0.2.5", 10*time.Minute) // as shop-5's
	w.ready("shop-11", corev1.ConditionUnknown, time.Hour)
	// The apiserver itself enters 192.0.2.250, some time after it is ready.
	_, err = w.admin.DiscoveryV1().EndpointSlices(metav1.NamespaceDefault).Create(t.Context(), &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: "others", Labels: map[string]string{discoveryv1.LabelServiceName: "kubernetes"}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{"192.0.2.251"}}, {Addresses: []string{"192.0.2.1"}}},
	}, metav1.CreateOptions{})
	w.must(err)

	early := w.create(client())
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	var passed atomic.Int64
	approver := New(Options{Client: w.admin, Cluster: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")}, Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
		Now: func() time.Time { return now().Add(time.Duration(passed.Load())) },
		Answers: func(_ context.Context, node string) (bool, error) {
			if node == "shop-10" {
				return false, errors.New("the apiserver stops")
			}
			return node == "shop-7", nil
		}})
	go func() { done <- approver.Run(ctx) }()
	if got := w.answer(early, 20*time.Second); !strings.HasPrefix(got, "Approved: asked for by node shop-4") {
		t.Errorf("a request made before the approver ran: %s; want it approved", got)
	}
	// Nobody was heard while there was no cluster, after a power cut.
	if got := w.answer(w.create(serving("192.0.2.5")), 20*time.Second); !strings.HasPrefix(got, "Denied: 192.0.2.5 is the address of node shop-") {
		t.Errorf("the address of a silent agent, before the approver listened for long: %s; want it denied", got)
	}
	passed.Store(int64(silence))

	as := func(a asking, change func(*asking)) asking { change(&a); return a }
	for _, tt := range []struct {
		name string
		ask  asking
		want string
	}{
		{"renewal", as(client(), func(a *asking) { a.user = "system:node:shop-4" }), "Approved: asked for by node shop-4 for itself"},
		{"serving", serving("192.0.2.4"), "Approved: "},
		{"serving, joining", as(serving("192.0.2.44"), func(a *asking) { a.user = "cairn:join:shop-4" }), "Approved: "},
		{"another's name", as(client(), func(a *asking) { a.csr.Subject = subject("shop-1") }), "Denied: the subject is"},
		{"an administrator", as(client(), func(a *asking) { a.csr.Subject.Organization = []string{"system:masters"} }), "Denied: the subject is"},
		{"a server's address", serving("192.0.2.1"), "Denied: 192.0.2.1 is the address of node shop-1: give one of the two another one"},
		{"a server's recorded address", serving("192.0.2.11"), "Denied: 192.0.2.11 is the address of node shop-1"},
		{"an address that another agent's kubelet tells", serving("192.0.2.33"), "Approved: "},
		{"removed", named(client(), "system:node:", "shop-9"), "Denied: shop-9 was removed from the cluster"},
		{"removed, to serve", named(serving("192.0.2.9"), "system:node:", "shop-9"), "Denied: shop-9 was removed from the cluster"},
		{"removed while it joined", named(client(), "cairn:join:", "shop-9"), "Denied: shop-9 was removed from the cluster"},
		{"a server", named(client(), "system:node:", "shop-1"), "Denied: shop-1 is a server of the cluster"},
		{"another agent's address", serving("192.0.2.3"), "Denied: 192.0.2.3 is the address of node shop-3"},
		{"the address of an agent that is gone", serving("192.0.2.5"), "Approved: "},
		{"the address of a silent agent that is Ready", serving("192.0.2.6"), "Denied: 192.0.2.6 is the address of node shop-6"},
		{"the address of a silent agent that answers", serving("192.0.2.7"), "Denied: 192.0.2.7 is the address of node shop-7: give"},
		{"the address of a silent agent that may answer", serving("192.0.2.10"), "Denied: 192.0.2.10 is the address of node shop-10: give one of the two another one, " +
			"or delete that Node if its machine is gone for good. That one is silent, but whether its kubelet answers is not known: the apiserver stops"},
		{"the address of an agent that is missed since a moment ago", serving("192.0.2.8"), "Denied: 192.0.2.8 is the address of node shop-8"},
		{"a server's address, claimed as the own", serving("192.0.2.251"), "Denied: 192.0.2.251 is the address of a server"},
		{"a pod's address", serving("10.42.0.7"), "Denied: 10.42.0.7 is in 10.42.0.0/16"},
		{"a server's own address", named(serving("192.0.2.1"), "system:node:", "shop-1"), "Denied: shop-1 is a server of the cluster"},
		{"an administrator's request", as(client(), func(a *asking) { a.user = apiservertest.Admin }), "left alone"},
		{"another signer", as(client(), func(a *asking) {
			a.user, a.signer = apiservertest.Admin, certificatesv1.KubeAPIServerClientSignerName
		}), "left alone"},
	} {
		patience := 20 * time.Second
		if tt.want == "left alone" {
			patience = time.Second
		}
		if got := w.answer(w.create(tt.ask), patience); !strings.HasPrefix(got, tt.want) {
			t.Errorf("%s: %s; want %s", tt.name, got, tt.want)
		}
	}
	w.recorded("shop-4", "192.0.2.5", 2)
	w.recorded("shop-5", "", 0) // shop-4 got its address
	w.recorded("shop-11", "", 0)
	w.recorded("shop-6", "192.0.2.6", 0)
	w.recorded("shop-7", "192.0.2.7", 0)
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Run, asked to stop = %v; want nil", err)
	}
}

// named has a node ask for itself.
func named(a asking, prefix, node string) asking {
	a.user, a.csr.Subject = prefix+node, subject(node)
	if a.csr.DNSNames != nil {
		a.csr.DNSNames = []string{node}
	}
	return a
}

// recorded wants the node's record to have the address, or none, and so many keys.
func (w *world) recorded(node, address string, keys int) {
	w.t.Helper()
	s, err := w.admin.CoreV1().Secrets(join.Namespace).Get(w.t.Context(), join.NodePrefix+node, metav1.GetOptions{})
	w.must(err)
	r, err := join.ReadNode(s)
	w.must(err)
	got := ""
	for _, a := range r.Addresses {
		got += a.String()
	}
	if got != address || len(r.ClientKeys) != keys {
		w.t.Errorf("record of %s: addresses %q, %d keys; want %q, %d", node, got, len(r.ClientKeys), address, keys)
	}
}
