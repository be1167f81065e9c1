package runner

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/cairn-os/cairn/pkg/build/lane"
	"github.com/cairn-os/cairn/pkg/control/admin"
	"github.com/cairn-os/cairn/pkg/pki"
)

const vaultURL = "https://10.88.0.91:6443"

// rotationGap is the longest time without an accepted write while authorities are replaced: a retry, on processors that
// five machines share.
const rotationGap = 5 * time.Second

// TestNativeRotation replaces the authorities of a cluster in use, twice: once while an agent is off all the time, and
// once with a power cut of a server. Certificates live for minutes, so that nobody waits long.
func TestNativeRotation(t *testing.T) {
	lane.Require(t, "native")
	requireLong(t)
	f := newFleet(t, brief(first("vault-1", "10.88.0.91")), brief(server("vault-2", "10.88.0.92", vaultURL)), brief(server("vault-3", "10.88.0.93", vaultURL)),
		brief(agent("guard-1", "10.88.0.96", vaultURL)), brief(agent("guard-2", "10.88.0.97", vaultURL)))
	f.startAll()
	ctx := within(t, 5*time.Minute)
	c := f.access(ctx, t, "vault-1")
	waitReady(ctx, t, c, "vault-1", "vault-2", "vault-3", "guard-1", "guard-2")
	f.waitVoters(ctx, t, "vault-1", "vault-1", "vault-2", "vault-3")
	r := &rotated{f: f, keeper: keeperToken(ctx, t, c), doors: map[string]*door{}}
	for _, name := range []string{"vault-1", "vault-2", "vault-3"} {
		r.doors[name] = f.keeperDoor(ctx, t, name, r.keeper)
	}
	if !t.Run("in use", func(t *testing.T) { testReplacedInUse(t, r) }) {
		return
	}
	t.Run("an agent that was off", func(t *testing.T) { testOffMeanwhile(t, r) })
	t.Run("machines join", func(t *testing.T) { testJoinAfterRotation(t, r) })
	t.Run("power cut of a server", func(t *testing.T) { testRotationPowerCut(t, r) })
}

// brief gives a machine's certificates the shortest life.
func brief(s fleetSpec) fleetSpec {
	s.config = strings.TrimSuffix(s.config, "}\n") + fmt.Sprintf(", cluster: {certificate_life: %s}}\n", shortLife)
	return s
}

// rotated is a cluster whose authorities are replaced.
type rotated struct {
	f      *fleet
	keeper string           // token of a service account, as a pod has one
	doors  map[string]*door // by that token and the authority of before a replacement
	agent  string           // token of before
}

// keeperToken makes a service account that may do everything, and a token of it: no replacement of authorities ends it.
func keeperToken(ctx context.Context, t *testing.T, c *Cluster) string {
	t.Helper()
	accounts := c.CoreV1().ServiceAccounts(namespace)
	if _, err := accounts.Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "keeper"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	_, err := c.RbacV1().ClusterRoleBindings().Create(ctx, &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "keeper"}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "cluster-admin"},
		Subjects: []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Name: "keeper", Namespace: namespace}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	seconds := int64(2 * 60 * 60)
	made, err := accounts.CreateToken(ctx, "keeper", &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &seconds}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return made.Status.Token
}

// keeperDoor is a client as a pod is one: with a service account's token and the authority that was there when it began.
func (f *fleet) keeperDoor(ctx context.Context, t *testing.T, name, token string) *door {
	t.Helper()
	d := &door{name: name, dir: f.t.TempDir()} // it outlives the part of the test that makes it
	err := poll(ctx, name+" serves", func(ctx context.Context) (bool, error) {
		c, err := Access(ctx, f.machine(name), builtImage(t), d.dir)
		if err == nil {
			err = readyz(ctx, c)
		}
		return err == nil, err
	})
	if err != nil {
		t.Fatal(err)
	}
	config := clientcmdapi.NewConfig()
	config.Clusters["c"] = &clientcmdapi.Cluster{Server: f.machine(name).API(), CertificateAuthorityData: []byte(f.authority(t, name, pki.ServerCA))}
	config.AuthInfos["u"] = &clientcmdapi.AuthInfo{Token: token}
	config.Contexts["x"] = &clientcmdapi.Context{Cluster: "c", AuthInfo: "u"}
	config.CurrentContext = "x"
	path := filepath.Join(d.dir, "kubeconfig")
	if err := clientcmd.WriteToFile(*config, path); err != nil {
		t.Fatal(err)
	}
	cfg, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		t.Fatal(err)
	}
	cfg.QPS, cfg.Burst = 100, 100
	if d.Cluster, err = connect(cfg); err != nil {
		t.Fatal(err)
	}
	return d
}

// authority is the file of an authority's certificates on a server.
func (f *fleet) authority(t *testing.T, machine, name string) string {
	t.Helper()
	data, err := os.ReadFile(pki.CertFile(filepath.Join(f.dir, machine, "var/lib/cairn/server/tls"), name))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// clusterState is the cluster as a server tells it. That something needs a look is no error.
func (f *fleet) clusterState(ctx context.Context, name string) (admin.Cluster, error) {
	var s admin.Cluster
	out, err := f.machine(name).Run(ctx, "cairnctl cluster status --output json 2>/dev/null; true")
	if err != nil {
		return s, err
	}
	return s, json.NewDecoder(strings.NewReader(out)).Decode(&s)
}

// testReplacedInUse writes through each server and watches, uses pods, and has an agent without power, while the
// authorities are replaced.
func testReplacedInUse(t *testing.T, r *rotated) {
	ctx := within(t, 12*time.Minute)
	f := r.f
	r.agent = strings.TrimSpace(f.run(ctx, t, "vault-1", "cairnctl token show agent"))
	operator := f.door(ctx, t, "vault-1")
	for _, node := range []string{"guard-1", "vault-2"} {
		runCounter(ctx, t, r.doors["vault-1"], node)
	}
	f.kill("guard-2")
	before, roots := f.instances(ctx, t), r.roots(t)
	watched, finish := followWrites(ctx, t, r.doors)
	for _, w := range watched {
		w.begin()
	}
	begin := time.Now()
	told := make(chan error, 1)
	var out string
	go func() {
		var err error
		out, err = f.machine("vault-2").Run(ctx, "cairnctl certificate rotate --yes 2>&1")
		told <- err
	}()
	stages := r.followStages(ctx, t, "vault-1", func(stage string) {
		t.Logf("%.0f s after the begin: %s", time.Since(begin).Seconds(), stage)
		r.reachAll(ctx, t)
	})
	if want := []string{"trust", "sign", "retire"}; !slices.Equal(stages, want) {
		t.Errorf("stages %v; want %v", stages, want)
	}
	if err := <-told; err != nil || !strings.Contains(out, "All authorities are replaced") {
		t.Fatalf("cairnctl certificate rotate: %v\n%s", err, out)
	}
	t.Logf("replaced after %.0f s, stages %v; cairnctl showed:\n%s", time.Since(begin).Seconds(), stages, out)
	r.reachAll(ctx, t)
	for name, w := range watched {
		longest, _ := w.end()
		t.Logf("%s: longest time without an accepted write %.2f s", name, longest.Seconds())
		if longest > rotationGap {
			t.Errorf("%s accepted no write for %v; want at most %v", name, longest, rotationGap)
		}
	}
	finish(begin)
	checkInstances(t, before, f.instances(ctx, t))
	r.checkReplaced(ctx, t, roots, "vault-1", "vault-2", "vault-3", "guard-1")
	r.checkRefused(ctx, t, operator)
}

// followStages calls each for every stage that a server shows, and returns them when none is under way any more. It sees
// that the text for people tells the same.
func (r *rotated) followStages(ctx context.Context, t *testing.T, at string, each func(stage string)) []string {
	t.Helper()
	var stages []string
	waiting := ""
	err := poll(ctx, "the authorities are replaced", func(ctx context.Context) (bool, error) {
		s, err := r.f.clusterState(ctx, at)
		switch {
		case err != nil:
			return false, err
		case slices.ContainsFunc(s.Problems, func(p string) bool { return strings.HasPrefix(p, "replacement of the authorities") }):
			return false, fmt.Errorf("it is not known: %q", s.Problems) // the store has no leader for a moment
		case s.Rotation == nil:
			return len(stages) > 0, errors.New("no replacement is under way")
		case !slices.Contains(stages, s.Rotation.Stage):
			stages = append(stages, s.Rotation.Stage)
			out := r.f.run(ctx, t, at, "cairnctl cluster status 2>&1; true")
			if !strings.Contains(out, "are replaced: stage") {
				t.Errorf("cairnctl cluster status does not tell of the replacement:\n%s", out)
			}
			each(s.Rotation.Stage)
		}
		if now := strings.Join(s.Rotation.Waiting, "; "); now != waiting {
			waiting = now
			t.Logf("stage %s waits: %s", s.Rotation.Stage, waiting)
		}
		return false, fmt.Errorf("stage %s, waiting for %v", s.Rotation.Stage, s.Rotation.Waiting)
	})
	if err != nil {
		t.Fatal(err)
	}
	return stages
}

// reachAll runs programs in pods on an agent and on a server and reads their logs, through each server.
func (r *rotated) reachAll(ctx context.Context, t *testing.T) {
	t.Helper()
	for _, d := range r.doors {
		for _, pod := range []string{"counter-guard-1", "counter-vault-2"} {
			limited, stop := context.WithTimeout(ctx, 30*time.Second)
			err := poll(limited, pod+" is reached through "+d.name, func(ctx context.Context) (bool, error) {
				attempt, done := context.WithTimeout(ctx, 10*time.Second)
				defer done()
				err := d.reach(attempt, pod)
				if err != nil {
					t.Logf("a retry: %v", err)
				}
				return err == nil, err
			})
			stop()
			if err != nil {
				t.Error(err)
			}
		}
	}
}

// roots are the certificates of the authorities that sign, by their names.
func (r *rotated) roots(t *testing.T) map[string]*x509.Certificate {
	t.Helper()
	all := map[string]*x509.Certificate{}
	for _, name := range []string{pki.ServerCA, pki.ClientCA, pki.KubeletCA, pki.StoreCA, pki.RequestHeaderCA} {
		block, _ := pem.Decode([]byte(r.f.authority(t, "vault-1", name)))
		if block == nil {
			t.Fatalf("there is no certificate of %s", name)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		all[name] = c
	}
	return all
}

// checkReplaced expects that nothing on these machines is of the authorities of before, and what is published is new.
func (r *rotated) checkReplaced(ctx context.Context, t *testing.T, before map[string]*x509.Certificate, machines ...string) {
	t.Helper()
	now := r.roots(t)
	for name, old := range before {
		if now[name].Equal(old) {
			t.Errorf("%s is the one of before", name)
		}
	}
	for _, machine := range machines {
		for _, path := range leafFiles(r.f, machine) {
			c, err := readLeaf(path)
			if err != nil {
				t.Error(err)
				continue
			}
			for name, old := range before {
				if bytes.Equal(c.RawIssuer, old.RawSubject) {
					t.Errorf("%s of %s is of the %s of before", filepath.Base(path), machine, name)
				}
			}
		}
		dir := filepath.Dir(leafFiles(r.f, machine)[0])
		err := poll(ctx, machine+" trusts the new ones alone", func(context.Context) (bool, error) { // agents ask now and then
			bundles, err := filepath.Glob(filepath.Join(dir, "*-ca.crt"))
			if err != nil || len(bundles) == 0 {
				return false, fmt.Errorf("bundles %v, %w", bundles, err)
			}
			for _, path := range bundles {
				data, err := os.ReadFile(path)
				if n := strings.Count(string(data), "BEGIN CERTIFICATE"); err != nil || n != 1 {
					return false, fmt.Errorf("%s holds %d certificates, %w", filepath.Base(path), n, err)
				}
			}
			return true, nil
		})
		if err != nil {
			t.Error(err)
		}
	}
	m, err := r.doors["vault-1"].CoreV1().ConfigMaps(namespace).Get(ctx, "kube-root-ca.crt", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if m.Data["ca.crt"] != r.f.authority(t, "vault-1", pki.ServerCA) {
		t.Errorf("kube-root-ca.crt is not the authority of now: %q", m.Data["ca.crt"])
	}
}

// checkRefused expects that a kubeconfig of before is worthless, and a new one is not.
func (r *rotated) checkRefused(ctx context.Context, t *testing.T, operator *door) {
	t.Helper()
	if _, err := operator.CoreV1().Nodes().List(ctx, metav1.ListOptions{}); !apierrors.IsUnauthorized(err) {
		t.Errorf("the kubeconfig of before: %v; want Unauthorized", err)
	}
	out, err := operator.kubectl(ctx, "get", "nodes").CombinedOutput()
	t.Logf("kubectl with the kubeconfig of before: %v: %s", err, out)
	if err == nil || !strings.Contains(string(out), "Unauthorized") {
		t.Errorf("kubectl with the kubeconfig of before: %v: %s", err, out)
	}
	for name := range r.doors {
		d := r.f.door(ctx, t, name)
		if _, err := d.CoreV1().Nodes().List(ctx, metav1.ListOptions{}); err != nil {
			t.Errorf("a new kubeconfig of %s: %v", name, err)
		}
	}
}

// testOffMeanwhile gives the agent power again that had none, and whose certificates all have ended.
func testOffMeanwhile(t *testing.T, r *rotated) {
	ctx := within(t, 4*time.Minute)
	begin := time.Now()
	r.f.mustStart(r.f.specs["guard-2"])
	c := r.doors["vault-1"].Cluster
	waitFresh(ctx, t, c, begin.Truncate(time.Second), "guard-2")
	t.Logf("Ready by itself after %.1f s", time.Since(begin).Seconds())
	runCounter(ctx, t, r.doors["vault-2"], "guard-2")
	for _, d := range r.doors {
		if err := d.reach(ctx, "counter-guard-2"); err != nil {
			t.Error(err)
		}
	}
	root := r.roots(t)[pki.ServerCA]
	dir := filepath.Join(r.f.dir, "guard-2", "var/lib/cairn/node/tls")
	data, err := os.ReadFile(pki.CertFile(dir, pki.ServerCA))
	if block, _ := pem.Decode(data); err != nil || block == nil || !bytes.Equal(block.Bytes, root.Raw) {
		t.Errorf("guard-2 does not trust the new authority: %s, %v", data, err)
	}
}

// testJoinAfterRotation has machines join with the new tokens, and one that has the old one's hash.
func testJoinAfterRotation(t *testing.T, r *rotated) {
	ctx := within(t, 6*time.Minute)
	f := r.f
	token := func(id string) string { return strings.TrimSpace(f.run(ctx, t, "vault-2", "cairnctl token show "+id)) }
	config := func(role, token string) string {
		return fmt.Sprintf("cairn: {role: %s, server_url: %q, token: %q}\n", role, vaultURL, token)
	}
	if now := token("agent"); now == r.agent {
		t.Errorf("the token is %s still", now)
	}
	m := f.mustStart(brief(fleetSpec{name: "stranger", address: "10.88.0.100", config: config("agent", r.agent)}))
	l, _, err := m.Console().Wait(within(t, time.Minute), regexp.MustCompile(`join.*another cluster`), 0)
	if err != nil {
		t.Error(err)
	}
	t.Logf("with the token of before: %s", l.Text)
	f.kill("stranger")
	begin := time.Now()
	f.mustStart(brief(fleetSpec{name: "guard-3", address: "10.88.0.98", config: config("agent", token("agent"))}))
	f.mustStart(brief(fleetSpec{name: "vault-4", address: "10.88.0.94", config: config("server", token("server"))}))
	waitReady(ctx, t, r.doors["vault-1"].Cluster, "guard-3", "vault-4")
	t.Logf("a new agent and a new server are Ready after %.1f s", time.Since(begin).Seconds())
	// A cross certificate leads from one authority to the next, not to the one after that: pods have the new one by now.
	for _, name := range []string{"vault-1", "vault-2", "vault-3", "vault-4"} {
		r.doors[name] = f.keeperDoor(ctx, t, name, r.keeper)
	}
}

// testRotationPowerCut replaces the authorities again, and cuts the power of a server when the new ones begin to sign.
func testRotationPowerCut(t *testing.T, r *rotated) {
	ctx := within(t, 15*time.Minute)
	f, lost := r.f, "vault-3"
	roots, cut := r.roots(t), time.Time{}
	gap := watchWrites(ctx, t, r.doors["vault-1"].Cluster)
	err := poll(ctx, "the replacement begins", func(ctx context.Context) (bool, error) { // not while the new server starts, or some still follow
		out, err := f.machine("vault-1").Run(ctx, "cairnctl certificate rotate --yes --no-wait 2>&1")
		if err != nil {
			err = fmt.Errorf("%w: %s", err, out)
			pause(ctx, 5*time.Second)
		}
		return err == nil, err
	})
	if err != nil {
		t.Fatal(err)
	}
	if out, err := f.machine("vault-2").Run(ctx, "cairnctl certificate rotate --yes 2>&1"); err == nil || !strings.Contains(out, "under way") {
		t.Errorf("a second one at the same time: %v, %s", err, out)
	}
	back := make(chan error, 1)
	r.followStages(ctx, t, "vault-2", func(stage string) {
		if stage != "sign" {
			return
		}
		f.kill(lost)
		cut = time.Now()
		go func() { back <- r.bringBack(ctx, t, lost) }()
	})
	if cut.IsZero() {
		t.Fatal("the stage sign was not seen")
	}
	if err := <-back; err != nil {
		t.Fatal(err)
	}
	t.Logf("replaced %.0f s after the power cut; longest time without an accepted write by vault-1 %.2f s", time.Since(cut).Seconds(), gap().Seconds())
	waitFresh(ctx, t, r.doors["vault-1"].Cluster, cut.Truncate(time.Second), lost)
	f.waitVoting(ctx, t, "vault-1", lost)
	r.checkReplaced(ctx, t, roots, "vault-1", "vault-2", "vault-3", "vault-4", "guard-1", "guard-2", "guard-3")
	r.reachAll(ctx, t)
}

// bringBack gives a server power again once the others say that they wait for it.
func (r *rotated) bringBack(ctx context.Context, t *testing.T, lost string) error {
	err := poll(ctx, "the replacement waits for "+lost, func(ctx context.Context) (bool, error) {
		s, err := r.f.clusterState(ctx, "vault-1")
		if err != nil || s.Rotation == nil {
			return false, fmt.Errorf("no replacement is under way, %w", err)
		}
		waits := slices.ContainsFunc(s.Rotation.Waiting, func(text string) bool { return strings.Contains(text, "server "+lost+" is not there") })
		return waits, fmt.Errorf("stage %s, waiting for %v", s.Rotation.Stage, s.Rotation.Waiting)
	})
	if err != nil {
		return err
	}
	out, err := r.f.machine("vault-1").Run(ctx, "cairnctl cluster status; true")
	t.Logf("while %s is off, cairnctl cluster status says (%v):\n%s", lost, err, out)
	_, err = r.f.start(ctx, r.f.specs[lost])
	return err
}

// waitVoting waits until a server is a member of the store that is online.
func (f *fleet) waitVoting(ctx context.Context, t *testing.T, at, name string) {
	t.Helper()
	err := poll(ctx, name+" is online in the store", func(ctx context.Context) (bool, error) {
		st, err := f.storeStatus(ctx, at)
		if err != nil {
			return false, err
		}
		for _, m := range st.Members {
			if m.Name == name && m.Online {
				return true, nil
			}
		}
		return false, fmt.Errorf("members: %+v", st.Members)
	})
	if err != nil {
		t.Error(err)
	}
}
