package cluster

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
)

// clients is the number of those that ask at the same time.
const clients = 4

// Kinds of requests, in the order in which a client sends them over and over.
const (
	getPod = iota
	listAll
	listCached
	patchMap
	requestKinds
)

// requestNames are those of the figures.
func requestNames() [requestKinds]string {
	return [requestKinds]string{"GET of a pod", "LIST of the pods", "LIST of the pods from the cache", "PATCH of a ConfigMap"}
}

// latencies are the times of requests that were answered well, by their kind.
type latencies [requestKinds][]time.Duration

// ask lets clients with connections of their own send requests for so long.
// The answers are not decoded: the clients share the processors with what they
// measure.
func (m *machine) ask(ctx context.Context, long time.Duration) (latencies, error) {
	api, err := m.client(ctx)
	if err != nil {
		return latencies{}, err
	}
	pods, err := listPods(ctx, api)
	if err != nil {
		return latencies{}, err
	}
	if len(pods) == 0 {
		return latencies{}, errors.New("ask: no pods")
	}
	var (
		all   latencies
		mu    sync.Mutex // guards all and errs
		errs  []error
		group sync.WaitGroup
	)
	deadline := time.Now().Add(long)
	for i := range clients {
		own, err := m.client(ctx)
		if err != nil {
			return latencies{}, err
		}
		c := asker{api: own, config: fmt.Sprintf("patched-%d", i), pod: pods[i%len(pods)].Name}
		group.Go(func() {
			err := c.run(ctx, deadline)
			mu.Lock()
			defer mu.Unlock()
			errs = append(errs, err)
			for kind := range all {
				all[kind] = append(all[kind], c.took[kind]...)
			}
		})
	}
	group.Wait()
	return all, errors.Join(errs...)
}

// asker is one client.
type asker struct {
	api         kubernetes.Interface
	config, pod string // the objects that it asks for
	took        latencies
}

func (a *asker) run(ctx context.Context, deadline time.Time) error {
	maps := a.api.CoreV1().ConfigMaps(namespace)
	if _, err := maps.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: a.config}}, metav1.CreateOptions{}); err != nil {
		return err
	}
	for n := 0; time.Now().Before(deadline); n++ {
		kind := n % requestKinds
		begin := time.Now()
		if err := a.request(ctx, kind, n); err != nil {
			return fmt.Errorf("%s: %w", requestNames()[kind], err)
		}
		a.took[kind] = append(a.took[kind], time.Since(begin))
	}
	return maps.Delete(ctx, a.config, metav1.DeleteOptions{})
}

func (a *asker) request(ctx context.Context, kind, n int) error {
	rest := a.api.CoreV1().RESTClient()
	var err error
	switch kind {
	case getPod:
		_, err = rest.Get().Namespace(namespace).Resource("pods").Name(a.pod).DoRaw(ctx)
	case listAll: // as kubectl does: what any client wrote before is in it
		_, err = rest.Get().Namespace(namespace).Resource("pods").DoRaw(ctx)
	case listCached: // as controllers do
		_, err = rest.Get().Namespace(namespace).Resource("pods").Param("resourceVersion", "0").DoRaw(ctx)
	case patchMap:
		_, err = rest.Patch(types.MergePatchType).Namespace(namespace).Resource("configmaps").Name(a.config).
			Body(fmt.Appendf(nil, `{"data":{"n":"%d"}}`, n)).DoRaw(ctx)
	}
	return err
}
