package health

import (
	"context"
	"crypto/sha256"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-os/cairn/pkg/config"
	"github.com/cairn-os/cairn/pkg/status"
)

// apiserver answers the lists that a kubelet may ask for as the real one does, with all fields that it sends.
type apiserver struct {
	*httptest.Server
	pods    map[string]string // by "namespace selector"
	readyz  string            // "": ready
	refuse  int               // status of every answer, when it is not 0
	garbage string            // answered instead
}

func newAPI(t *testing.T) *apiserver {
	a := &apiserver{pods: map[string]string{}}
	a.Server = httptest.NewTLSServer(a)
	t.Cleanup(a.Close)
	return a
}

func (a *apiserver) access(context.Context) (*http.Client, *url.URL, error) {
	u, err := url.Parse(a.URL)
	return a.Client(), u, err
}

func (a *apiserver) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	namespace, pods := strings.CutPrefix(r.URL.Path, "/api/v1/namespaces/")
	namespace, pods2 := strings.CutSuffix(namespace, "/pods")
	switch {
	case a.refuse != 0:
		w.WriteHeader(a.refuse)
		fmt.Fprintf(w, `{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"pods is forbidden","reason":"Forbidden","code":%d}`, a.refuse)
	case a.garbage != "":
		fmt.Fprint(w, a.garbage)
	case r.URL.Path == "/readyz" && a.readyz == "":
		fmt.Fprint(w, "ok")
	case r.URL.Path == "/readyz":
		http.Error(w, a.readyz, http.StatusInternalServerError)
	case pods && pods2 && r.FormValue("fieldSelector") != "spec.nodeName=till-1":
		// What the node authorizer says (v1.36).
		http.Error(w, `can only list/watch pods with spec.nodeName field selector`, http.StatusForbidden)
	case pods && pods2:
		fmt.Fprintf(w, `{"kind":"PodList","apiVersion":"v1","metadata":{"resourceVersion":"4711"},"items":[%s]}`, a.pods[strings.TrimSpace(namespace+" "+r.FormValue("labelSelector"))])
	default:
		http.NotFound(w, r)
	}
}

// podJSON is a pod as the API server shows it, shortened only in what is not read. change replaces texts in it, in pairs.
func podJSON(name string, change ...string) string {
	text := `{"metadata":{"name":"NAME","generateName":"till-","namespace":"shop","uid":"uid-of-NAME","resourceVersion":"1403","generation":1,
		"creationTimestamp":"2026-11-20T14:00:00Z","labels":{"app":"till","pod-template-hash":"84c4cc6bd4"},
		"ownerReferences":[{"apiVersion":"apps/v1","kind":"ReplicaSet","name":"till-84c4cc6bd4","uid":"9f0e","controller":true,"blockOwnerDeletion":true}]},
	"spec":{"containers":[{"name":"till","image":"till:1"}],"restartPolicy":"Always","nodeName":"till-1"},
	"status":{"observedGeneration":1,"phase":"Running","conditions":[
		{"type":"PodReadyToStartContainers","status":"True","lastProbeTime":null,"lastTransitionTime":"2026-11-20T14:00:02Z"},
		{"type":"Initialized","status":"True","lastProbeTime":null,"lastTransitionTime":"2026-11-20T14:00:00Z"},
		{"type":"Ready","status":"True","lastProbeTime":null,"lastTransitionTime":"2026-11-20T14:00:04Z"},
		{"type":"ContainersReady","status":"True","lastProbeTime":null,"lastTransitionTime":"2026-11-20T14:00:04Z"},
		{"type":"PodScheduled","status":"True","lastProbeTime":null,"lastTransitionTime":"2026-11-20T14:00:00Z"}],
		"hostIP":"192.0.2.7","podIP":"10.42.0.9","startTime":"2026-11-20T14:00:00Z",
		"containerStatuses":[{"name":"till","state":{"running":{"startedAt":"2026-11-20T14:00:03Z"}},"lastState":{},"ready":true,"restartCount":0,
			"image":"docker.io/library/till:1","imageID":"sha256:aa","containerID":"containerd://CONTAINER","started":true}],"qosClass":"BestEffort"}}`
	return strings.NewReplacer(append(change, "NAME", name, "CONTAINER", id(name))...).Replace(text)
}

// id is the ID of the container of a pod.
func id(name string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(name))) }

// notReady changes a Ready pod into one that is not, with the state of its container.
func notReady(state, last string, restarts int) []string {
	return []string{
		`"type":"Ready","status":"True",`, `"type":"Ready","status":"False","reason":"ContainersNotReady","message":"containers with unready status: [till]",`,
		`"state":{"running":{"startedAt":"2026-11-20T14:00:03Z"}},"lastState":{},"ready":true,"restartCount":0`,
		fmt.Sprintf(`"state":{%s},"lastState":{%s},"ready":false,"restartCount":%d`, state, last, restarts),
	}
}

const (
	crashLoop = `"waiting":{"reason":"CrashLoopBackOff","message":"back-off 2m40s restarting failed container=till pod=till-x_shop(9f)"}`
	crashed   = `"terminated":{"exitCode":3,"reason":"Error","startedAt":"2026-11-20T14:00:03Z","finishedAt":"2026-11-20T14:00:04Z","containerID":"containerd://bb"}`
)

func TestCriticalPods(t *testing.T) {
	api := newAPI(t)
	job := []string{`"apiVersion":"apps/v1","kind":"ReplicaSet"`, `"apiVersion":"batch/v1","kind":"Job"`}
	static := []string{`"apiVersion":"apps/v1","kind":"ReplicaSet"`, `"apiVersion":"v1","kind":"Node"`}
	ownerless := []string{`"ownerReferences":[`, `"unused":[`}
	crashes := notReady(crashLoop, crashed, 4)
	for _, tt := range []struct {
		name     string
		standard bool // kube-system's
		pods     []string
		before   int
		want     string
		ok       bool
	}{
		{"one Ready", false, []string{podJSON("a")}, 1, "a is Ready", true},
		{"three Ready", false, []string{podJSON("a"), podJSON("b"), podJSON("c")}, 9, "all 3 are Ready", true},
		{"none", false, nil, 0, "none on this machine", true},
		{"none more", false, nil, 2, "none on this machine; there were 2 before the upgrade", false},
		{"crash loop", false, []string{podJSON("b"), podJSON("a", crashes...)}, 0, "a: CrashLoopBackOff, the last time with exit code 3", false},
		{"just crashed", false, []string{podJSON("a", notReady(crashed, "", 0)...)}, 0, "a: Error, exit code 3", false},
		{
			"no image", false, []string{podJSON("a", notReady(`"waiting":{"reason":"ImagePullBackOff","message":"Back-off pulling image \"till:2\""}`, "", 0)...)}, 0,
			`a: ImagePullBackOff: Back-off pulling image "till:2"`, false,
		},
		{"begins", false, []string{podJSON("a", notReady(`"waiting":{"reason":"ContainerCreating"}`, "", 0)...)}, 0, "a: ContainerCreating", false},
		{
			"readiness probe", false, []string{podJSON("a", notReady(`"running":{"startedAt":"2026-11-20T14:00:03Z"}`, "", 0)...)}, 0,
			"a: containers with unready status: [till]", false,
		},
		{
			"init container fails", false, []string{podJSON("a", append(notReady(`"waiting":{"reason":"PodInitializing"}`, "", 0),
				`"containerStatuses":`, `"initContainerStatuses":[{"name":"first","state":{`+crashLoop+`},"lastState":{`+crashed+`},"restartCount":2}],"containerStatuses":`)...)}, 0,
			"a: CrashLoopBackOff, the last time with exit code 3", false,
		},
		{"no status", false, []string{`{"metadata":{"name":"a","uid":"u"},"spec":{"nodeName":"till-1"},"status":{"phase":"Pending"}}`}, 0, "a: Pending", false},
		{"going away", false, []string{podJSON("a", `"generation":1,`, `"deletionTimestamp":"2026-11-20T14:05:00Z",`), podJSON("b")}, 0, "b is Ready", true},
		{"evicted", false, []string{podJSON("a", `"phase":"Running"`, `"phase":"Failed","reason":"Evicted"`)}, 1, "none on this machine; there were 1 before the upgrade", false},
		{"of another node", false, []string{podJSON("a", `"nodeName":"till-1"`, `"nodeName":"till-2"`)}, 0, "none on this machine", true},
		{"of an earlier boot", false, []string{podJSON("old")}, 0, "old: its status is of an earlier boot", false},
		{
			"many", false, []string{podJSON("d", crashes...), podJSON("c", crashes...), podJSON("b", crashes...), podJSON("a", crashes...), podJSON("e")}, 0,
			"a: CrashLoopBackOff, the last time with exit code 3; b: CrashLoopBackOff, the last time with exit code 3; " +
				"c: CrashLoopBackOff, the last time with exit code 3; and 1 more", false,
		},
		{"without an owner, but named", false, []string{podJSON("a", append(ownerless, crashes...)...)}, 0, "a: CrashLoopBackOff, the last time with exit code 3", false},
		{"system", true, []string{podJSON("a"), podJSON("b", append(static, crashes...)...)}, 0, "b: CrashLoopBackOff, the last time with exit code 3", false},
		{"system, left out", true, []string{podJSON("a", append(ownerless, crashes...)...), podJSON("b", append(job, crashes...)...), podJSON("c", static...)}, 0, "c is Ready", true},
		{"system, none", true, nil, 2, "none on this machine", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			opt := Options{
				NodeName: "till-1", API: api.access, Before: map[string]int{"shop app=till": tt.before, "kube-system": tt.before},
				Containers: func() (map[string]bool, error) {
					return map[string]bool{id("a"): true, id("b"): true, id("c"): true, id("d"): true, id("e"): true}, nil
				},
			}
			key := "kube-system"
			if !tt.standard {
				key = "shop app=till"
				opt.Health.CriticalPods = []config.CriticalPods{{Namespace: "shop", Selector: "app=till"}}
			}
			api.pods = map[string]string{key: strings.Join(tt.pods, ",")}
			j, err := New(opt)
			if err != nil {
				t.Fatal(err)
			}
			got := j.Look(t.Context())[0]
			if got.Name != "critical pods "+key || got.Text != tt.want || got.OK != tt.ok || got.Permanent || got.Remote {
				t.Errorf("found %+v; want %q, %v", got, tt.want, tt.ok)
			}
		})
	}
}

// TestRestarts: a critical pod that is Ready whenever it is looked at, and is not the same from time to time.
func TestRestarts(t *testing.T) {
	c := Options{Health: config.Health{SettleText: "30s", CriticalPods: []config.CriticalPods{{Namespace: "shop"}}}}.pods()[0]
	begin := time.Now()
	ready := func(name string, count int) pod {
		pods, err := parsePods(strings.NewReader(`{"kind":"PodList","items":[` + podJSON(name, `"restartCount":0`, fmt.Sprintf(`"restartCount":%d`, count)) + `]}`))
		if err != nil {
			t.Fatal(err)
		}
		return pods[0]
	}
	for _, tt := range []struct {
		at, restarts int
		ok           bool
	}{
		{0, 7, true}, // what was before is not this boot's
		{5, 8, true},
		{10, 8, true},
		{15, 9, false},
		{20, 9, false},
		{34, 9, false},
		{35, 9, true}, // 30 s after the first of the two
		{40, 9, true},
		{50, 10, true},
		{79, 11, false},
		{90, 11, true},
		{95, 0, true}, // nonsense does no harm
	} {
		f := c.judge([]pod{ready("a", tt.restarts), ready("b", 0)}, nil, begin.Add(time.Duration(tt.at)*time.Second))
		if f.OK != tt.ok || !tt.ok && f.Text != "a: restarted 2 times within 30s" {
			t.Errorf("at %d s with %d restarts: %+v; want %v", tt.at, tt.restarts, f, tt.ok)
		}
	}
	if len(c.restarts["uid-of-b"]) > 8 {
		t.Errorf("%d notes about one pod", len(c.restarts["uid-of-b"]))
	}
	c.judge(nil, nil, begin.Add(100*time.Second))
	if len(c.restarts) != 0 {
		t.Errorf("pods that are gone are remembered: %v", c.restarts)
	}
}

// TestAPITrouble: whatever answers at the API server's address, nothing passes and nothing breaks.
func TestAPITrouble(t *testing.T) {
	api := newAPI(t)
	opt := Options{NodeName: "till-1", API: api.access}
	look := func() Check {
		t.Helper()
		j, err := New(opt)
		if err != nil {
			t.Fatal(err)
		}
		c := j.Look(t.Context())[0]
		if c.OK {
			t.Errorf("passes: %+v", c)
		}
		if _, err := j.Census(t.Context()); err != nil { // there is nothing to count by
			t.Error(err)
		}
		return c
	}
	for _, tt := range []struct {
		refuse  int
		garbage string
		want    string
		remote  bool
	}{
		{403, "", "the API server answers 403 Forbidden: {\"kind\":\"Status\"", false},
		{503, "", "the API server answers 503 Service Unavailable: ", true},
		{0, "<html>login</html>", "the list of pods: is not readable: invalid character '<'", true},
		{0, "{}", "the list of pods: is none: something else answers", true},
		{0, `{"kind":"PodList","items":[{"metadata":{"name":7}}]}`, "the list of pods: is not readable: ", true},
		{0, `{"kind":"PodList","items":[`, "the list of pods: is not readable: unexpected EOF", true},
		{0, `{"kind":"PodList","items":["` + strings.Repeat("x", maxPods), "the list of pods: is larger than 16777216 bytes", true},
	} {
		api.refuse, api.garbage = tt.refuse, tt.garbage
		if c := look(); !strings.HasPrefix(c.Text, tt.want) || c.Remote != tt.remote {
			t.Errorf("%d %.40s: %+v; want %q, %v", tt.refuse, tt.garbage, c, tt.want, tt.remote)
		}
	}
	api.refuse, api.garbage = 0, ""
	opt.NodeName = "till-2"
	if c := look(); !strings.HasPrefix(c.Text, "the API server answers 403 Forbidden: can only list/watch pods") {
		t.Errorf("another node's pods: %+v", c)
	}
	opt.NodeName = "till-1"
	opt.Containers = func() (map[string]bool, error) { return nil, os.ErrPermission }
	if c := look(); c.Text != "running containers: permission denied" {
		t.Errorf("no cgroups: %+v", c)
	}
	api.Close()
	if c := look(); !strings.HasPrefix(c.Text, "the API server cannot be asked: dial tcp 127.0.0.1:") || !strings.HasSuffix(c.Text, "connection refused") || !c.Remote {
		t.Errorf("nobody there: %+v", c)
	}
	opt.API = func(context.Context) (*http.Client, *url.URL, error) { return nil, nil, os.ErrNotExist }
	if c := look(); c.Text != "no access to the API server yet: file does not exist" || c.Remote {
		t.Errorf("no kubeconfig: %+v", c)
	}
}

func TestCensus(t *testing.T) {
	api := newAPI(t)
	api.pods["shop app=till"] = podJSON("a") + "," + podJSON("b", notReady(crashLoop, crashed, 4)...) + "," + podJSON("c", `"phase":"Running"`, `"phase":"Succeeded"`)
	j, err := New(Options{NodeName: "till-1", API: api.access, Health: config.Health{CriticalPods: []config.CriticalPods{{Namespace: "shop", Selector: "app=till"}, {Namespace: "scale"}}}})
	if err != nil {
		t.Fatal(err)
	}
	got, err := j.Census(t.Context())
	if diff := cmp.Diff(map[string]int{"shop app=till": 2, "scale": 0}, got); diff != "" || err != nil {
		t.Error(err, diff)
	}
	api.refuse = 503
	if got, err := j.Census(t.Context()); err == nil || !strings.HasPrefix(err.Error(), "count critical pods shop app=till: the API server answers 503") {
		t.Errorf("Census() = %v, %v", got, err)
	}
}

func TestControlPlane(t *testing.T) {
	api := newAPI(t)
	j, err := New(Options{ControlPlane: api.access})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ readyz, want string }{
		{"", "ready"},
		{"[+]ping ok\n[-]etcd failed: reason withheld\nreadyz check failed", "the API server answers 500 Internal Server Error: [+]ping ok [-]etcd failed: reason withheld readyz check failed"},
	} {
		api.readyz = tt.readyz
		if c := j.Look(t.Context())[0]; c.Name != "control plane" || c.Text != tt.want || c.OK != (tt.readyz == "") || c.Remote {
			t.Errorf("readyz %q: %+v; want %q", tt.readyz, c, tt.want)
		}
	}
	api.Close()
	if c := j.Look(t.Context())[0]; c.OK || c.Remote || !strings.HasSuffix(c.Text, "connection refused") {
		t.Errorf("nobody there: %+v", c)
	}
}

func TestNode(t *testing.T) {
	for _, tt := range []struct {
		n    Node
		want Finding
	}{
		{Node{status.Node{Ready: true, Reason: "KubeletReady"}, true}, Finding{OK: true, Text: "Ready"}},
		{Node{status.Node{Reason: "KubeletNotReady", Message: "cni plugin not initialized"}, true}, Finding{Text: "not Ready: KubeletNotReady: cni plugin not initialized"}},
		{Node{status.Node{Reason: "Unreachable"}, false}, Finding{Text: "not Ready: Unreachable", Remote: true}},
		{Node{Seen: true}, Finding{Text: "not Ready"}},
	} {
		if diff := cmp.Diff(tt.want, nodeLook(func() Node { return tt.n }).Do(t.Context())); diff != "" {
			t.Error(diff)
		}
	}
}

func TestStore(t *testing.T) {
	var w storeWatch
	begin := time.Now()
	good := func(index uint64) Store { return Store{Leader: true, Quorum: true, Voters: 3, Online: 2, Index: index} }
	moves := Finding{OK: true, Text: "2 of 3 voters online, and the applied index moves"}
	for _, tt := range []struct {
		at   int
		s    Store
		want Finding
	}{
		{0, Store{}, Finding{Text: "has no leader", Remote: true}},
		{5, Store{Leader: true, Voters: 3, Online: 1, Index: 7}, Finding{Text: "has no majority: 1 of 3 voters online", Remote: true}},
		{10, Store{Leader: true, Voters: 1, Online: 0, Index: 7, Message: "disk full: make room"}, Finding{Text: "has no majority: 0 of 1 voters online: disk full: make room"}},
		{15, good(8), Finding{Text: "applied index is not seen to move yet"}},
		{18, good(6), Finding{Text: "applied index is not seen to move yet"}}, // restored: not growth
		{20, good(6), Finding{Text: "applied index is not seen to move yet"}},
		{25, good(8), moves},
		{30, good(8), moves},
		{55, good(8), moves},
		{56, good(8), Finding{Text: "applied index does not move: nothing was written for 30s"}},
		{60, good(9), moves},
		{200, good(10), moves},
		{205, Store{Leader: true, Quorum: true, Index: 11, Message: "slow disk"}, Finding{OK: true, Text: "in quorum, and its applied index moves: slow disk"}},
		{210, Store{Voters: 1, Index: 11}, Finding{Text: "has no leader"}},
		{215, good(12), Finding{Text: "applied index is not seen to move yet"}},
		{220, good(13), moves},
	} {
		if diff := cmp.Diff(tt.want, w.judge(tt.s, begin.Add(time.Duration(tt.at)*time.Second))); diff != "" {
			t.Errorf("at %d s: %s", tt.at, diff)
		}
	}
	f := storeLook(func(context.Context) (Store, error) { return Store{}, os.ErrNotExist }).Do(t.Context())
	if diff := cmp.Diff(Finding{Text: "does not answer: file does not exist"}, f); diff != "" {
		t.Error(diff)
	}
}

func TestContainers(t *testing.T) {
	root := t.TempDir()
	for _, dir := range []string{"kubepods/besteffort/pod1/" + id("a"), "kubepods/burstable/pod2/" + id("b") + "/nested", "system/" + strings.Repeat("x", 64), "short/abc"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, id("file")), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := Containers(root)
	if diff := cmp.Diff(map[string]bool{id("a"): true, id("b"): true}, got); diff != "" || err != nil {
		t.Error(err, diff)
	}
	if _, err := Containers(filepath.Join(root, "gone")); err == nil {
		t.Error("a root that is missing lists well")
	}
	if _, err := Containers("/sys/fs/cgroup"); err != nil {
		t.Logf("here: %v", err)
	}
}

func FuzzPods(f *testing.F) {
	f.Add(`{"kind":"PodList","items":[` + podJSON("a") + `]}`)
	f.Add(`{"kind":"PodList","items":[` + podJSON("a", notReady(crashLoop, crashed, 4)...) + `,{}]}`)
	f.Add(`{"kind":"PodList","items":[{"status":{"containerStatuses":[{"state":{"waiting":{}}}]}}]}`)
	f.Fuzz(func(t *testing.T, text string) {
		pods, err := parsePods(strings.NewReader(text))
		if err != nil {
			return
		}
		c := Options{NodeName: "till-1"}.pods()[0]
		if got := c.judge(c.counted(pods), map[string]bool{}, time.Now()); got.Text == "" || got.Permanent {
			t.Errorf("found %+v", got)
		}
	})
}
