package control

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/cairn-os/cairn/pkg/control/admin"
	"github.com/cairn-os/cairn/pkg/join"
	"github.com/cairn-os/cairn/pkg/pki"
	"github.com/cairn-os/cairn/pkg/tunnel"
)

// shortLease makes a lost lease a matter of seconds.
func shortLease() leaseTimes {
	return leaseTimes{lasts: 4 * time.Second, deadline: 2 * time.Second, retry: 400 * time.Millisecond, renew: 500 * time.Millisecond, alone: time.Second}
}

// localOptions are those of a server that listens on one loopback address, and says that it has another address:
// Kubernetes refuses to announce a loopback one.
func localOptions(dir, node, store string, listen, announce netip.Addr, port int) Options {
	o := DefaultOptions(node)
	o.Store, o.StoreSocket, o.Port = store, filepath.Join(dir, "none.sock"), port
	o.DataDir, o.RunDir, o.AuditDir = filepath.Join(dir, "data"), filepath.Join(dir, "run"), filepath.Join(dir, "audit")
	o.AdminKubeconfig, o.AdminSocket = filepath.Join(dir, "admin.kubeconfig"), filepath.Join(dir, "s")
	o.NodeIPs, o.listen, o.lease = []netip.Addr{announce}, listen, shortLease()
	o.SANs = []string{listen.String()}
	return o
}

// TestPlane runs a whole control plane on an etcd and looks at what Cairn adds to Kubernetes' own. Its certificates live
// for half a minute: everything goes through several renewals.
func TestPlane(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a control plane")
	}
	port, err := strconv.Atoi(freePort(t))
	if err != nil {
		t.Fatal(err)
	}
	o := localOptions(t.TempDir(), "shop-1", startEtcd(t, nil), netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("192.0.2.1"), port)
	o.Audit, o.Life = true, 30*time.Second
	o.Settings.PodCIDRs, o.Settings.ServiceCIDRs = parsePrefixes("10.42.0.0/16", "fd42::/48"), parsePrefixes("10.43.0.0/16", "fd43::/112")
	o.Arguments.APIServer = []string{"service-node-port-range=31000-31009"}
	var working atomic.Int32 // Cairn's own controllers
	o.Founding, o.Identity = &Founding{Token: "plain-secret-of-the-shop"}, strings.Repeat("a", 64)
	o.Controllers = []Controller{{"counter", func(ctx context.Context, _ kubernetes.Interface) error {
		working.Add(1)
		defer working.Add(-1)
		<-ctx.Done()
		return nil
	}}}
	ctx, cancel := context.WithCancel(t.Context())
	ready, done := make(chan struct{}), make(chan error, 1)
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	begin := time.Now()
	go func() { done <- Run(ctx, log, o, func() error { close(ready); return nil }) }()
	select {
	case <-ready:
		t.Logf("ready after %s", time.Since(begin))
	case err := <-done:
		t.Fatalf("Run = %v before it was ready", err)
	case <-time.After(2 * time.Minute):
		t.Fatal("not ready after 2 minutes")
	}
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v; want no error when it is asked to stop", err)
		}
	}()
	client := clientOf(t, o)
	eventually(t, 5*time.Second, "own controller", func() bool { return working.Load() == 1 })
	watching := watchLong(t, o)
	born := serving(t, o)
	t.Run("front", func(t *testing.T) { testFront(t, o) })
	t.Run("nodes", func(t *testing.T) { testNodes(t, client, o) })
	t.Run("arguments", func(t *testing.T) { testExtra(t, client) })
	t.Run("audit", func(t *testing.T) { testAudit(t, client, o) })
	t.Run("metrics", func(t *testing.T) { testExpiryMetric(t, client) })
	t.Run("operator", func(t *testing.T) { testOperator(t, o) })
	t.Run("leadership", func(t *testing.T) { testLeadership(t, client, &working) })
	if now := serving(t, o); !now.After(born) {
		t.Errorf("the apiserver serves with a certificate until %v, at first it was until %v; want it renewed", now, born)
	}
	select {
	case e, ok := <-watching:
		t.Errorf("a watch did not outlive the renewals: %v, %v", e, ok)
	default:
	}
}

// watchLong watches something that never happens, with a certificate that lives longer than the test.
func watchLong(t *testing.T, o Options) <-chan watch.Event {
	t.Helper()
	operator := admin.Open(o.AdminSocket)
	defer operator.Close()
	text, err := operator.Kubeconfig(t.Context(), admin.KubeconfigRequest{User: "root", Groups: []string{mastersGroup}, TTL: time.Hour, Server: o.url()})
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
	w, err := client.CoreV1().Pods("kube-public").Watch(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Stop)
	return w.ResultChan()
}

// serving tells until when the certificate is valid that the apiserver shows.
func serving(t *testing.T, o Options) time.Time {
	t.Helper()
	conn, err := tls.Dial("tcp", strings.TrimPrefix(o.url(), "https://"), &tls.Config{InsecureSkipVerify: true}) // its end is wanted
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	return conn.ConnectionState().PeerCertificates[0].NotAfter
}

func clientOf(t *testing.T, o Options) *kubernetes.Clientset {
	t.Helper()
	config, err := o.adminConfig()
	if err != nil {
		t.Fatal(err)
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// httpClient asks the apiserver with the certificate of that name, or with none.
func httpClient(t *testing.T, o Options, name string) *http.Client {
	t.Helper()
	config := rest.Config{Host: o.url(), TLSClientConfig: rest.TLSClientConfig{CAFile: o.authority(pki.ServerCA)}}
	if name != "" {
		config.CertFile, config.KeyFile = o.pair(name), o.pair(name)
	}
	client, err := rest.HTTPClientFor(&config)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// testFront asks Cairn's own paths without credentials and with a node's, and Kubernetes' without.
func testFront(t *testing.T, o Options) {
	ca, err := os.ReadFile(o.authority(pki.ServerCA))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		method, path, body string
		status             int
		want               string
	}{
		{"GET", join.CAPath, "", 200, string(ca)},
		{"POST", join.JoinPath, "me", 400, ""},
		{"POST", join.RenewPath, strings.Repeat("x", joinBody+1), 413, ""},
		{"GET", tunnel.Path, "", 426, ""}, // it wants an upgrade before it looks who asks
		{"GET", "/readyz", "", 200, "ok"},
		{"GET", "/version", "", 401, ""},
		{"GET", "/cairn/v1/else", "", 401, ""},
		{"GET", "/api/v1/secrets", "", 401, ""},
	} {
		r, err := http.NewRequestWithContext(t.Context(), tt.method, o.url()+tt.path, strings.NewReader(tt.body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := httpClient(t, o, "").Do(r)
		if err != nil {
			t.Errorf("%s %s: %v", tt.method, tt.path, err)
			continue
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != tt.status || tt.want != "" && string(body) != tt.want {
			t.Errorf("%s %s = %d %q; want %d %q", tt.method, tt.path, resp.StatusCode, body, tt.status, tt.want)
		}
	}
	for name, want := range map[string]string{pki.KubeletClient: "HTTP/1.1 101 ", pki.Admin: "HTTP/1.1 403 ", pki.APIServer: "HTTP/1.1 403 ", "": "HTTP/1.1 403 "} {
		if got := askTunnel(t, o, name); !strings.HasPrefix(got, want) {
			t.Errorf("a tunnel for the certificate %q: %q; want %q", name, got, want)
		}
	}
}

// askTunnel returns the first line of the answer.
func askTunnel(t *testing.T, o Options, name string) string {
	t.Helper()
	config := &tls.Config{NextProtos: []string{"http/1.1"}, InsecureSkipVerify: true} // the path is tested, not the server
	if name != "" {
		pair, err := tls.LoadX509KeyPair(o.pair(name), o.pair(name))
		if err != nil {
			t.Fatal(err)
		}
		config.Certificates = []tls.Certificate{pair}
	}
	conn, err := tls.Dial("tcp", strings.TrimPrefix(o.url(), "https://"), config)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: cairn-tunnel\r\n\r\n", tunnel.Path)
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		t.Errorf("answer: %v", err)
	}
	return line
}

// testExtra sees that an operator's argument counts, and that both families are there.
func testExtra(t *testing.T, client kubernetes.Interface) {
	service := func(name string, port int32) *corev1.Service {
		both := corev1.IPFamilyPolicyRequireDualStack
		return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeNodePort, IPFamilyPolicy: &both,
			Ports: []corev1.ServicePort{{Port: 80, NodePort: port, TargetPort: intstr.FromInt32(80)}},
		}}
	}
	services := client.CoreV1().Services("default")
	if _, err := services.Create(t.Context(), service("outside", 30080), metav1.CreateOptions{}); err == nil {
		t.Error("port 30080 was taken; want the operator's range to count")
	}
	s, err := services.Create(t.Context(), service("inside", 31001), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Spec.ClusterIPs) != 2 || !strings.HasPrefix(s.Spec.ClusterIPs[1], "fd43::") {
		t.Errorf("ClusterIPs = %v; want one of each family", s.Spec.ClusterIPs)
	}
}

func testAudit(t *testing.T, client kubernetes.Interface, o Options) {
	const secret = "9f2c1d-not-to-be-seen"
	_, err := client.CoreV1().Secrets("default").Create(t.Context(), &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: "audited"}, StringData: map[string]string{"password": secret},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.CoreV1().Secrets("default").Get(t.Context(), "audited", metav1.GetOptions{}); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(o.AuditDir, "audit.log")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var verbs []string
	for line := range strings.Lines(string(data)) {
		var e struct {
			Verb      string
			Level     string
			ObjectRef struct{ Resource, Name string }
			User      struct{ Username string }
		}
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatal(err)
		}
		if e.ObjectRef.Resource == "leases" || e.Level != "Metadata" {
			t.Errorf("recorded: %s", line)
		}
		if e.ObjectRef.Name == "audited" {
			verbs = append(verbs, e.Verb+" by "+e.User.Username)
		}
	}
	if len(verbs) != 1 || verbs[0] != "create by system:admin" || strings.Contains(string(data), secret) {
		t.Errorf("recorded of the Secret: %v; want its creation alone, and no value", verbs)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("audit log: %v, %v; want mode 0600", info.Mode(), err)
	}
}

func testExpiryMetric(t *testing.T, client kubernetes.Interface) {
	data, err := client.Discovery().RESTClient().Get().AbsPath("/metrics").DoRaw(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{pki.APIServer, pki.KubeletClient, pki.ServerCA} {
		if !strings.Contains(string(data), fmt.Sprintf("cairn_certificate_expiry_seconds{name=%q} ", name)) {
			t.Errorf("no metric of %s", name)
		}
	}
}

func testOperator(t *testing.T, o Options) {
	if info, err := os.Stat(o.AdminSocket); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v; want mode 0600", info.Mode(), err)
	}
	client := admin.Open(o.AdminSocket)
	defer client.Close()
	state, err := client.Cluster(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if state.Controllers != "shop-1" || len(state.Certificates) < 8 || len(state.Servers) != 1 || state.Servers[0].Address != fmt.Sprintf("192.0.2.1:%d", o.Port) {
		t.Errorf("cluster = %+v", state)
	}
	if state.Servers[0].Reachable || state.Servers[0].Problem == "" {
		t.Errorf("server = %+v; want it to be out of reach, with a reason: nobody has its address", state.Servers[0])
	}
	if len(state.Problems) != 1 || !strings.HasPrefix(state.Problems[0], "store: ") {
		t.Errorf("problems = %v; want the store's: there is none", state.Problems)
	}
	testTokens(t, client)
	text, err := client.Kubeconfig(t.Context(), admin.KubeconfigRequest{User: "ann", Groups: []string{"auditors"}, TTL: time.Hour, Server: o.url()})
	if err != nil {
		t.Fatal(err)
	}
	config, err := clientcmd.RESTConfigFromKubeConfig(text)
	if err != nil {
		t.Fatal(err)
	}
	ann, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	who, err := ann.AuthenticationV1().SelfSubjectReviews().Create(t.Context(), &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if got := who.Status.UserInfo; got.Username != "ann" || !strings.Contains(strings.Join(got.Groups, " "), "auditors") {
		t.Errorf("the configuration is of %+v; want ann of auditors", got)
	}
	if _, err := ann.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{}); err == nil {
		t.Error("ann may list nodes; want nothing that nobody granted")
	}
}

func testTokens(t *testing.T, client *admin.Client) {
	all, err := client.Tokens(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, token := range all {
		ids = append(ids, token.ID+":"+token.Role+token.Text)
	}
	if d := cmp.Diff([]string{"agent:agent", "config:server", "server:server"}, ids); d != "" {
		t.Errorf("tokens of a new cluster: %s", d)
	}
	made, err := client.CreateToken(t.Context(), admin.TokenRequest{Role: "agent", TTL: time.Hour, Once: true, Description: "till 4"})
	if err != nil {
		t.Fatal(err)
	}
	told, err := client.Token(t.Context(), made.ID)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(made, told); d != "" || !strings.HasPrefix(made.Text, "K10") || made.Expires.IsZero() {
		t.Errorf("made %+v, told otherwise: %s", made, d)
	}
	if err := client.RevokeToken(t.Context(), made.ID); err != nil {
		t.Error(err)
	}
	var problem *admin.Error
	if _, err := client.Token(t.Context(), made.ID); !errors.As(err, &problem) || problem.Code != http.StatusNotFound {
		t.Errorf("a revoked token: %v; want that there is none", err)
	}
	for _, bad := range []admin.TokenRequest{{Role: "witness"}, {Role: "agent", TTL: -time.Hour}} {
		if _, err := client.CreateToken(t.Context(), bad); !errors.As(err, &problem) || problem.Code != http.StatusBadRequest {
			t.Errorf("create %+v: %v; want it refused", bad, err)
		}
	}
}

// testLeadership loses and regains the lease three times, and sees each time that the controllers of the same process
// work again and have left nothing behind.
func testLeadership(t *testing.T, client kubernetes.Interface, working *atomic.Int32) {
	makeNode(t, client)
	deploy(t, client, "before")
	first := goroutines(t)
	for round := range 3 {
		lost := time.Now()
		stealLease(t, client)
		eventually(t, 20*time.Second, "end of the controllers", func() bool { return working.Load() == 0 })
		ended := time.Since(lost)
		eventually(t, 30*time.Second, "return of the controllers", func() bool { return working.Load() == 1 })
		t.Logf("round %d: controllers ended after %s, began again after %s", round, ended, time.Since(lost))
		deploy(t, client, "after-"+strconv.Itoa(round))
	}
	last := goroutines(t)
	t.Logf("goroutines: %d before, %d after", first, last)
	if last > first+first/10 {
		var profile strings.Builder
		if err := pprof.Lookup("goroutine").WriteTo(&profile, 1); err != nil {
			t.Error(err)
		}
		t.Errorf("%d goroutines after three terms, %d after the first; want no more\n%s", last, first, profile.String())
	}
}

// goroutines is their number once it has come to rest.
func goroutines(t *testing.T) int {
	least := runtime.NumGoroutine()
	for range 20 {
		select {
		case <-t.Context().Done():
		case <-time.After(500 * time.Millisecond):
		}
		least = min(least, runtime.NumGoroutine())
	}
	return least
}

func stealLease(t *testing.T, client kubernetes.Interface) {
	t.Helper()
	leases := client.CoordinationV1().Leases(leaseNamespace)
	eventually(t, 10*time.Second, "taking the lease away", func() bool {
		lease, err := leases.Get(t.Context(), leaseName, metav1.GetOptions{})
		if err != nil {
			return false
		}
		other, now := "other_x", metav1.NowMicro()
		lease.Spec.HolderIdentity, lease.Spec.RenewTime = &other, &now
		_, err = leases.Update(t.Context(), lease, metav1.UpdateOptions{})
		return err == nil
	})
}

func eventually(t *testing.T, limit time.Duration, what string, is func() bool) {
	t.Helper()
	err := wait.PollUntilContextTimeout(t.Context(), 100*time.Millisecond, limit, true, func(context.Context) (bool, error) { return is(), nil })
	if err != nil {
		t.Fatalf("%s: not within %s", what, limit)
	}
}

// makeNode registers a node that nobody runs.
func makeNode(t *testing.T, client kubernetes.Interface) {
	t.Helper()
	room := corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("8"), corev1.ResourceMemory: resource.MustParse("8Gi"), corev1.ResourcePods: resource.MustParse("100")}
	node := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: "till-1"},
		Status:     corev1.NodeStatus{Capacity: room, Allocatable: room, Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}},
	}
	if _, err := client.CoreV1().Nodes().Create(t.Context(), node, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// deploy makes a Deployment and waits until its pod has a node.
func deploy(t *testing.T, client kubernetes.Interface, name string) {
	t.Helper()
	labels := map[string]string{"app": name}
	_, err := client.AppsV1().Deployments("default").Create(t.Context(), &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: appsv1.DeploymentSpec{
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec: corev1.PodSpec{
					Containers:  []corev1.Container{{Name: "c", Image: "none"}},
					Tolerations: []corev1.Toleration{{Operator: corev1.TolerationOpExists}},
				},
			},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	eventually(t, time.Minute, "pod of "+name+" on a node", func() bool {
		pods, err := client.CoreV1().Pods("default").List(t.Context(), metav1.ListOptions{LabelSelector: "app=" + name})
		return err == nil && len(pods.Items) == 1 && pods.Items[0].Spec.NodeName == "till-1"
	})
	t.Logf("%s: scheduled after %s", name, time.Since(begin))
}
