package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/cairn-os/cairn/pkg/control/admin"
	"github.com/cairn-os/cairn/pkg/join"
	"github.com/cairn-os/cairn/pkg/pki"
)

// TestBeginAnew has the controllers begin again under the same lease, as long as it is held.
func TestBeginAnew(t *testing.T) {
	var terms atomic.Int32
	l, client := testLeadershipOf(t, "", func(ctx context.Context, started func()) error {
		if terms.Add(1) < 3 {
			return fmt.Errorf("authorities: %w", errBeginAnew)
		}
		return willing(ctx, started)
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- l.run(ctx) }()
	if err := l.awaitSettled(ctx); err != nil || terms.Load() != 3 {
		t.Errorf("settled with %v in term %d; want the third", err, terms.Load())
	}
	lease, err := client.CoordinationV1().Leases(leaseNamespace).Get(t.Context(), leaseName, metav1.GetOptions{})
	if err != nil || *lease.Spec.HolderIdentity != l.identity || *lease.Spec.LeaseTransitions != 0 {
		t.Errorf("lease = %+v, %v; want it held all the time", lease, err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestCertificateFiles writes the configurations of clients after a change, and again until that succeeded.
func TestCertificateFiles(t *testing.T) {
	o := authorities(t)
	o.AdminKubeconfig = filepath.Join(t.TempDir(), "kubeconfig")
	c := &certificateFiles{options: o, log: slog.New(slog.DiscardHandler)}
	change := func(changed bool, err error) error {
		return c.change(func(pki.Options) (bool, error) { return changed, err })
	}
	exists := func() bool { _, err := os.Stat(o.AdminKubeconfig); return err == nil }
	if err := c.ensure(); err != nil || !exists() {
		t.Fatalf("ensure = %v, kubeconfig written: %v", err, exists())
	}
	if err := os.Remove(o.AdminKubeconfig); err != nil {
		t.Fatal(err)
	}
	wrong := errors.New("wrong")
	if err := change(false, wrong); !errors.Is(err, wrong) || exists() {
		t.Errorf("a change of nothing: %v, kubeconfig written: %v", err, exists())
	}
	certificate, err := os.ReadFile(o.pair(pki.Admin))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(o.pair(pki.Admin), []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := change(true, nil); err == nil {
		t.Fatal("a kubeconfig of a damaged certificate was written")
	}
	if err := os.WriteFile(o.pair(pki.Admin), certificate, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := change(false, nil); err != nil || !exists() {
		t.Errorf("after what failed: %v, kubeconfig written: %v", err, exists())
	}
}

// TestAllCertificates lists authorities first, and beside each the one that is to replace it.
func TestAllCertificates(t *testing.T) {
	o := authorities(t)
	all, err := pki.Successors(o.pki())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := pki.Trust(o.pki(), all); err != nil {
		t.Fatal(err)
	}
	v := &clusterView{node: o.Node, tls: o.tls(), now: time.Now}
	list, err := v.allCertificates()
	if err != nil {
		t.Fatal(err)
	}
	var signing, idle, leaves int
	for i, c := range list {
		switch {
		case c.Idle:
			idle++
			if before := list[i-1]; before.Name != c.Name || before.Idle || before.Issuer == c.Issuer || !strings.HasPrefix(c.Issuer, "cairn-"+c.Name+"@") {
				t.Errorf("%+v follows on %+v", c, before)
			}
		case c.Authority:
			signing++
		default:
			if leaves++; !strings.HasPrefix(c.Issuer, "cairn-") || c.Left <= 0 {
				t.Errorf("leaf %+v", c)
			}
		}
	}
	if signing != 5 || idle != 5 || leaves != 9 || !list[0].Authority || list[len(list)-1].Authority {
		t.Errorf("%d authorities that sign, %d that do not, %d leaves: %+v", signing, idle, leaves, list)
	}
}

// TestRotation replaces the authorities of a server that is alone, and sees that nothing restarts, no write fails, no
// watch ends, and everything that Kubernetes publishes is new.
func TestRotation(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a control plane")
	}
	port, err := strconv.Atoi(freePort(t))
	if err != nil {
		t.Fatal(err)
	}
	s := &serverProcess{
		Dir: t.TempDir(), Node: "shop-1", Store: startEtcd(t, nil), Listen: "127.0.0.1", Announce: "192.0.2.1", Port: port,
		Identity: strings.Repeat("a", 64), Life: 30 * time.Second,
	}
	s.start(t)
	defer func() {
		if t.Failed() {
			s.showLog(t)
		}
	}()
	o := s.options()
	o.rereadCertificates()
	client := clientOf(t, o)
	old, watched := operatorClient(t, o), watchLong(t, o)
	control := admin.Open(o.AdminSocket)
	defer control.Close()
	token, err := control.Token(t.Context(), "agent")
	if err != nil {
		t.Fatal(err)
	}
	before := rootOf(t, client, "default")
	stopWriting := writeAlways(t, client)

	begin := time.Now()
	r, err := control.Rotate(t.Context(), admin.RotationRequest{Check: true})
	if err != nil || r.ID != "" {
		t.Fatalf("check = %+v, %v", r, err)
	}
	if r, err = control.Rotate(t.Context(), admin.RotationRequest{}); err != nil || r.Stage != "trust" {
		t.Fatalf("rotate = %+v, %v", r, err)
	}
	var problem *admin.Error
	if _, err := control.Rotate(t.Context(), admin.RotationRequest{}); !errors.As(err, &problem) || problem.Code != http.StatusConflict {
		t.Errorf("rotate again = %v; want a conflict", err)
	}
	if state, err := control.Cluster(t.Context()); err != nil || state.Rotation == nil || state.Rotation.ID != r.ID {
		t.Errorf("cluster tells %+v, %v", state.Rotation, err)
	}
	awaitRotation(t, control, client, r.ID)
	t.Logf("replaced within %s", time.Since(begin))

	if now := rootOf(t, client, "default"); now == before || strings.Count(now, "BEGIN") != 1 {
		t.Errorf("kube-root-ca.crt holds %d certificates, the one of before: %v", strings.Count(now, "BEGIN"), now == before)
	}
	checkPublished(t, client, o)
	if _, err := old.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{}); !apierrors.IsUnauthorized(err) {
		t.Errorf("the operator of before: %v; want that it is unauthorized", err)
	}
	if _, err := operatorClient(t, o).CoreV1().Nodes().List(t.Context(), metav1.ListOptions{}); err != nil {
		t.Errorf("a new operator: %v", err)
	}
	if now, err := control.Token(t.Context(), "agent"); err != nil || !strings.HasPrefix(now.Text, "K10"+r.ID+"::") || now.Text == token.Text {
		t.Errorf("the token is %q, %v; want the new authority's", now.Text, err)
	}
	if n := stopWriting(); n > 0 {
		t.Errorf("%d writes failed", n)
	}
	select {
	case e, ok := <-watched:
		t.Errorf("a watch ended: %v, %v", e, ok)
	default:
	}
	s.end(t, unix.SIGTERM) // it is the same process still
}

// operatorClient is a client with a new kubeconfig.
func operatorClient(t *testing.T, o Options) kubernetes.Interface {
	t.Helper()
	operator := admin.Open(o.AdminSocket)
	defer operator.Close()
	text, err := operator.Kubeconfig(t.Context(), admin.KubeconfigRequest{User: "ana", Groups: []string{mastersGroup}, TTL: time.Hour, Server: o.url()})
	if err != nil {
		t.Fatal(err)
	}
	config, err := clientcmd.RESTConfigFromKubeConfig(text)
	if err != nil {
		t.Fatal(err)
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// rootOf is what pods of a namespace believe.
func rootOf(t *testing.T, client kubernetes.Interface, namespace string) string {
	t.Helper()
	var text string
	eventually(t, 20*time.Second, "root of "+namespace, func() bool {
		m, err := client.CoreV1().ConfigMaps(namespace).Get(t.Context(), "kube-root-ca.crt", metav1.GetOptions{})
		if err != nil {
			return false
		}
		text = m.Data["ca.crt"]
		return true
	})
	return text
}

// writeAlways writes until what it returns is called, which tells how many writes failed.
func writeAlways(t *testing.T, client kubernetes.Interface) func() int {
	t.Helper()
	failed := 0
	maps := client.CoreV1().ConfigMaps("default")
	written := func(n int) *corev1.ConfigMap {
		return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "written"}, Data: map[string]string{"n": strconv.Itoa(n)}}
	}
	if _, err := maps.Create(t.Context(), written(0), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for n := 1; ctx.Err() == nil; n++ {
			_, err := maps.Update(ctx, written(n), metav1.UpdateOptions{})
			if errors.Is(err, net.ErrClosed) { // by this client itself, in the middle of a request, as it read a new certificate
				_, err = maps.Update(ctx, written(n), metav1.UpdateOptions{})
			}
			if err != nil && ctx.Err() == nil {
				t.Logf("write %d: %v", n, err)
				failed++
			}
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
		}
	}()
	stop := func() int { cancel(); <-done; return failed }
	t.Cleanup(func() { stop() })
	return stop
}

// awaitRotation waits for the end, and sees each stage.
func awaitRotation(t *testing.T, control *admin.Client, client kubernetes.Interface, id string) {
	t.Helper()
	begin, stages := time.Now(), ""
	eventually(t, 4*time.Minute, "end of the rotation", func() bool {
		r, err := control.Rotation(t.Context())
		if err != nil {
			t.Error(err)
		}
		if r.Stage != "" && !strings.HasSuffix(stages, r.Stage+" ") {
			t.Logf("after %s: %s", time.Since(begin).Round(time.Second), r.Stage)
			stages += r.Stage + " "
			checkStageMetric(t, client)
		}
		return r.ID == "" && r.Authority == id
	})
	if stages != "trust sign retire " {
		t.Errorf("stages %s; want all three", stages)
	}
}

func checkStageMetric(t *testing.T, client kubernetes.Interface) {
	t.Helper()
	data, err := client.(*kubernetes.Clientset).Discovery().RESTClient().Get().AbsPath("/metrics").DoRaw(t.Context())
	if err != nil || !strings.Contains(string(data), "\ncairn_rotation_stage ") {
		t.Errorf("no metric of the stage: %v", err)
	}
}

// checkPublished sees that no old authority is told to anybody, and that the controllers that tell new namespaces know
// the new one.
func checkPublished(t *testing.T, client kubernetes.Interface, o Options) {
	t.Helper()
	m, err := client.CoreV1().ConfigMaps(metav1.NamespaceSystem).Get(t.Context(), "extension-apiserver-authentication", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for key, name := range map[string]string{"client-ca-file": pki.ClientCA, "requestheader-client-ca-file": pki.RequestHeaderCA} {
		if want, err := os.ReadFile(o.authority(name)); err != nil || m.Data[key] != string(want) {
			t.Errorf("extensions are told %d certificates of %s, %v; want the new one", strings.Count(m.Data[key], "BEGIN"), name, err)
		}
	}
	if _, err := client.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "after"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(o.authority(pki.ServerCA))
	if got := rootOf(t, client, "after"); err != nil || got != string(want) {
		t.Errorf("a new namespace is told %q, %v", got, err)
	}
	if _, err := client.CoreV1().Secrets(join.Namespace).Get(t.Context(), join.RotationName, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("the Secret with the keys: %v; want that it is gone", err)
	}
}
