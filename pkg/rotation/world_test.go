package rotation

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	k8stesting "k8s.io/client-go/testing"

	"github.com/cairn-os/cairn/pkg/join"
	"github.com/cairn-os/cairn/pkg/membership"
	"github.com/cairn-os/cairn/pkg/pki"
)

// world is a cluster: its objects in a clientset, and the files of its servers in directories. A transcript steers it.
type world struct {
	t      *testing.T
	client *fake.Clientset
	now    time.Time
	first  string            // the server that founded it
	dirs   map[string]string // of servers
	parts  map[string]*Server
	leader *Leader
	absent map[string]bool
	events []string
	kept   *corev1.Secret
	ids    []string // of rotations, in their order
	log    *slog.Logger

	mu      sync.Mutex
	version int // of the Secret that was written last
}

func newWorld(t *testing.T) *world {
	w := &world{
		t: t, client: fake.NewClientset(), now: time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC),
		dirs: map[string]string{}, parts: map[string]*Server{}, absent: map[string]bool{},
		log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
	w.client.PrependReactor("create", "events", func(a k8stesting.Action) (bool, runtime.Object, error) {
		e := a.(k8stesting.CreateAction).GetObject().(*corev1.Event)
		w.events = append(w.events, fmt.Sprintf("%s %s %s: %s", e.Type, e.Reason, e.InvolvedObject.Name, e.Message))
		return true, e, nil
	})
	w.client.PrependReactor("update", "secrets", w.updateSecret)
	return w
}

// updateSecret refuses an update of what somebody else changed meanwhile, as an apiserver does.
func (w *world) updateSecret(a k8stesting.Action) (bool, runtime.Object, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	next := a.(k8stesting.UpdateAction).GetObject().(*corev1.Secret).DeepCopy()
	have, err := w.client.Tracker().Get(a.GetResource(), next.Namespace, next.Name)
	if err != nil {
		return true, nil, err
	}
	if have.(*corev1.Secret).ResourceVersion != next.ResourceVersion {
		return true, nil, apierrors.NewConflict(a.GetResource().GroupResource(), next.Name, errors.New("changed meanwhile"))
	}
	w.version++
	next.ResourceVersion = strconv.Itoa(w.version)
	return true, next, w.client.Tracker().Update(a.GetResource(), next, next.Namespace)
}

func (w *world) clock() time.Time { return w.now }

func (w *world) pki(server string) pki.Options {
	return pki.Options{
		Dir: w.dirs[server], Node: server, Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")},
		ServiceIP: netip.MustParseAddr("10.43.0.1"), Joined: server != w.first, Now: w.clock,
	}
}

// do carries out a line of a transcript and returns what it shows.
func (w *world) do(line string) string {
	word, rest, _ := strings.Cut(line, " ")
	names := strings.Fields(rest)
	switch word {
	case "servers":
		w.each(names, w.addServer)
	case "witness":
		w.each(names, func(n string) { w.record(n, membership.Witness) })
	case "agents":
		w.each(names, func(n string) { w.record(n, membership.Agent); w.ready(n, true) })
	case "off", "on":
		w.each(names, func(n string) { w.absent[n] = word == "off"; w.ready(n, word == "on") })
	case "remove":
		w.each(names, func(n string) { w.must(join.Forget(w.t.Context(), w.client, n)) })
	case "clock":
		d, err := time.ParseDuration(rest)
		w.must(err)
		w.now = w.now.Add(d)
	case "check":
		return w.mask(text(Check(w.t.Context(), w.begin(rest))))
	case "begin":
		_, err := Begin(w.t.Context(), w.begin(rest))
		return w.mask(text(err))
	case "apply":
		return w.eachText(names, w.apply)
	case "take": // an agent or a witness
		w.each(names, w.take)
	case "alone": // what it recorded after a rotation of which the cluster knows the middle again
		w.each(names, func(n string) {
			s, err := parse(w.secret())
			w.must(err)
			w.must(join.SetAuthorities(w.t.Context(), w.client, n, s.ID))
		})
	case "unregister": // somebody deleted the Node, and the record is left
		w.each(names, func(n string) { w.must(w.client.CoreV1().Nodes().Delete(w.t.Context(), n, metav1.DeleteOptions{})) })
	case "revert": // an apiserver that has not looked at its files yet
		m, err := w.client.CoreV1().ConfigMaps("kube-system").Get(w.t.Context(), trustConfigMap, metav1.GetOptions{})
		w.must(err)
		m.Data["client-ca-file"] = "of before"
		w.put("kube-system", trustConfigMap, m.Data)
	case "controllers":
		l, err := NewLeader(LeaderOptions{Node: rest, Dir: w.dirs[rest], Log: w.log, Now: w.clock})
		w.must(err)
		w.leader = l
	case "lead":
		return w.mask(w.lead())
	case "status":
		return w.mask(w.status(rest))
	case "files":
		return w.eachText(names, w.files)
	case "publish":
		w.publish(rest)
	case "published":
		return w.published()
	case "events":
		all := strings.Join(w.events, "\n")
		w.events = nil
		return w.mask(all)
	case "keep":
		w.kept = w.secret()
	case "restore":
		w.restore()
	case "spoil":
		s := w.secret()
		s.Data[stateKey] = []byte(rest)
		_, err := w.client.CoreV1().Secrets(join.Namespace).Update(w.t.Context(), s, metav1.UpdateOptions{})
		w.must(err)
	default:
		w.t.Fatalf("no command %q", line)
	}
	return ""
}

func text(err error) string {
	if err != nil {
		return "error: " + err.Error()
	}
	return "ok"
}

func (w *world) each(names []string, do func(string)) {
	for _, n := range names {
		do(n)
	}
}

func (w *world) eachText(names []string, do func(string) string) string {
	var all []string
	for _, n := range names {
		all = append(all, n+": "+do(n))
	}
	return w.mask(strings.Join(all, "\n"))
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// mask replaces what each run has others of.
func (w *world) mask(s string) string {
	if state, err := parse(w.secret()); err == nil && state != nil && !slices.Contains(w.ids, state.ID) {
		w.ids = append(w.ids, state.ID)
	}
	for i, id := range w.ids {
		s = strings.ReplaceAll(s, id, fmt.Sprintf("ID%d", i+1))
	}
	return s
}

func (w *world) secret() *corev1.Secret {
	s, err := w.client.CoreV1().Secrets(join.Namespace).Get(w.t.Context(), join.RotationName, metav1.GetOptions{})
	if err != nil {
		return nil
	}
	return s
}

// addServer makes a server with the authorities of the first one.
func (w *world) addServer(name string) {
	dir := filepath.Join(w.t.TempDir(), name)
	w.must(os.MkdirAll(dir, 0o700))
	if w.first == "" {
		w.first = name
	} else {
		w.must(os.CopyFS(dir, os.DirFS(w.dirs[w.first])))
	}
	w.dirs[name] = dir
	_, err := pki.Ensure(w.pki(name))
	w.must(err)
	w.record(name, membership.Server)
	w.ready(name, true)
	w.parts[name] = NewServer(ServerOptions{
		Client: w.client, Node: name, Dir: dir, Log: w.log, Now: w.clock,
		Change: func(f func(pki.Options) (bool, error)) error { _, err := f(w.pki(name)); return err },
	})
}

func (w *world) record(name string, role membership.Role) {
	w.must(join.Record(w.t.Context(), w.client, name, strings.Repeat("a", 64), role))
}

func (w *world) ready(name string, is bool) {
	nodes := w.client.CoreV1().Nodes()
	_ = nodes.Delete(w.t.Context(), name, metav1.DeleteOptions{}) // there may be none yet
	status := corev1.ConditionUnknown
	if is {
		status = corev1.ConditionTrue
	}
	_, err := nodes.Create(w.t.Context(), &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Status:     corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: status}}},
	}, metav1.CreateOptions{})
	w.must(err)
}

func (w *world) begin(server string) BeginOptions {
	return BeginOptions{Client: w.client, PKI: w.pki(server), By: server, Log: w.log, Now: w.clock, Present: func(_ context.Context, r join.NodeRecord) error {
		if w.absent[r.Name] {
			return errors.New("it does not answer")
		}
		return nil
	}}
}

// apply is a look of a server's part.
func (w *world) apply(server string) string {
	if _, err := w.parts[server].look(w.t.Context(), w.secret()); err != nil {
		return text(err)
	}
	return w.mark(server)
}

func (w *world) mark(name string) string {
	all, err := join.ListNodes(w.t.Context(), w.client)
	w.must(err)
	for _, r := range all {
		if r.Name == name {
			return r.Authorities
		}
	}
	return "no record"
}

func (w *world) take(name string) {
	hash, err := join.BundleHash(pki.CertFile(w.dirs[w.first], pki.ServerCA))
	w.must(err)
	w.must(join.SetAuthorities(w.t.Context(), w.client, name, hash))
}

// lead is a look of the leader's.
func (w *world) lead() string {
	s := w.secret()
	if s == nil {
		return "nothing is under way"
	}
	_, err := w.leader.look(w.t.Context(), w.client, s)
	if err != nil {
		return text(err)
	}
	return w.status(w.leader.o.Node)
}

func (w *world) status(server string) string {
	s, err := Look(w.t.Context(), w.client, w.dirs[server], 0, w.now)
	if err != nil {
		return text(err)
	}
	if s == nil {
		return "nothing is under way"
	}
	lines := []string{fmt.Sprintf("stage %s for %s, begun on %s %s ago", s.Stage, w.now.Sub(s.Since), s.By, w.now.Sub(s.Begun))}
	if s.Settles > 0 {
		lines[0] += fmt.Sprintf(", settles for %s", s.Settles)
	}
	return strings.Join(append(lines, s.Waiting...), "\n")
}

// files tells by how many each authority is trusted on a server, and whether leaves are those of the one that signs.
func (w *world) files(server string) string {
	var all []string
	for _, name := range pki.Authorities() {
		data, err := os.ReadFile(pki.CertFile(w.dirs[server], name))
		w.must(err)
		all = append(all, fmt.Sprintf("%s %d", name, strings.Count(string(data), "BEGIN CERTIFICATE")))
	}
	for _, leaf := range []string{pki.APIServer, pki.Admin, pki.KubeletServer, pki.Store, pki.FrontProxy} {
		if good, err := pki.Serves(w.pki(server), leaf); err != nil || !good {
			all = append(all, fmt.Sprintf("%s does not serve, %v", leaf, err))
		}
	}
	return strings.Join(all, ", ")
}

// publish is what Kubernetes' controllers and apiserver do with a server's files.
func (w *world) publish(server string) {
	read := func(name string) string {
		data, err := os.ReadFile(pki.CertFile(w.dirs[server], name))
		w.must(err)
		return string(data)
	}
	for _, ns := range []string{"default", "kube-system"} {
		w.put(ns, rootConfigMap, map[string]string{rootKey: read(pki.ServerCA)})
	}
	if m, err := w.client.CoreV1().ConfigMaps("kube-system").Get(w.t.Context(), trustConfigMap, metav1.GetOptions{}); err == nil {
		w.put("kube-system", trustConfigMap, m.Data)
		return
	}
	w.put("kube-system", trustConfigMap, map[string]string{
		"client-ca-file": read(pki.ClientCA), "requestheader-client-ca-file": read(pki.RequestHeaderCA), "requestheader-allowed-names": `["x"]`,
	})
}

func (w *world) put(namespace, name string, data map[string]string) {
	maps := w.client.CoreV1().ConfigMaps(namespace)
	_ = maps.Delete(w.t.Context(), name, metav1.DeleteOptions{}) // there may be none yet
	_, err := maps.Create(w.t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Data: data}, metav1.CreateOptions{})
	w.must(err)
}

func (w *world) published() string {
	maps, err := w.client.CoreV1().ConfigMaps("").List(w.t.Context(), metav1.ListOptions{})
	w.must(err)
	var all []string
	for _, m := range maps.Items {
		for key, value := range m.Data {
			n := strings.Count(value, "BEGIN CERTIFICATE")
			all = append(all, fmt.Sprintf("%s/%s %s: %d", m.Namespace, m.Name, key, n))
		}
	}
	slices.Sort(all)
	return strings.Join(all, "\n")
}

// restore puts a Secret back that was kept, as a snapshot of the cluster's data does.
func (w *world) restore() {
	secrets := w.client.CoreV1().Secrets(join.Namespace)
	_ = secrets.Delete(w.t.Context(), join.RotationName, metav1.DeleteOptions{}) // there may be none
	_, err := secrets.Create(w.t.Context(), w.kept.DeepCopy(), metav1.CreateOptions{})
	w.must(err)
}
