package runner

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

const (
	namespace = "default"
	helloName = "hello"
	// HelloPort is the node port of the demonstration's Service.
	HelloPort = 30080
	helloText = "Hello from Cairn"
)

// Cluster is a client of a machine's Kubernetes.
type Cluster struct {
	kubernetes.Interface
}

// Connect returns a client by the kubeconfig at path. It does not wait for
// the server.
func Connect(path string) (*Cluster, error) {
	cfg, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		return nil, err
	}
	cfg.Timeout = 30 * time.Second
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return nil, err
	}
	return &Cluster{client}, nil
}

// poll calls cond every half second until it is done. What cond's last error
// was is part of the error when ctx ends first.
func poll(ctx context.Context, what string, cond func(context.Context) (bool, error)) error {
	var last error
	err := wait.PollUntilContextCancel(ctx, 500*time.Millisecond, true, func(ctx context.Context) (bool, error) {
		done, err := cond(ctx)
		if err != nil {
			last = err
		}
		return done, nil
	})
	if err != nil {
		return fmt.Errorf("wait until %s: %w", what, errors.Join(err, last))
	}
	return nil
}

// WaitNodeReady waits until the node name is Ready.
func (c *Cluster) WaitNodeReady(ctx context.Context, name string) error {
	return poll(ctx, "node "+name+" is Ready", func(ctx context.Context) (bool, error) {
		node, err := c.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return false, err
		}
		for _, cond := range node.Status.Conditions {
			if cond.Type == corev1.NodeReady {
				if cond.Status == corev1.ConditionTrue {
					return true, nil
				}
				return false, errors.New(cond.Message)
			}
		}
		return false, errors.New("no Ready condition yet")
	})
}

// DeployHello creates the demonstration: a Deployment of image and a Service
// of type NodePort on HelloPort.
func (c *Cluster) DeployHello(ctx context.Context, image string) error {
	labels := map[string]string{"app": helloName}
	meta := metav1.ObjectMeta{Name: helloName, Labels: labels}
	deployment := &appsv1.Deployment{ObjectMeta: meta, Spec: appsv1.DeploymentSpec{
		Selector: &metav1.LabelSelector{MatchLabels: labels},
		Template: corev1.PodTemplateSpec{
			ObjectMeta: metav1.ObjectMeta{Labels: labels},
			Spec: corev1.PodSpec{Containers: []corev1.Container{{
				Name: helloName, Image: image, ImagePullPolicy: corev1.PullNever,
				Ports: []corev1.ContainerPort{{ContainerPort: 8080}},
				ReadinessProbe: &corev1.Probe{PeriodSeconds: 1, ProbeHandler: corev1.ProbeHandler{
					HTTPGet: &corev1.HTTPGetAction{Path: "/", Port: intstr.FromInt32(8080)},
				}},
			}}},
		},
	}}
	service := &corev1.Service{ObjectMeta: meta, Spec: corev1.ServiceSpec{
		Type: corev1.ServiceTypeNodePort, Selector: labels,
		Ports: []corev1.ServicePort{{Port: 80, TargetPort: intstr.FromInt32(8080), NodePort: HelloPort}},
	}}
	// Not "create, unless it exists": the API server looks at the node port
	// first, and reports that as taken.
	if _, err := c.AppsV1().Deployments(namespace).Get(ctx, helloName, metav1.GetOptions{}); apierrors.IsNotFound(err) {
		if _, err := c.AppsV1().Deployments(namespace).Create(ctx, deployment, metav1.CreateOptions{}); err != nil {
			return fmt.Errorf("create deployment %s: %w", helloName, err)
		}
	} else if err != nil {
		return err
	}
	if _, err := c.CoreV1().Services(namespace).Get(ctx, helloName, metav1.GetOptions{}); apierrors.IsNotFound(err) {
		if _, err := c.CoreV1().Services(namespace).Create(ctx, service, metav1.CreateOptions{}); err != nil {
			return fmt.Errorf("create service %s: %w", helloName, err)
		}
	} else if err != nil {
		return err
	}
	return nil
}

// WaitPod waits until a pod of the label app=name is ready and returns it.
func (c *Cluster) WaitPod(ctx context.Context, name string) (*corev1.Pod, error) {
	var ready *corev1.Pod
	err := poll(ctx, "a pod of "+name+" is ready", func(ctx context.Context) (bool, error) {
		pods, err := c.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: "app=" + name})
		if err != nil {
			return false, err
		}
		for i := range pods.Items {
			if podReady(&pods.Items[i]) {
				ready = &pods.Items[i]
				return true, nil
			}
		}
		return false, fmt.Errorf("%d pods: %s", len(pods.Items), podStates(pods.Items))
	})
	return ready, err
}

func podReady(p *corev1.Pod) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue && p.DeletionTimestamp == nil
		}
	}
	return false
}

// podStates says in a line what each pod waits for.
func podStates(pods []corev1.Pod) string {
	var b strings.Builder
	for _, p := range pods {
		fmt.Fprintf(&b, "%s %s", p.Name, p.Status.Phase)
		for _, c := range p.Status.ContainerStatuses {
			if w := c.State.Waiting; w != nil {
				fmt.Fprintf(&b, " %s: %s", w.Reason, w.Message)
			}
		}
		b.WriteString("; ")
	}
	return b.String()
}

// FetchPage gets url until it answers with the demonstration's page.
func FetchPage(ctx context.Context, url string) error {
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	return poll(ctx, url+" serves the page", func(ctx context.Context) (bool, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return false, err
		}
		res, err := client.Do(req)
		if err != nil {
			return false, err
		}
		defer res.Body.Close()
		body, err := io.ReadAll(io.LimitReader(res.Body, 1<<16))
		if err != nil {
			return false, err
		}
		if res.StatusCode != http.StatusOK || !strings.Contains(string(body), helloText) {
			return false, fmt.Errorf("answered %s: %.200q", res.Status, body)
		}
		return true, nil
	})
}
