package control

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"

	"github.com/cairn-os/cairn/pkg/join"
	"github.com/cairn-os/cairn/pkg/membership"
	"github.com/cairn-os/cairn/pkg/pki"
)

// poll is how often a condition of the own apiserver is looked at while it starts.
const poll = 100 * time.Millisecond

// joiningGroup is who a machine is while it asks for its first certificates; pkg/join gives it.
const joiningGroup = "cairn:joining"

// awaitServer waits until the apiserver says that it is ready.
func awaitServer(ctx context.Context, client kubernetes.Interface) error {
	return wait.PollUntilContextCancel(ctx, poll, true, func(ctx context.Context) (bool, error) {
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		_, err := client.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(ctx)
		return err == nil, nil
	})
}

// awaitDefaults waits for what the controllers create and no pod starts without.
func awaitDefaults(ctx context.Context, client kubernetes.Interface) error {
	return wait.PollUntilContextCancel(ctx, poll, true, func(ctx context.Context) (bool, error) {
		_, err := client.CoreV1().ServiceAccounts(metav1.NamespaceDefault).Get(ctx, "default", metav1.GetOptions{})
		return err == nil, nil
	})
}

// bindings are the rights that Cairn's parts need beside those that Kubernetes gives by itself.
func bindings() []rbacv1.ClusterRoleBinding {
	bind := func(name, role, kind, subject string) rbacv1.ClusterRoleBinding {
		return rbacv1.ClusterRoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: name},
			RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role},
			Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: kind, Name: subject}},
		}
	}
	return []rbacv1.ClusterRoleBinding{
		// The apiserver asks kubelets, for logs and exec, and may nothing else.
		bind("cairn:kubelet-api-admin", "system:kubelet-api-admin", rbacv1.UserKind, pki.APIServerUser),
		// A node's kube-proxy, pod network and balancer use the kubelet's certificate.
		bind("cairn:node-proxier", "system:node-proxier", rbacv1.GroupKind, pki.NodeGroup),
		// A machine that joins asks for the kubelet's certificates.
		bind("cairn:joining", "system:node-bootstrapper", rbacv1.GroupKind, joiningGroup),
	}
}

// bootstrap creates the objects that Cairn's own parts need. Every server does it at every start; the one that began the
// cluster makes its tokens and settings as well.
func (o Options) bootstrap(ctx context.Context, client kubernetes.Interface, log *slog.Logger) error {
	// The apiserver makes it too, a moment after it is ready. The lease is there: a failed try would cost the start 2 s.
	system := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: leaseNamespace}}
	if _, err := client.CoreV1().Namespaces().Create(ctx, system, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("create namespace %s: %w", leaseNamespace, err)
	}
	for _, b := range bindings() {
		_, err := client.RbacV1().ClusterRoleBindings().Create(ctx, &b, metav1.CreateOptions{})
		if err != nil && !apierrors.IsAlreadyExists(err) {
			return fmt.Errorf("create cluster role binding %s: %w", b.Name, err)
		}
	}
	if err := ensureNodePolicy(ctx, client); err != nil {
		return err
	}
	if o.Founding != nil {
		err := join.Found(ctx, client, join.FoundOptions{
			Token: o.Founding.Token, Identity: o.Identity, Settings: o.Settings, Node: o.Node, CAFile: o.authority(pki.ServerCA), Log: log,
		})
		if err != nil {
			return fmt.Errorf("found the cluster: %w", err)
		}
	}
	return o.recordSelf(ctx, client)
}

// recordSelf writes whose the own node's name is, and the addresses, which may be others since the last start. A server
// that joined has a record from then, but under another name if its hostname changed.
func (o Options) recordSelf(ctx context.Context, client kubernetes.Interface) error {
	if o.Identity == "" {
		return nil
	}
	if err := join.Record(ctx, client, o.Node, o.Identity, membership.Server); err != nil {
		return fmt.Errorf("record the own node: %w", err)
	}
	if err := join.SetAddresses(ctx, client, o.Node, o.addresses); err != nil {
		return fmt.Errorf("record the own addresses: %w", err)
	}
	return nil
}
