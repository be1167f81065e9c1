package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/cairn-os/cairn/pkg/bench"
)

const (
	namespace = "default"
	// firstPod is created as soon as the API takes it.
	firstPod = "first"
	// startLimit is how long a machine may take.
	startLimit = 3 * time.Minute
)

// started tells when things came about, since power-on.
type started struct {
	ready time.Duration // the Node is Ready
	pod   time.Duration // a container runs
}

// follow follows a machine that was just powered on until its node is Ready
// and, unless image is empty, a pod of that image runs on it.
func (m *machine) follow(ctx context.Context, image string) (s started, err error) {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	api, err := m.client(ctx)
	if err != nil {
		return s, err
	}
	attended := make(chan error, 1)
	go func() { attended <- m.kind.attend(ctx, m) }()
	defer func() {
		if err != nil {
			cancel()
		}
		err = errors.Join(err, <-attended)
	}()
	created := false
	err = m.wait(ctx, "the node is Ready and runs a pod", func(ctx context.Context) (bool, error) {
		// An attempt that hangs costs no more than this.
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		if s.ready == 0 {
			ready, err := m.isReady(ctx, api)
			if ready {
				s.ready = time.Since(m.began)
			} else if err != nil {
				return false, err
			}
		}
		if image == "" {
			return s.ready > 0, nil
		}
		if !created {
			_, err := api.CoreV1().Pods(namespace).Create(ctx, barePod(firstPod, m.name, image), metav1.CreateOptions{})
			created = err == nil || apierrors.IsAlreadyExists(err)
			return false, err
		}
		runs, err := m.runsPod(ctx, api)
		if runs && s.pod == 0 {
			s.pod = time.Since(m.began)
		}
		return s.pod > 0 && s.ready > 0, err
	})
	return s, err
}

// isReady reports whether the node is Ready by what its kubelet said since the
// machine was powered on: before that is another life.
func (m *machine) isReady(ctx context.Context, api kubernetes.Interface) (bool, error) {
	n, err := api.CoreV1().Nodes().Get(ctx, m.name, metav1.GetOptions{})
	if err != nil {
		return false, err
	}
	for _, c := range n.Status.Conditions {
		if c.Type != corev1.NodeReady {
			continue
		}
		if c.Status != corev1.ConditionTrue {
			return false, errors.New(c.Message)
		}
		return m.sincePowerOn(c.LastHeartbeatTime), nil
	}
	return false, errors.New("the node says nothing of being Ready")
}

func (m *machine) runsPod(ctx context.Context, api kubernetes.Interface) (bool, error) {
	p, err := api.CoreV1().Pods(namespace).Get(ctx, firstPod, metav1.GetOptions{})
	if err != nil {
		return false, err
	}
	for _, c := range p.Status.ContainerStatuses {
		if r := c.State.Running; r != nil && m.sincePowerOn(r.StartedAt) {
			return true, nil
		}
	}
	return false, fmt.Errorf("pod %s: %s %s", p.Name, p.Status.Phase, p.Status.Message)
}

// sincePowerOn compares with a time of the API, which has whole seconds.
func (m *machine) sincePowerOn(t metav1.Time) bool {
	return !t.Time.Before(m.began.Truncate(time.Second))
}

// barePod is a pod of the demonstration image on a node.
func barePod(name, node, image string) *corev1.Pod {
	soon := int64(1)
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PodSpec{
			NodeSelector:                  map[string]string{corev1.LabelHostname: node},
			TerminationGracePeriodSeconds: &soon,
			Containers:                    []corev1.Container{{Name: "hello", Image: image, ImagePullPolicy: corev1.PullNever}},
		},
	}
}

// dropCaches forgets everything that the kernel read from disks.
func dropCaches() error {
	unix.Sync() // what is not on the disk cannot be forgotten
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err != nil {
		return fmt.Errorf("drop the disk cache: %w", err)
	}
	return nil
}

// starts measures power-on to Ready of the first machines, in turns.
func (r *run) starts(ctx context.Context, both pair[*cluster]) error {
	sorts := []struct {
		name       string
		cold, kept bool
	}{
		{"first start, warm", false, false}, {"start again, warm", false, true},
		{"first start, cold", true, false}, {"start again, cold", true, true},
	}
	for _, sort := range sorts {
		if sort.cold {
			if err := dropCaches(); errors.Is(err, os.ErrPermission) || errors.Is(err, os.ErrNotExist) {
				r.notes = append(r.notes, "no cold starts: "+err.Error())
				break
			} else if err != nil {
				return err
			}
		}
		var ready, pod pair[[]time.Duration]
		err := r.turns(r.Plan.Starts, sort.name, both, func(i int, _ *machine) error {
			s, err := both[i].measureStart(ctx, r.Built.HelloTag, sort.cold, sort.kept)
			ready[i], pod[i] = append(ready[i], s.ready), append(pod[i], s.pod)
			return err
		})
		if err != nil {
			return err
		}
		r.addSeconds(sort.name+": power-on to Ready", bench.AtMostPeer(startGoal), bench.Median(ready[0]), bench.Median(ready[1]))
		r.addSeconds(sort.name+": power-on to a pod runs", bench.AtMostPeer(startGoal), bench.Median(pod[0]), bench.Median(pod[1]))
	}
	return nil
}

// measureStart starts the only machine of c and cuts its power again. With
// kept, it has been started before.
func (c *cluster) measureStart(ctx context.Context, image string, cold, kept bool) (s started, err error) {
	m := c.machines[0]
	if !kept || m.config == nil {
		if err := m.wipe(); err != nil {
			return s, err
		}
		if err := c.kind.prepare(c); err != nil {
			return s, err
		}
	}
	if cold {
		if err := dropCaches(); err != nil {
			return s, err
		}
	}
	if err := m.start(ctx); err != nil {
		return s, err
	}
	s, err = m.follow(ctx, image)
	// What was just written reaches the disk, as it does within seconds: a cut at this very moment is another test's.
	if err == nil {
		err = pause(ctx, 2*time.Second)
	}
	return s, errors.Join(err, m.kill())
}
