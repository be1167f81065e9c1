package runner

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	toolswatch "k8s.io/client-go/tools/watch"
)

// connect returns a client without a time limit, for watches.
func connect(cfg *rest.Config) (*Cluster, error) {
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return nil, err
	}
	return &Cluster{client}, nil
}

// writeSeries writes numbers to a ConfigMap of its own through one server, five a second, each until it is accepted or two
// seconds have passed.
type writeSeries struct {
	name string

	mu      sync.Mutex
	times   []time.Time     // of begin and of the accepted writes since
	numbers map[string]bool // that were accepted
}

// begin starts a measurement.
func (w *writeSeries) begin() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.times = []time.Time{time.Now()}
}

// end returns the longest time without an accepted write since begin, and how long the last one is ago.
func (w *writeSeries) end() (longest, since time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := 1; i < len(w.times); i++ {
		longest = max(longest, w.times[i].Sub(w.times[i-1]))
	}
	since = time.Since(w.times[len(w.times)-1])
	return max(longest, since), since
}

// accepted waits for the first write that is accepted after a moment and returns how long after that is.
func (w *writeSeries) accepted(ctx context.Context, after time.Time) (time.Duration, error) {
	for {
		w.mu.Lock()
		i := slices.IndexFunc(w.times, after.Before)
		if i >= 0 {
			defer w.mu.Unlock()
			return w.times[i].Sub(after), nil
		}
		w.mu.Unlock()
		select {
		case <-ctx.Done():
			return 0, fmt.Errorf("%s accepts no write: %w", w.name, ctx.Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (w *writeSeries) run(ctx context.Context, c kubernetes.Interface) {
	maps := c.CoreV1().ConfigMaps(namespace)
	for n := 0; ctx.Err() == nil; n++ {
		number := strconv.Itoa(n)
		attempt, done := context.WithTimeout(ctx, 2*time.Second)
		_, err := maps.Update(attempt, seriesMap(w.name, number), metav1.UpdateOptions{})
		done()
		if err == nil {
			w.mu.Lock()
			w.times = append(w.times, time.Now())
			w.numbers[number] = true
			w.mu.Unlock()
		}
		pause(ctx, 200*time.Millisecond)
	}
}

func seriesMap(name, number string) *corev1.ConfigMap {
	return &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: "series-" + name, Labels: map[string]string{"series": name}},
		Data:       map[string]string{"number": number},
	}
}

// followWrites writes through each server and watches all of it through each, as a client does that takes up its watch
// where it was. What it returns ends that: it expects that every watch shows writes of after a moment, and that none of
// those that were accepted is missing.
func followWrites(ctx context.Context, t *testing.T, doors map[string]*door) (map[string]*writeSeries, func(after time.Time)) {
	t.Helper()
	all := map[string]*writeSeries{}
	version := ""
	for name, d := range doors {
		maps := d.CoreV1().ConfigMaps(namespace)
		made, err := maps.Create(ctx, seriesMap(name, "none"), metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) {
			made, err = maps.Update(ctx, seriesMap(name, "none"), metav1.UpdateOptions{})
		}
		if err != nil {
			t.Fatal(err)
		}
		version = made.ResourceVersion
		all[name] = &writeSeries{name: name, times: []time.Time{time.Now()}, numbers: map[string]bool{}}
	}
	running, stop := context.WithCancel(ctx)
	var writers, watchers sync.WaitGroup
	seen := map[string]*seenWrites{}
	for name, d := range doors {
		seen[name] = &seenWrites{by: name, numbers: map[string]bool{}, changed: make(chan struct{})}
		w, err := toolswatch.NewRetryWatcherWithContext(ctx, version, seriesWatch(d.Cluster))
		if err != nil {
			t.Fatal(err)
		}
		watchers.Go(func() { seen[name].take(w) })
		t.Cleanup(w.Stop)
		writers.Go(func() { all[name].run(running, d) })
	}
	return all, func(after time.Time) {
		t.Helper()
		stop()
		writers.Wait()
		for _, s := range seen {
			for name, w := range all {
				if err := s.await(ctx, name, w); err != nil {
					t.Error(err)
				}
			}
			t.Logf("the watch through %s went on %.2f s after the link was whole and shows all writes", s.by, s.resumed(after).Seconds())
		}
	}
}

func seriesWatch(c kubernetes.Interface) cache.WatcherWithContext {
	return &cache.ListWatch{WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
		o.LabelSelector = "series"
		return c.CoreV1().ConfigMaps(namespace).Watch(ctx, o)
	}}
}

// seenWrites are what a watch showed.
type seenWrites struct {
	by string

	mu      sync.Mutex
	numbers map[string]bool // series and number
	times   []time.Time     // of all events
	ended   error
	changed chan struct{} // closed and replaced at each event
}

func (s *seenWrites) take(w watch.Interface) {
	for e := range w.ResultChan() {
		m, ok := e.Object.(*corev1.ConfigMap)
		s.mu.Lock()
		if ok {
			s.numbers[m.Labels["series"]+" "+m.Data["number"]] = true
			s.times = append(s.times, time.Now())
		} else {
			s.ended = fmt.Errorf("the watch through %s shows %v: %+v", s.by, e.Type, e.Object)
		}
		close(s.changed)
		s.changed = make(chan struct{})
		s.mu.Unlock()
	}
}

// await waits until the watch has shown all of a series.
func (s *seenWrites) await(ctx context.Context, name string, w *writeSeries) error {
	w.mu.Lock()
	want := make([]string, 0, len(w.numbers))
	for number := range w.numbers {
		want = append(want, name+" "+number)
	}
	w.mu.Unlock()
	for {
		s.mu.Lock()
		missing := 0
		for _, number := range want {
			if !s.numbers[number] {
				missing++
			}
		}
		changed, ended := s.changed, s.ended
		s.mu.Unlock()
		if missing == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the watch through %s lacks %d of %d writes of %s: %w", s.by, missing, len(want), name, errors.Join(ctx.Err(), ended))
		case <-changed:
		}
	}
}

// resumed is how long after a moment the first event came.
func (s *seenWrites) resumed(after time.Time) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, at := range s.times {
		if at.After(after) {
			return at.Sub(after)
		}
	}
	return 0
}
