package podnet

import (
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// apiServer speaks as much of the Kubernetes API as concerns Nodes, on a socket that all network namespaces reach.
type apiServer struct {
	t      *testing.T
	socket string
	server *http.Server

	mu      sync.Mutex
	nodes   map[string]*corev1.Node
	events  []event
	changed chan struct{} // closed at each event
}

// event has the revision of its index plus one.
type event struct {
	Type   string       `json:"type"`
	Object *corev1.Node `json:"object"`
}

func newAPIServer(t *testing.T, socket string) *apiServer {
	return &apiServer{t: t, socket: socket, nodes: make(map[string]*corev1.Node), changed: make(chan struct{})}
}

func (a *apiServer) start() {
	a.t.Helper()
	_ = os.Remove(a.socket)
	l, err := net.Listen("unix", a.socket)
	if err != nil {
		a.t.Fatal(err)
	}
	a.server = &http.Server{Handler: a}
	go func() { _ = a.server.Serve(l) }()
	a.t.Cleanup(a.stop)
}

// stop breaks all watches.
func (a *apiServer) stop() { _ = a.server.Close() }

func (a *apiServer) record(kind string, n *corev1.Node) {
	n = n.DeepCopy()
	n.APIVersion, n.Kind = "v1", "Node"
	n.ResourceVersion = strconv.Itoa(len(a.events) + 1)
	a.events = append(a.events, event{kind, n})
	if kind == "DELETED" {
		delete(a.nodes, n.Name)
	} else {
		a.nodes[n.Name] = n
	}
	close(a.changed)
	a.changed = make(chan struct{})
}

// add registers a node and gives it its share, as kubelet and kube-controller-manager do.
func (a *apiServer) add(name string, shares ...string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.record("ADDED", &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{
			Name: name, UID: types.UID(fmt.Sprint(name, len(a.events))), CreationTimestamp: metav1.Now(),
		},
		Spec:   corev1.NodeSpec{PodCIDRs: shares, PodCIDR: shares[0]},
		Status: corev1.NodeStatus{Images: []corev1.ContainerImage{{Names: []string{"of no interest"}}}},
	})
}

func (a *apiServer) put(n *corev1.Node) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.record("ADDED", n)
}

func (a *apiServer) delete(name string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.record("DELETED", a.nodes[name])
}

func (a *apiServer) annotations(name string) map[string]string {
	a.mu.Lock()
	defer a.mu.Unlock()
	if n := a.nodes[name]; n != nil {
		return maps.Clone(n.Annotations)
	}
	return nil
}

func (a *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	name, one := strings.CutPrefix(r.URL.Path, "/api/v1/nodes/")
	w.Header().Set("Content-Type", "application/json")
	switch q := r.URL.Query(); {
	case one && r.Method == http.MethodPatch:
		a.patch(w, r, name)
	case q.Get("sendInitialEvents") != "": // as a server without watch lists answers
		refuse(w, http.StatusUnprocessableEntity, metav1.StatusReasonInvalid, "sendInitialEvents: Forbidden")
	case r.URL.Path == "/api/v1/nodes" && q.Get("watch") != "":
		a.watch(w, r)
	case r.URL.Path == "/api/v1/nodes" && r.Method == http.MethodGet:
		a.list(w)
	default:
		a.t.Errorf("request beyond a kubelet's needs here: %s %s", r.Method, r.URL)
		refuse(w, http.StatusForbidden, metav1.StatusReasonForbidden, "forbidden")
	}
}

func refuse(w http.ResponseWriter, code int, reason metav1.StatusReason, message string) {
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(metav1.Status{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"},
		Status:   metav1.StatusFailure, Reason: reason, Message: message, Code: int32(code),
	})
}

func (a *apiServer) list(w http.ResponseWriter) {
	a.mu.Lock()
	defer a.mu.Unlock()
	all := corev1.NodeList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "NodeList"}}
	all.ResourceVersion = strconv.Itoa(len(a.events))
	for _, name := range slices.Sorted(maps.Keys(a.nodes)) {
		all.Items = append(all.Items, *a.nodes[name])
	}
	_ = json.NewEncoder(w).Encode(all)
}

func (a *apiServer) watch(w http.ResponseWriter, r *http.Request) {
	at, err := strconv.Atoi(r.URL.Query().Get("resourceVersion"))
	if err != nil {
		refuse(w, http.StatusBadRequest, metav1.StatusReasonBadRequest, "resourceVersion")
		return
	}
	w.WriteHeader(http.StatusOK)
	flush := w.(http.Flusher)
	flush.Flush()
	for {
		a.mu.Lock()
		news, changed := a.events[min(at, len(a.events)):], a.changed
		a.mu.Unlock()
		for _, e := range news {
			_ = json.NewEncoder(w).Encode(e)
		}
		flush.Flush()
		at += len(news)
		select {
		case <-changed:
		case <-r.Context().Done():
			return
		}
	}
}

// patch allows what NodeRestriction allows here: annotations of the own node, which the client names.
func (a *apiServer) patch(w http.ResponseWriter, r *http.Request, name string) {
	var p map[string]map[string]map[string]*string
	err := json.NewDecoder(r.Body).Decode(&p)
	if err != nil || len(p) != 1 || len(p["metadata"]) != 1 || r.Header.Get("Content-Type") != string(types.MergePatchType) {
		a.t.Errorf("patch of more than annotations: %v, %v", p, err)
		refuse(w, http.StatusForbidden, metav1.StatusReasonForbidden, "patch")
		return
	}
	if agent := r.Header.Get("User-Agent"); agent != name {
		a.t.Errorf("node %s changes node %s", agent, name)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	n := a.nodes[name]
	if n == nil {
		refuse(w, http.StatusNotFound, metav1.StatusReasonNotFound, "no such node")
		return
	}
	n = n.DeepCopy()
	if n.Annotations == nil {
		n.Annotations = make(map[string]string)
	}
	for key, value := range p["metadata"]["annotations"] {
		if value == nil {
			delete(n.Annotations, key)
		} else {
			n.Annotations[key] = *value
		}
	}
	a.record("MODIFIED", n)
	_ = json.NewEncoder(w).Encode(a.nodes[name])
}
