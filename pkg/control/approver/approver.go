// Package approver gives machines the certificates of their Nodes: it approves and denies requests of kubelets, by which
// agents join and renew. The signers of the kube-controller-manager then sign what is approved.
//
// A machine may have certificates while it is recorded as an agent, for its own name alone, and to serve for addresses
// that are nobody else's: whoever serves for the address of a server or of another node could pose as that one towards
// the cluster. A denial says why, and a machine asks again later. Requests by others, and for other signers, are left
// alone.
//
// The address of an agent may go over to another machine, as a router may give it away when the first one is switched off
// for good. That the first one is gone must be certain, for the other could pose as it from then on: its kubelet must have
// been silent for minutes, its Node not be Ready for as long, which the cluster finds without looking at any clock's time,
// and its kubelet not answer when it is asked, which it does by the tunnel that its machine holds open. After a power cut
// all are silent, and nobody has a tunnel yet: a silence counts only from when an approver began to listen.
//
// What is approved is recorded first, in the Secret that says whose the node's name is: the addresses, which are the only
// ones of an agent that count anywhere, and the key of the client certificate, by which the front of the apiserver tells
// the machine from one that had the name before. A power cut between the two leaves a record of something that was not
// given, and the request, which is judged again.
package approver

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"

	"github.com/cairn-os/cairn/pkg/join"
	"github.com/cairn-os/cairn/pkg/membership"
)

const (
	// retrySoon and retryLate bound the pause before what failed is tried again; it doubles.
	retrySoon    = 200 * time.Millisecond
	retryLate    = 30 * time.Second
	requestLimit = 15 * time.Second
	// silence is after what time without a sign of life the address of an agent is no longer its own: the store's router
	// may have given it to another machine. Kubernetes gives up the pods of a node after the same time.
	silence = 5 * time.Minute
)

// errAsked says that a request is to be judged when kubelets that were asked have answered.
var errAsked = errors.New("kubelets are asked whether they live")

// Options of an Approver.
type Options struct {
	Client kubernetes.Interface // with an administrator's rights
	// Cluster are the networks of pods and Services, where no machine can be.
	Cluster []netip.Prefix
	Log     *slog.Logger
	Now     func() time.Time // nil is time.Now
	// Answers reports whether the kubelet of a node does; an error says that this is not known. Nil asks it by the apiserver,
	// and by that by its tunnel. It is called for several nodes at a time.
	Answers func(ctx context.Context, node string) (bool, error)
}

// Approver judges requests. Its Run may be called again after it returned, not twice at a time.
type Approver struct {
	o Options
	// Of one Run.
	began time.Time // with the monotonic clock: the time of day may be set meanwhile
	asks  *questions
	queue workqueue.TypedRateLimitingInterface[item]
}

// New returns an approver that does nothing until it is run.
func New(o Options) *Approver {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Answers == nil {
		o.Answers = func(ctx context.Context, node string) (bool, error) { return kubeletAnswers(ctx, o.Client, node) }
	}
	return &Approver{o: o}
}

// Run judges requests until ctx ends, and then returns nil. An error is one of its set-up.
func (a *Approver) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	queue := workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[item](retrySoon, retryLate))
	a.began, a.queue = a.o.Now(), queue
	a.asks = &questions{ctx: ctx, ask: a.o.Answers, now: a.o.Now, asked: map[string]*question{}}
	stores := map[string]cache.Store{}
	var watches []informers.SharedInformerFactory
	defer func() {
		cancel()
		queue.ShutDown()
		for _, w := range watches {
			w.Shutdown()
		}
		a.asks.running.Wait()
	}()
	for _, signer := range signers {
		factory := informers.NewSharedInformerFactoryWithOptions(a.o.Client, 0, informers.WithTransform(slim),
			informers.WithTweakListOptions(func(o *metav1.ListOptions) { o.FieldSelector = "spec.signerName=" + signer }))
		informer := factory.Certificates().V1().CertificateSigningRequests().Informer()
		seen := func(o any) {
			if r, ok := o.(*certificatesv1.CertificateSigningRequest); ok && open(r) {
				queue.Add(item{signer, r.Name})
			}
		}
		if _, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: seen, UpdateFunc: func(_, o any) { seen(o) }}); err != nil {
			return fmt.Errorf("watch certificate requests: %w", err)
		}
		stores[signer] = informer.GetStore()
		watches = append(watches, factory)
		factory.Start(ctx.Done())
	}
	defer context.AfterFunc(ctx, queue.ShutDown)()
	for {
		next, stopped := queue.Get()
		if stopped {
			return nil
		}
		err := a.handle(ctx, stores[next.signer], next)
		queue.Done(next)
		if err == nil || errors.Is(err, errAsked) {
			queue.Forget(next)
			continue
		}
		if ctx.Err() == nil && !apierrors.IsConflict(err) {
			a.o.Log.Error("certificate request not judged", "request", next.name, "error", err)
		}
		queue.AddRateLimited(next)
	}
}

// item is a request to judge.
type item struct{ signer, name string }

// open reports whether nobody judged the request yet.
func open(r *certificatesv1.CertificateSigningRequest) bool {
	return len(r.Status.Certificate) == 0 && len(r.Status.Conditions) == 0
}

// slim drops what is not looked at. Requests that are judged stay for an hour.
func slim(o any) (any, error) {
	r, ok := o.(*certificatesv1.CertificateSigningRequest)
	if !ok {
		return o, nil
	}
	r.ManagedFields = nil
	if !open(r) {
		r.Spec.Request = nil
	}
	return r, nil
}

// handle judges one request, if that is still to be done. With errAsked it does so later, when the queue has it again.
func (a *Approver) handle(ctx context.Context, known cache.Store, next item) error {
	o, _, err := known.GetByKey(next.name)
	r, ok := o.(*certificatesv1.CertificateSigningRequest)
	if err != nil || !ok || !open(r) {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, requestLimit)
	defer cancel()
	v, node, addresses, reason := judge(r)
	if v == leave {
		return nil
	}
	if v == approve {
		if reason, err = a.admit(ctx, r, node, addresses); err != nil {
			return err
		}
	}
	return a.answer(ctx, r.DeepCopy(), node, reason)
}

// admit looks at what the cluster knows of the node, and records what it is given, or returns the reason to deny it.
func (a *Approver) admit(ctx context.Context, r *certificatesv1.CertificateSigningRequest, node string, addresses []netip.Addr) (reason, err error) {
	records, err := join.ListNodes(ctx, a.o.Client)
	if err != nil {
		return nil, err
	}
	if reason := checkRecord(records, node); reason != nil {
		return reason, nil
	}
	if r.Spec.SignerName == certificatesv1.KubeletServingSignerName {
		return a.admitAddresses(ctx, records, item{r.Spec.SignerName, r.Name}, node, addresses)
	}
	csr, err := parse(r.Spec.Request)
	if err != nil {
		return err, nil
	}
	key, err := x509.MarshalPKIXPublicKey(csr.PublicKey) // as the signer writes it
	if err != nil {
		return fmt.Errorf("the request's key: %w", err), nil
	}
	return nil, join.AddClientKey(ctx, a.o.Client, node, KeyHash(key))
}

func (a *Approver) admitAddresses(ctx context.Context, records []join.NodeRecord, request item, node string, addresses []netip.Addr) (reason, err error) {
	held, former, err := a.others(ctx, records, node)
	if err != nil {
		return nil, err
	}
	if reason := checkAddresses(addresses, a.o.Cluster, held); reason != nil {
		return reason, nil
	}
	// The machines that had them are gone, or have others: they become the asking node's alone.
	former = slices.DeleteFunc(former, func(f join.NodeRecord) bool { return len(common(f.Addresses, addresses)) == 0 })
	if reason, err := a.askFormer(former, request, addresses); reason != nil || err != nil {
		return reason, err
	}
	for _, f := range former {
		rest := slices.DeleteFunc(slices.Clone(f.Addresses), func(x netip.Addr) bool { return slices.Contains(addresses, x) })
		if err := join.SetAddresses(ctx, a.o.Client, f.Name, rest); err != nil && !apierrors.IsNotFound(err) {
			return nil, err
		}
		a.o.Log.Info("address of a machine that is gone", "was", f.Name, "is", node, "addresses", addresses)
	}
	return nil, join.SetAddresses(ctx, a.o.Client, node, addresses)
}

// askFormer asks the kubelets of those who had the addresses, now that all else speaks for the request. It returns errAsked
// while they are asked, and a reason to deny the request when one of them is there.
func (a *Approver) askFormer(former []join.NodeRecord, request item, addresses []netip.Addr) (reason, err error) {
	if len(former) == 0 {
		return nil, nil
	}
	var names []string
	for _, f := range former {
		names = append(names, f.Name)
	}
	told := a.asks.put(names, func() { a.queue.Add(request) })
	if told == nil {
		return nil, errAsked
	}
	for _, f := range former {
		if err := told[f.Name].lives(); err != nil {
			return fmt.Errorf("%v is %s. That one is silent, but %w", common(f.Addresses, addresses)[0], addressOf(f.Name), err), nil
		}
	}
	return nil, nil
}

// common returns those of all that are among others.
func common(all, others []netip.Addr) []netip.Addr {
	return slices.DeleteFunc(slices.Clone(all), func(x netip.Addr) bool { return !slices.Contains(others, x) })
}

// KeyHash is by what a client's key is recorded: the SHA-256 of the public key as certificates hold it, in hexadecimal.
func KeyHash(subjectPublicKeyInfo []byte) string {
	sum := sha256.Sum256(subjectPublicKeyInfo)
	return hex.EncodeToString(sum[:])
}

// answer approves the request, or denies it for the reason.
func (a *Approver) answer(ctx context.Context, r *certificatesv1.CertificateSigningRequest, node string, reason error) error {
	c := certificatesv1.CertificateSigningRequestCondition{
		Type: certificatesv1.CertificateApproved, Status: corev1.ConditionTrue, Reason: "CairnNode",
		Message: "asked for by node " + node + " for itself",
	}
	if reason != nil {
		c.Type, c.Message = certificatesv1.CertificateDenied, reason.Error()
	}
	r.Status.Conditions = append(r.Status.Conditions, c)
	_, err := a.o.Client.CertificatesV1().CertificateSigningRequests().UpdateApproval(ctx, r.Name, r, metav1.UpdateOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return nil
	case err != nil:
		return fmt.Errorf("answer request %s: %w", r.Name, err)
	case reason != nil:
		a.o.Log.Warn("certificate denied", "node", node, "request", r.Name, "signer", r.Spec.SignerName, "reason", reason)
	default:
		a.o.Log.Info("certificate approved", "node", node, "request", r.Name, "signer", r.Spec.SignerName)
	}
	return nil
}

// others lists the addresses that are not the node's: those of servers, and those of agents that are alive. former are the
// records of agents that are not, as far as their Leases and Nodes tell.
func (a *Approver) others(ctx context.Context, records []join.NodeRecord, node string) (held []taken, former []join.NodeRecord, err error) {
	alive, err := a.alive(ctx)
	if err != nil {
		return nil, nil, err
	}
	nodes, err := a.o.Client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, nil, fmt.Errorf("list nodes: %w", err)
	}
	now := a.o.Now()
	for _, n := range nodes.Items {
		alive[n.Name] = alive[n.Name] || !lostFor(&n, now, silence)
	}
	heard := now.Sub(a.began) >= silence // all who live had the time to be heard
	isServer := map[string]bool{}
	for _, r := range records {
		isServer[r.Name] = r.Role == membership.Server
		if r.Name == node {
			continue
		}
		if r.Role != membership.Server && !alive[r.Name] && now.Sub(r.Joined) >= silence && heard {
			former = append(former, r)
			continue
		}
		for _, x := range r.Addresses {
			held = append(held, taken{x, addressOf(r.Name)})
		}
	}
	servers, err := a.servers(ctx, nodes.Items, isServer)
	return append(held, servers...), former, err
}

// lostFor reports whether the cluster has not taken the node for one that works for so long. Kubernetes takes that back
// when its Lease does not change for some time, whatever time it tells: after a power cut not before the cluster is back.
func lostFor(n *corev1.Node, now time.Time, d time.Duration) bool {
	since := n.CreationTimestamp.Time
	for _, c := range n.Status.Conditions {
		if c.Type != corev1.NodeReady {
			continue
		}
		if c.Status == corev1.ConditionTrue {
			return false
		}
		since = c.LastTransitionTime.Time
	}
	return now.Sub(since) >= d
}

func addressOf(node string) string {
	return "the address of node " + node + ": give one of the two another one, or delete that Node if its machine is gone for good"
}

// servers lists the addresses at which servers serve, and those that their kubelets tell. What an agent's kubelet tells
// counts for nothing: it could keep others from joining.
func (a *Approver) servers(ctx context.Context, nodes []corev1.Node, isServer map[string]bool) (all []taken, err error) {
	for _, n := range nodes {
		if !isServer[n.Name] {
			continue
		}
		for _, x := range n.Status.Addresses {
			if parsed, err := netip.ParseAddr(x.Address); err == nil {
				all = append(all, taken{parsed.Unmap(), addressOf(n.Name)})
			}
		}
	}
	serving, err := a.apiservers(ctx)
	for _, x := range serving {
		all = append(all, taken{x, "the address of a server"})
	}
	return all, err
}

// apiservers lists the addresses at which servers serve.
func (a *Approver) apiservers(ctx context.Context) (all []netip.Addr, err error) {
	list, err := a.o.Client.DiscoveryV1().EndpointSlices(metav1.NamespaceDefault).List(ctx, metav1.ListOptions{
		LabelSelector: discoveryv1.LabelServiceName + "=kubernetes",
	})
	if err != nil {
		return nil, fmt.Errorf("list the servers' addresses: %w", err)
	}
	for _, s := range list.Items {
		for _, e := range s.Endpoints {
			for _, text := range e.Addresses {
				if x, err := netip.ParseAddr(text); err == nil {
					all = append(all, x.Unmap())
				}
			}
		}
	}
	return all, nil
}

// alive tells which nodes' kubelets renewed their Leases not long ago. Their clocks may be ahead of this one.
func (a *Approver) alive(ctx context.Context) (map[string]bool, error) {
	list, err := a.o.Client.CoordinationV1().Leases(corev1.NamespaceNodeLease).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list leases of nodes: %w", err)
	}
	alive := map[string]bool{}
	for _, l := range list.Items {
		alive[l.Name] = l.Spec.RenewTime != nil && a.o.Now().Sub(l.Spec.RenewTime.Time) < silence
	}
	return alive, nil
}
