package cluster

import (
	"context"
	"fmt"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

const (
	deployment = "many"
	selector   = "app=" + deployment
	// podsLimit is how long all pods may take to start, or to go.
	podsLimit = 10 * time.Minute
)

// awaitAccount waits for what the controllers make at the first start and no
// pod is created without.
func (m *machine) awaitAccount(ctx context.Context, api kubernetes.Interface) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	return m.wait(ctx, "pods can be created", func(ctx context.Context) (bool, error) {
		_, err := api.CoreV1().ServiceAccounts(namespace).Get(ctx, "default", metav1.GetOptions{})
		return err == nil, err
	})
}

// deploy creates a Deployment and returns how long it took until all its pods
// were Ready.
func (m *machine) deploy(ctx context.Context, api kubernetes.Interface, count int, image string) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, podsLimit)
	defer cancel()
	labels, soon, replicas := map[string]string{"app": deployment}, int64(1), int32(count)
	begin := time.Now()
	_, err := api.AppsV1().Deployments(namespace).Create(ctx, &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: deployment},
		Spec: appsv1.DeploymentSpec{
			Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: corev1.PodSpec{
				TerminationGracePeriodSeconds: &soon,
				Containers:                    []corev1.Container{{Name: "hello", Image: image, ImagePullPolicy: corev1.PullNever}},
			}},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		return 0, err
	}
	err = m.wait(ctx, fmt.Sprintf("%d pods are Ready", count), func(ctx context.Context) (bool, error) {
		pods, err := listPods(ctx, api)
		if err != nil {
			return false, err
		}
		ready := 0
		for i := range pods {
			if podReady(&pods[i]) {
				ready++
			}
		}
		return ready == count, fmt.Errorf("%d are", ready)
	})
	return time.Since(begin), err
}

// remove deletes the Deployment and returns how long it took until the last
// pod was gone.
func (m *machine) remove(ctx context.Context, api kubernetes.Interface) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, podsLimit)
	defer cancel()
	begin := time.Now()
	if err := api.AppsV1().Deployments(namespace).Delete(ctx, deployment, metav1.DeleteOptions{}); err != nil {
		return 0, err
	}
	err := m.wait(ctx, "the pods are gone", func(ctx context.Context) (bool, error) {
		pods, err := listPods(ctx, api)
		if err != nil {
			return false, err
		}
		return len(pods) == 0, fmt.Errorf("%d are not", len(pods))
	})
	return time.Since(begin), err
}

func listPods(ctx context.Context, api kubernetes.Interface) ([]corev1.Pod, error) {
	list, err := api.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: selector, ResourceVersion: "0"})
	if err != nil {
		return nil, err
	}
	return list.Items, nil
}

func podReady(p *corev1.Pod) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue && p.DeletionTimestamp == nil
		}
	}
	return false
}

// loaded is what was measured of a system with pods.
type loaded struct {
	start, gone []time.Duration // of all pods, in each round
	cpu         []time.Duration // while they started
	account     account         // with all of them
	latencies   latencies
}

// load measures pods that start and go, and then the API with all of them, in
// turns: what else this machine does meanwhile disturbs both alike.
func (r *run) load(ctx context.Context, both pair[*cluster]) error {
	var l pair[loaded]
	var apis pair[*kubernetes.Clientset]
	for i, c := range both {
		var err error
		if apis[i], err = c.machines[0].client(ctx); err != nil {
			return err
		}
		if err := c.machines[0].awaitAccount(ctx, apis[i]); err != nil {
			return err
		}
	}
	err := r.turns(r.Plan.Rounds, "pods", both, func(i int, m *machine) error {
		if err := l[i].deploy(ctx, m, apis[i], r.Plan.Pods, r.Built.HelloTag); err != nil {
			return err
		}
		gone, err := m.remove(ctx, apis[i])
		l[i].gone = append(l[i].gone, gone)
		return err
	})
	if err != nil {
		return err
	}
	// Once more, to stay.
	err = r.turns(1, "pods that stay", both, func(i int, m *machine) error {
		return l[i].deploy(ctx, m, apis[i], r.Plan.Pods, r.Built.HelloTag)
	})
	if err != nil {
		return err
	}
	err = r.turns(r.Plan.Rounds, "requests", both, func(i int, m *machine) error {
		took, err := m.ask(ctx, r.Plan.Asked)
		for kind := range took {
			l[i].latencies[kind] = append(l[i].latencies[kind], took[kind]...)
		}
		return err
	})
	if err != nil {
		return err
	}
	r.loadFigures(l)
	return nil
}

// deploy starts the pods and notes what that took.
func (l *loaded) deploy(ctx context.Context, m *machine, api kubernetes.Interface, count int, image string) error {
	before, err := m.account()
	if err != nil {
		return err
	}
	start, err := m.deploy(ctx, api, count, image)
	if err != nil {
		return err
	}
	if l.account, err = m.account(); err != nil {
		return err
	}
	l.start, l.cpu = append(l.start, start), append(l.cpu, l.account.total().cpu-before.total().cpu)
	return nil
}
