package approver

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/endpoints/handlers/responsewriters"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
)

// TestKubeletAnswers asks kubelets by an apiserver, whose word that it reaches none is the only one that counts as silence.
func TestKubeletAnswers(t *testing.T) {
	said := map[string]func(http.ResponseWriter){
		"well":        func(http.ResponseWriter) {},
		"ails":        func(w http.ResponseWriter) { http.Error(w, "[-]syncloop failed", http.StatusInternalServerError) },
		"refuses":     func(w http.ResponseWriter) { http.Error(w, "Unauthorized", http.StatusUnauthorized) },
		"old":         func(w http.ResponseWriter) { http.NotFound(w, nil) },
		"unavailable": func(w http.ResponseWriter) { http.Error(w, "starting", http.StatusServiceUnavailable) },
	}
	told := map[string]error{
		"gone":     apierrors.NewServiceUnavailable("error trying to reach service: No agent available"),
		"no-node":  apierrors.NewNotFound(schema.GroupResource{Resource: "nodes"}, "no-node"),
		"busy":     apierrors.NewServiceUnavailable("the apiserver stops"),
		"internal": apierrors.NewInternalError(errors.New("no preferred addresses found")),
		"denied":   apierrors.NewForbidden(schema.GroupResource{Resource: "nodes"}, "denied", errors.New("RBAC")),
	}
	mux := http.NewServeMux()
	for node, say := range said {
		mux.HandleFunc("/api/v1/nodes/"+node+"/proxy/healthz/ping", func(w http.ResponseWriter, _ *http.Request) { say(w) })
	}
	for node, err := range told {
		mux.HandleFunc("/api/v1/nodes/"+node+"/proxy/healthz/ping", func(w http.ResponseWriter, r *http.Request) {
			responsewriters.ErrorNegotiated(err, scheme.Codecs, schema.GroupVersion{Version: "v1"}, w, r)
		})
	}
	mux.HandleFunc("/api/v1/nodes/slow/", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	apiserver := httptest.NewServer(mux)
	defer apiserver.Close()
	client, err := kubernetes.NewForConfig(&rest.Config{Host: apiserver.URL})
	if err != nil {
		t.Fatal(err)
	}
	const yes, no, unknown = "answers", "does not answer", "is not known"
	for node, want := range map[string]string{
		"well": yes, "ails": yes, "refuses": yes, "old": yes, "unavailable": yes,
		"gone": no, "no-node": no,
		"busy": unknown, "internal": unknown, "denied": unknown, "slow": unknown,
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		if node == "slow" {
			ctx, cancel = context.WithTimeout(t.Context(), 50*time.Millisecond)
		}
		answers, err := kubeletAnswers(ctx, client, node)
		cancel()
		got := no
		switch {
		case err != nil:
			got = unknown
		case answers:
			got = yes
		}
		if got != want {
			t.Errorf("%s: %s (%v); want: %s", node, got, err, want)
		}
	}
}

// TestQuestions puts questions at once and beside the queue, one to each kubelet, and hears their answers for a while.
func TestQuestions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		asked := make(chan string, 100)
		q := &questions{ctx: ctx, now: time.Now, asked: map[string]*question{}, ask: func(ctx context.Context, node string) (bool, error) {
			asked <- node
			if node == "well" {
				return true, nil
			}
			<-ctx.Done()
			return false, ctx.Err()
		}}
		called := 0
		again := make(chan struct{}, 10)
		wait := func() {
			t.Helper()
			<-again
			called++
		}
		done := func() { again <- struct{}{} }
		begin := time.Now()
		for range 2 { // another request for the same addresses
			if got := q.put([]string{"gone", "dead", "well"}, done); got != nil {
				t.Fatalf("put = %v; want nothing yet", got)
			}
		}
		if took := time.Since(begin); took != 0 {
			t.Errorf("put took %v", took)
		}
		wait()
		wait()
		if took := time.Since(begin); took != answerLimit {
			t.Errorf("answers after %v; want %v", took, answerLimit)
		}
		got := q.put([]string{"gone", "well"}, done)
		if len(got) != 2 || got["well"].lives() == nil || !errors.Is(got["gone"].lives(), context.DeadlineExceeded) {
			t.Errorf("answers %+v", got)
		}
		if len(asked) != 3 {
			t.Errorf("%d kubelets were asked; want 3", len(asked))
		}
		time.Sleep(answerLasts)
		if got := q.put([]string{"well"}, done); got != nil {
			t.Error("an old answer counted")
		}
		wait()
		q.put([]string{"gone"}, done)
		cancel() // as Run does
		q.running.Wait()
		if len(again) != 1 || called != 3 {
			t.Errorf("called %d times and %d in the end", called, len(again))
		}
	})
}
