package node

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"

	"github.com/cairn-os/cairn/pkg/node/declared"
)

const (
	// declareSoon and declareLate bound the pause before the declaration is written, which doubles while writing fails
	// or somebody changes what was written.
	declareSoon = 100 * time.Millisecond
	declareLate = time.Minute
	// declareLimit bounds one request.
	declareLimit = 10 * time.Second
)

// declare keeps what the configuration wants of the own Node on it, where the control plane reads and applies it.
func (n *node) declare(ctx context.Context) error {
	text, err := declared.Declaration{Labels: n.Labels, Taints: n.Taints}.Text()
	if err != nil {
		return err
	}
	d := declarer{client: n.client, name: n.Name, text: text, log: n.log}
	return d.run(ctx)
}

// declarer keeps one annotation of one Node, with no more than a kubelet's rights.
type declarer struct {
	client     kubernetes.Interface
	name, text string
	log        *slog.Logger
}

// run writes the annotation when the Node appears, and when its annotation is another one, until ctx ends.
func (d declarer) run(ctx context.Context) error {
	// The Node authorizer lets a kubelet watch its own Node alone.
	only := fields.OneTermEqualSelector(metav1.ObjectNameField, d.name).String()
	factory := informers.NewSharedInformerFactoryWithOptions(d.client, 0,
		informers.WithTweakListOptions(func(o *metav1.ListOptions) { o.FieldSelector = only }), informers.WithTransform(annotationsOf))
	queue := workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[string](declareSoon, declareLate))
	seen := func(o any) {
		switch node, ok := o.(*corev1.Node); {
		case !ok || node.Name != d.name:
		case node.Annotations[declared.Annotation] == d.text:
			queue.Forget(d.name)
		default:
			queue.AddRateLimited(d.name)
		}
	}
	informer := factory.Core().V1().Nodes().Informer()
	if _, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: seen, UpdateFunc: func(_, o any) { seen(o) }}); err != nil {
		return fmt.Errorf("watch the own node: %w", err)
	}
	factory.Start(ctx.Done())
	defer factory.Shutdown()
	defer context.AfterFunc(ctx, queue.ShutDown)()
	for {
		name, stopped := queue.Get()
		if stopped {
			return nil
		}
		err := d.write(ctx, informer.GetStore())
		if err != nil && ctx.Err() == nil {
			d.log.Warn("labels and taints not declared", "node", name, "error", err)
			queue.AddRateLimited(name)
		}
		queue.Done(name)
	}
}

// write declares, if the Node known still needs it.
func (d declarer) write(ctx context.Context, known cache.Store) error {
	o, _, err := known.GetByKey(d.name)
	if node, ok := o.(*corev1.Node); err != nil || !ok || node.Annotations[declared.Annotation] == d.text {
		return err
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": map[string]string{declared.Annotation: d.text}}})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, declareLimit)
	defer cancel()
	_, err = d.client.CoreV1().Nodes().Patch(ctx, d.name, types.MergePatchType, patch, metav1.PatchOptions{})
	if apierrors.IsNotFound(err) {
		return nil // It is written when the Node appears.
	}
	if err == nil {
		d.log.Info("labels and taints declared", "declaration", d.text)
	}
	return err
}

// annotationsOf drops what is not looked at, most of all the names of the images.
func annotationsOf(o any) (any, error) {
	node, ok := o.(*corev1.Node)
	if !ok {
		return o, nil
	}
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{
		Name: node.Name, UID: node.UID, ResourceVersion: node.ResourceVersion, Annotations: node.Annotations,
	}}, nil
}
