package control

import (
	"context"
	"crypto/x509"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"github.com/cairn-os/cairn/pkg/control/approver"
	"github.com/cairn-os/cairn/pkg/join"
	"github.com/cairn-os/cairn/pkg/membership"
)

const (
	// askAgain bounds how often the cluster itself is asked about one node that the book does not know as it should be,
	// askLimit how long that takes.
	askAgain = time.Second
	askLimit = 5 * time.Second
	// backdate is how far the cluster's signer lets a certificate begin before it signs it; see nodecert.
	backdate = 5 * time.Minute
	// fullKeys is how many client keys a record keeps: with as many, an older one may have been forgotten.
	fullKeys = 3
)

// nodeBook knows what the cluster recorded of the machines that joined: their roles, addresses and client keys. Kubelets
// write none of that. Its methods may be called at any time.
type nodeBook struct {
	client  kubernetes.Interface
	cluster []netip.Prefix    // networks of pods and Services, where no machine can be
	gone    func(node string) // called when a node was removed, or another machine got its name
	now     func() time.Time

	mu     sync.RWMutex
	synced bool
	nodes  map[string]join.NodeRecord
	asked  map[string]time.Time // when the cluster was asked about a node
}

func newNodeBook(client kubernetes.Interface, cluster []netip.Prefix) *nodeBook {
	return &nodeBook{
		client: client, cluster: cluster, gone: func(string) {}, now: time.Now,
		nodes: make(map[string]join.NodeRecord), asked: make(map[string]time.Time),
	}
}

// run keeps the book until ctx ends.
func (b *nodeBook) run(ctx context.Context) error {
	factory := informers.NewSharedInformerFactoryWithOptions(b.client, 0, informers.WithNamespace(join.Namespace),
		informers.WithTweakListOptions(func(o *metav1.ListOptions) { o.FieldSelector = "type=" + string(join.NodeType) }))
	defer factory.Shutdown()
	informer := factory.Core().V1().Secrets().Informer()
	handler, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: b.put, UpdateFunc: func(_, o any) { b.put(o) }, DeleteFunc: b.drop,
	})
	if err != nil {
		return fmt.Errorf("watch records of nodes: %w", err)
	}
	factory.Start(ctx.Done())
	if cache.WaitForCacheSync(ctx.Done(), handler.HasSynced) {
		b.mu.Lock()
		b.synced = true
		b.mu.Unlock()
	}
	<-ctx.Done()
	return nil
}

func (b *nodeBook) put(o any) {
	s, ok := o.(*corev1.Secret)
	if !ok {
		return
	}
	r, err := join.ReadNode(s)
	if err != nil {
		return // not of the type that is asked for
	}
	b.mu.Lock()
	had, known := b.nodes[r.Name]
	b.nodes[r.Name] = *r
	b.mu.Unlock()
	if known && (had.Identity != r.Identity || had.Role != r.Role) {
		b.gone(r.Name)
	}
}

func (b *nodeBook) drop(o any) {
	if missed, ok := o.(cache.DeletedFinalStateUnknown); ok {
		o = missed.Obj
	}
	s, ok := o.(*corev1.Secret)
	if !ok {
		return
	}
	node := strings.TrimPrefix(s.Name, join.NodePrefix)
	b.mu.Lock()
	delete(b.nodes, node)
	b.mu.Unlock()
	b.gone(node)
}

// ready tells whether the book has been read once.
func (b *nodeBook) ready() bool {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return b.synced
}

func (b *nodeBook) record(node string) (r join.NodeRecord, ok bool) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	r, ok = b.nodes[node]
	return r, ok
}

// isServer tells whether the node is that of a server.
func (b *nodeBook) isServer(node string) bool {
	r, ok := b.record(node)
	return ok && r.Role == membership.Server
}

// addresses returns those that belong to that node and to no other. Of one that a server and an agent have, it is the
// server's; one that two of a kind have is nobody's.
func (b *nodeBook) addresses(node string) []netip.Addr {
	b.mu.RLock()
	defer b.mu.RUnlock()
	own, ok := b.nodes[node]
	if !ok {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(own.Addresses), func(a netip.Addr) bool {
		if !a.IsGlobalUnicast() || slices.ContainsFunc(b.cluster, func(p netip.Prefix) bool { return p.Contains(a) }) {
			return true
		}
		for other := range maps.Values(b.nodes) {
			weaker := own.Role == membership.Server && other.Role != membership.Server
			if other.Name != node && !weaker && slices.Contains(other.Addresses, a) {
				return true
			}
		}
		return false
	})
}

// judge tells why the client certificate of a node counts no more, or nil. Of a refusal it makes sure with the cluster
// itself: the book may be a moment behind a machine that just got its certificate. The caller has verified it.
func (b *nodeBook) judge(ctx context.Context, node string, c *x509.Certificate) error {
	r, known := b.record(node)
	err := checkCertificate(r, known, node, c)
	if err == nil || !b.mayAsk(node) {
		return err
	}
	s, askErr := b.client.CoreV1().Secrets(join.Namespace).Get(ctx, join.NodePrefix+node, metav1.GetOptions{})
	if askErr != nil {
		return err // the book's word is all there is
	}
	now, askErr := join.ReadNode(s)
	if askErr != nil {
		return askErr
	}
	return checkCertificate(*now, true, node, c)
}

// mayAsk bounds how often the cluster is asked.
func (b *nodeBook) mayAsk(node string) bool {
	const most = 1024
	b.mu.Lock()
	defer b.mu.Unlock()
	now := b.now()
	if at, ok := b.asked[node]; ok && now.Sub(at) < askAgain && !now.Before(at) {
		return false
	}
	if len(b.asked) >= most {
		clear(b.asked)
	}
	b.asked[node] = now
	return true
}

// checkCertificate refuses the certificates of machines that were removed or replaced. Servers sign theirs themselves.
// The keys of an agent are recorded before they are certified; a cluster that was restored from a snapshot may not know
// the last one, so one that began after the machine joined counts as well: nobody else gets one since. One that was
// signed before the machine joined began the signer's backdate earlier, so that clocks may differ by as much.
func checkCertificate(r join.NodeRecord, known bool, node string, c *x509.Certificate) error {
	switch {
	case !known:
		return fmt.Errorf("the node %s was removed from the cluster", node)
	case r.Role == membership.Server:
		return nil
	case r.Role != membership.Agent:
		return fmt.Errorf("%s is a %s of the cluster, which has no node", node, r.Role)
	case slices.Contains(r.ClientKeys, approver.KeyHash(c.RawSubjectPublicKeyInfo)), !c.NotBefore.Before(r.Joined):
		return nil
	case len(r.ClientKeys) >= fullKeys && !c.NotBefore.Before(r.Joined.Add(-2*backdate)):
		return nil // the first certificate of a machine that could not write down those that followed
	}
	return fmt.Errorf("the name %s belongs to another machine now, which joined at %s", node, r.Joined.UTC().Format(time.RFC3339))
}
