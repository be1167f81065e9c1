package nodes

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/cairn-os/cairn/pkg/control/apiservertest"
	"github.com/cairn-os/cairn/pkg/store/admin"
)

// world is a cluster for one controller at a time: a real apiserver, and a store that speaks its real interface. It
// writes down what the controller changes, and can end the controller at each of these changes.
type world struct {
	t      *testing.T
	server *apiservertest.Server
	admin  kubernetes.Interface // of the test
	store  *admin.Client

	mu      sync.Mutex
	status  admin.Status
	changes []string
	crash   crash
}

// crash ends the controller at a change: before it is made, or after but before the answer.
type crash struct {
	at     int // counts from 1; 0 is never
	before bool
	end    context.CancelFunc
	done   bool
}

var errCrash = errors.New("the controller's power is cut")

// changing calls do as the next change. After a crash there is none: clients repeat requests whose connection broke.
func (w *world) changing(what string, do func()) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.crash.done {
		return errCrash
	}
	w.crash.done = w.crash.at > 0 && len(w.changes)+1 >= w.crash.at
	if w.crash.done {
		defer w.crash.end()
	}
	if !w.crash.done || !w.crash.before {
		w.changes = append(w.changes, what)
		do()
	}
	if w.crash.done {
		return errCrash
	}
	return nil
}

// recording sees the controller's requests to the apiserver.
func (w *world) recording(next http.RoundTripper) http.RoundTripper {
	return roundTrip(func(r *http.Request) (*http.Response, error) {
		if r.Method == http.MethodGet || strings.Contains(r.URL.Path, "/events") {
			return next.RoundTrip(r)
		}
		var resp *http.Response
		var err error
		cut := w.changing(r.Method+" "+r.URL.Path, func() { resp, err = next.RoundTrip(r) })
		if cut != nil {
			if resp != nil {
				resp.Body.Close()
			}
			return nil, cut
		}
		return resp, err
	})
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// serveStore serves the store's operator interface on a unix socket.
func (w *world) serveStore() {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", func(rw http.ResponseWriter, _ *http.Request) {
		w.mu.Lock()
		defer w.mu.Unlock()
		_ = json.NewEncoder(rw).Encode(w.status)
	})
	mux.HandleFunc("POST /v1/leader", func(rw http.ResponseWriter, _ *http.Request) {
		w.answer(rw, "store: lead another", func(s *admin.Status) int {
			for i, m := range s.Members {
				if m.Leader = m.Role == voter && m.Online && m.ID != s.Leader; m.Leader {
					s.Members[0].Leader, s.Members[i].Leader, s.Leader = false, true, m.ID
					return http.StatusOK
				}
			}
			return http.StatusConflict
		})
	})
	mux.HandleFunc("DELETE /v1/members/{id}", func(rw http.ResponseWriter, r *http.Request) {
		w.answer(rw, "store: remove "+r.PathValue("id"), func(s *admin.Status) int {
			for i, m := range s.Members {
				if m.ID.String() != r.PathValue("id") {
					continue
				}
				if m.ID == s.Leader {
					return http.StatusConflict
				}
				s.Members = append(append([]admin.Member{}, s.Members[:i]...), s.Members[i+1:]...)
				return http.StatusOK
			}
			return http.StatusNotFound
		})
	})
	path := filepath.Join(w.t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		w.t.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(mux)
	srv.Listener = l
	srv.Start()
	w.t.Cleanup(srv.Close)
	w.store = admin.Open(path)
	w.t.Cleanup(w.store.Close)
}

func (w *world) answer(rw http.ResponseWriter, what string, do func(*admin.Status) int) {
	code := 0
	if w.changing(what, func() { code = do(&w.status) }) != nil {
		panic(http.ErrAbortHandler) // the connection breaks
	}
	rw.WriteHeader(code)
	_ = json.NewEncoder(rw).Encode(admin.Problem{Error: http.StatusText(code)})
}

// begin starts the record anew, with these members of the store.
func (w *world) begin(text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.changes, w.crash = nil, crash{}
	w.status = admin.Status{ID: 1, Quorum: true, Phase: "follower"}
	w.status.Members, w.status.Leader = members(text)
}

func (w *world) record() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]string{}, w.changes...)
}

// removal is the record, but for a second try of the last step before the watch told that the Node is gone.
func (w *world) removal() []string {
	all := w.record()
	if n := len(all); n > 1 && all[n-1] == all[n-2] && strings.HasPrefix(all[n-1], http.MethodPatch) {
		return all[:n-1]
	}
	return all
}

// run starts a controller on the server own; the function returned ends it, if it did not end by itself, and returns
// what it returned.
func (w *world) run(own string, crashing crash, change func(*Options)) func() error {
	w.t.Helper()
	cfg := w.server.Config(apiservertest.Admin)
	cfg.WrapTransport = w.recording
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(w.t.Context())
	w.mu.Lock()
	w.crash = crashing
	w.crash.end = cancel
	if crashing.at > 0 {
		w.crash.at += len(w.changes)
	}
	w.mu.Unlock()
	o := Options{Client: client, Node: own, Store: w.store, Log: slog.New(slog.NewTextHandler(w.t.Output(), nil))}
	if change != nil {
		change(&o)
	}
	done := make(chan error, 1)
	go func() { done <- New(o).Run(ctx) }()
	return func() error { cancel(); return <-done }
}

func (w *world) identity(name, role string) { w.identitySince(name, role, time.Now()) }

func (w *world) identitySince(name, role string, at time.Time) {
	w.t.Helper()
	s := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: identityPrefix + name}, Type: identityType,
		Data: map[string][]byte{roleKey: []byte(role), "identity": []byte("aa"), joinedKey: []byte(at.UTC().Format(time.RFC3339))},
	}
	if _, err := w.admin.CoreV1().Secrets(metav1.NamespaceSystem).Create(w.t.Context(), s, metav1.CreateOptions{}); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) createNode(name string, n *corev1.Node) {
	w.t.Helper()
	n.Name = name
	if _, err := w.admin.CoreV1().Nodes().Create(w.t.Context(), n, metav1.CreateOptions{}); err != nil {
		w.t.Fatal(err)
	}
}

// join makes a Node that is Ready, and its identity.
func (w *world) join(name, role string) {
	w.t.Helper()
	w.identity(name, role)
	w.createNode(name, &corev1.Node{})
	status := `{"status":{"conditions":[{"type":"Ready","status":"True"}]}}`
	if _, err := w.admin.CoreV1().Nodes().Patch(w.t.Context(), name, types.MergePatchType, []byte(status), metav1.PatchOptions{}, "status"); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) deleteNode(name string) {
	w.t.Helper()
	if err := w.admin.CoreV1().Nodes().Delete(w.t.Context(), name, metav1.DeleteOptions{}); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) node(name string) *corev1.Node {
	w.t.Helper()
	n, err := w.admin.CoreV1().Nodes().Get(w.t.Context(), name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return n
}

func (w *world) knows(name string) bool {
	w.t.Helper()
	_, err := w.admin.CoreV1().Secrets(metav1.NamespaceSystem).Get(w.t.Context(), identityPrefix+name, metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		w.t.Fatal(err)
	}
	return err == nil
}

// told returns the Events of that reason on the Node.
func (w *world) told(name, reason string) string {
	w.t.Helper()
	list, err := w.admin.CoreV1().Events("").List(w.t.Context(), metav1.ListOptions{FieldSelector: "involvedObject.name=" + name + ",reason=" + reason})
	if err != nil {
		w.t.Fatal(err)
	}
	text := ""
	for _, e := range list.Items {
		text += e.Message + "\n"
	}
	return text
}

// await waits until ok, for something that goes by itself.
func (w *world) await(what string, ok func() bool) {
	w.t.Helper()
	for range 400 {
		if ok() {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	w.t.Fatalf("%s: not after 20s; changes so far:\n%s", what, strings.Join(w.record(), "\n"))
}

// clear deletes all Nodes and identities.
func (w *world) clear() {
	w.t.Helper()
	ctx := w.t.Context()
	nodes, err := w.admin.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	for _, n := range nodes.Items {
		_, err := w.admin.CoreV1().Nodes().Patch(ctx, n.Name, types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`), metav1.PatchOptions{})
		if err == nil && n.DeletionTimestamp.IsZero() {
			err = w.admin.CoreV1().Nodes().Delete(ctx, n.Name, metav1.DeleteOptions{})
		}
		if err != nil && !apierrors.IsNotFound(err) {
			w.t.Fatal(err)
		}
	}
	err = w.admin.CoreV1().Secrets(metav1.NamespaceSystem).DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{FieldSelector: "type=" + string(identityType)})
	if err != nil {
		w.t.Fatal(err)
	}
}
