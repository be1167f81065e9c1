// Package nodes keeps Nodes as their machines and their owner want them: it applies the labels and taints that machines
// declare, and takes a machine out of the cluster when its Node is deleted.
//
// One controller runs in the whole cluster, on the server that leads the controllers. All of its state is in the
// cluster: it may end at any instruction, and the next one goes on from what is there.
//
// # A server is removed
//
// Nodes of servers carry a finalizer, so that a deleted one stays until these steps are done, in this order:
//
//  1. When the store's member of the server leads, another one is made the leader.
//  2. The member is taken out of the store. Nothing happens while the store would lose its quorum by that.
//  3. The Secret with the machine's identity is deleted: its certificates are not renewed any more.
//  4. The finalizer is taken off, and the Node is gone.
//
// Each step first looks whether it is still to be done, so that it does not matter where the last controller stopped. The
// server that is removed loses its store in step 2 and cannot do the others: its controller ends with ErrHandOver, and
// another server's goes on. The machine may be running or not. An agent has no finalizer: its Secret is deleted when its
// Node is, or within minutes when nobody saw that.
package nodes

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"

	"github.com/cairn-os/cairn/pkg/node/declared"
)

const (
	// Finalizer is on the Nodes of servers: their stores' members go before the Node does.
	Finalizer = "cairn-os.io/member"

	// component is whose Events these are.
	component = "cairn-nodes"

	// retrySoon and retryLate bound the pause before what failed, or must wait, is tried again; it doubles.
	retrySoon = 200 * time.Millisecond
	retryLate = 15 * time.Second
	// requestLimit bounds one request to the cluster, storeLimit one to the store, where a change of voters takes as
	// long as they need to catch up.
	requestLimit = 15 * time.Second
	storeLimit   = 150 * time.Second
	// sayAgain is after what time an unchanged message is made an Event again. Events last an hour.
	sayAgain = 30 * time.Minute
)

// ErrHandOver ends a controller that runs on the very server whose Node is being deleted. Another server's must go on,
// which is there and Ready: whoever runs this one gives the lead away.
var ErrHandOver = errors.New("this server's Node is being deleted: another server must lead the controllers to remove it")

// What work that is not done yet ends with; why has been told.
var (
	errLater = errors.New("later") // something else must happen first
	errAgain = errors.New("again") // a step was taken, another one is next
)

// Options of a Controller.
type Options struct {
	Client kubernetes.Interface // with an administrator's rights
	Node   string               // name of the own machine's Node
	Store  StoreMembers         // nil with an external datastore, which has no members here
	Log    *slog.Logger
	Now    func() time.Time // nil is time.Now
}

// Controller keeps all Nodes. Its Run may be called again after it returned, not twice at a time.
type Controller struct {
	o       Options
	nodes   corelisters.NodeLister
	secrets corelisters.SecretNamespaceLister
	said    map[string]said // by Node; the worker's alone
}

// said is the last Event on a Node.
type said struct {
	text string
	at   time.Time
}

// key is a piece of work: a Node to look at, or one that went.
type key struct {
	name string
	gone string // resource version of the deletion
}

// New returns a controller that does nothing until it is run.
func New(o Options) *Controller {
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Controller{o: o}
}

// Run keeps the Nodes until ctx ends, and then returns nil. The only other errors than ErrHandOver are of its set-up.
func (c *Controller) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c.said = map[string]said{}
	queue := workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[key](retrySoon, retryLate))
	defer queue.ShutDown()
	stop, err := c.watch(ctx, queue)
	if err != nil {
		return err
	}
	defer stop()
	defer context.AfterFunc(ctx, queue.ShutDown)()
	swept := make(chan struct{})
	go func() { defer close(swept); c.sweepAlways(ctx) }()
	defer func() { cancel(); <-swept }()
	return c.work(ctx, queue)
}

// work does what is queued, one piece at a time, until ctx ends.
func (c *Controller) work(ctx context.Context, queue workqueue.TypedRateLimitingInterface[key]) error {
	for {
		k, stopped := queue.Get()
		if stopped {
			return nil
		}
		err := c.reconcile(ctx, k)
		queue.Done(k)
		switch {
		case err == nil:
			queue.Forget(k)
			continue
		case errors.Is(err, ErrHandOver):
			return err
		case errors.Is(err, errAgain):
			queue.Forget(k)
			queue.AddAfter(k, retrySoon)
			continue
		case ctx.Err() != nil || errors.Is(err, errLater):
		case apierrors.IsConflict(err): // a starting kubelet and the controllers write often
			c.o.Log.Debug("node changed meanwhile", "node", k.name)
		default:
			c.o.Log.Error("node not kept", "node", k.name, "error", err)
		}
		queue.AddRateLimited(k)
	}
}

// watch fills the queue, and returns when all is known what there is. stop waits for what it started.
func (c *Controller) watch(ctx context.Context, queue workqueue.TypedRateLimitingInterface[key]) (stop func(), err error) {
	all := informers.NewSharedInformerFactoryWithOptions(c.o.Client, 0, informers.WithTransform(slim))
	identities := informers.NewSharedInformerFactoryWithOptions(c.o.Client, 0, informers.WithNamespace(metav1.NamespaceSystem),
		informers.WithTweakListOptions(func(o *metav1.ListOptions) { o.FieldSelector = "type=" + string(identityType) }))
	stop = func() { all.Shutdown(); identities.Shutdown() }
	nodes, secrets := all.Core().V1().Nodes(), identities.Core().V1().Secrets()
	c.nodes, c.secrets = nodes.Lister(), secrets.Lister().Secrets(metav1.NamespaceSystem)
	if _, err := nodes.Informer().AddEventHandler(nodeHandler(queue)); err != nil {
		return nil, fmt.Errorf("watch nodes: %w", err)
	}
	changed := func(o any) {
		if s, ok := o.(*corev1.Secret); ok {
			queue.Add(key{name: nodeOf(s)})
		}
	}
	// A Secret that goes changes nothing: its Node keeps what it has until somebody joins with the name again.
	if _, err := secrets.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: changed, UpdateFunc: func(_, o any) { changed(o) },
	}); err != nil {
		return nil, fmt.Errorf("watch identities: %w", err)
	}
	for _, f := range []informers.SharedInformerFactory{identities, all} {
		f.Start(ctx.Done())
		f.WaitForCacheSync(ctx.Done())
	}
	return stop, nil
}

func nodeHandler(queue workqueue.TypedRateLimitingInterface[key]) cache.ResourceEventHandler {
	return cache.ResourceEventHandlerFuncs{
		AddFunc: func(o any) {
			if n, ok := o.(*corev1.Node); ok {
				queue.Add(key{name: n.Name})
			}
		},
		UpdateFunc: func(before, after any) {
			b, _ := before.(*corev1.Node)
			if a, ok := after.(*corev1.Node); ok && (b == nil || differs(b, a)) {
				queue.Add(key{name: a.Name})
			}
		},
		DeleteFunc: func(o any) {
			if missed, ok := o.(cache.DeletedFinalStateUnknown); ok {
				o = missed.Obj
			}
			if n, ok := o.(*corev1.Node); ok {
				queue.Add(key{name: n.Name, gone: n.ResourceVersion})
			}
		},
	}
}

// differs reports whether something changed that this controller looks at: kubelets write what else they do every few
// minutes.
func differs(a, b *corev1.Node) bool {
	notes := func(n *corev1.Node) [3]string {
		return [3]string{n.Annotations[declared.Annotation], n.Annotations[ownedLabels], n.Annotations[ownedTaints]}
	}
	return a.UID != b.UID || a.DeletionTimestamp.IsZero() != b.DeletionTimestamp.IsZero() || notes(a) != notes(b) ||
		!maps.Equal(a.Labels, b.Labels) || !slices.Equal(a.Finalizers, b.Finalizers) || !sameTaints(a.Spec.Taints, b.Spec.Taints)
}

// slim drops what is not looked at, most of all the names of the images.
func slim(o any) (any, error) {
	n, ok := o.(*corev1.Node)
	if !ok {
		return o, nil
	}
	s := &corev1.Node{ObjectMeta: n.ObjectMeta, Spec: corev1.NodeSpec{Taints: n.Spec.Taints}}
	s.ManagedFields = nil
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			s.Status.Conditions = []corev1.NodeCondition{{Type: c.Type, Status: c.Status}}
		}
	}
	return s, nil
}

// tell makes an Event on the Node, unless that is what it was told last. It is not one of client-go's recorders, which
// write some time later: the controller may end right after this.
func (c *Controller) tell(ctx context.Context, node *corev1.Node, kind, reason, text string) {
	now := c.o.Now()
	if last := c.said[node.Name]; last.text == text && now.Sub(last.at) < sayAgain && !now.Before(last.at) {
		return
	}
	c.o.Log.Info("node: "+reason, "node", node.Name, "message", text)
	ctx, cancel := context.WithTimeout(ctx, requestLimit)
	defer cancel()
	at := metav1.NewTime(now)
	_, err := c.o.Client.CoreV1().Events(metav1.NamespaceDefault).Create(ctx, &corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{Name: fmt.Sprintf("%s.%x", node.Name, now.UnixNano()), Namespace: metav1.NamespaceDefault},
		InvolvedObject: corev1.ObjectReference{APIVersion: "v1", Kind: "Node", Name: node.Name, UID: node.UID},
		Type:           kind, Reason: reason, Message: text, Count: 1, FirstTimestamp: at, LastTimestamp: at,
		Source: corev1.EventSource{Component: component}, ReportingController: component,
	}, metav1.CreateOptions{})
	if err != nil {
		c.o.Log.Warn("event not written", "node", node.Name, "error", err)
		return
	}
	c.said[node.Name] = said{text, now}
}
