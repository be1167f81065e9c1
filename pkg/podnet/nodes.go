package podnet

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"github.com/cairn-os/cairn/pkg/membership"
)

// The annotations by which nodes tell each other where they are; flannel's own, so that its other users and tools that
// know them read these too.
const (
	annotationPrefix  = "flannel.alpha.coreos.com/"
	backendAnnotation = annotationPrefix + "backend-type"
	managedAnnotation = annotationPrefix + "kube-subnet-manager"
)

// dataAnnotation, publicAnnotation and overwriteAnnotation differ by family. The last one is the owner's: an address by
// which others reach the node instead of its own, for a node behind NAT.
func dataAnnotation(f family) string {
	return annotationPrefix + [...]string{"backend-data", "backend-v6-data"}[f]
}
func publicAnnotation(f family) string {
	return annotationPrefix + [...]string{"public-ip", "public-ipv6"}[f]
}
func overwriteAnnotation(f family) string {
	return publicAnnotation(f) + "-overwrite"
}

// nodes is what this package needs to know of the cluster's Nodes, kept up to date.
type nodes struct {
	store      cache.Store
	controller cache.Controller
	changed    chan struct{} // holds one value when something changed since it was last read
}

func newNodes(client kubernetes.Interface) *nodes {
	n := &nodes{changed: make(chan struct{}, 1)}
	notify := func() {
		select {
		case n.changed <- struct{}{}:
		default:
		}
	}
	list := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			return client.CoreV1().Nodes().List(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			return client.CoreV1().Nodes().Watch(ctx, o)
		},
	}
	n.store, n.controller = cache.NewInformerWithOptions(cache.InformerOptions{
		ListerWatcher: cache.ToListWatcherWithWatchListSemantics(list, client),
		ObjectType:    &corev1.Node{},
		Transform:     strip,
		Handler: cache.ResourceEventHandlerFuncs{
			AddFunc: func(any) { notify() },
			UpdateFunc: func(was, is any) {
				if !same(was, is) {
					notify()
				}
			},
			DeleteFunc: func(any) { notify() },
		},
	})
	return n
}

// run follows the cluster until ctx ends; while it does not answer, the last state stays.
func (n *nodes) run(ctx context.Context) { n.controller.RunWithContext(ctx) }

// synced says that the state is the cluster's and not an empty beginning.
func (n *nodes) synced() bool { return n.controller.HasSynced() }

func (n *nodes) own(name string) (*corev1.Node, bool) {
	obj, exists, err := n.store.GetByKey(name)
	if err != nil || !exists {
		return nil, false
	}
	node, ok := obj.(*corev1.Node)
	return node, ok
}

func (n *nodes) all() []*corev1.Node {
	var all []*corev1.Node
	for _, obj := range n.store.List() {
		if node, ok := obj.(*corev1.Node); ok {
			all = append(all, node)
		}
	}
	return all
}

// strip leaves of a Node what is of use here: a Node lists the images it has, a hundred times the rest.
func strip(obj any) (any, error) {
	node, ok := obj.(*corev1.Node)
	if !ok {
		return obj, nil
	}
	small := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{
			Name: node.Name, UID: node.UID, ResourceVersion: node.ResourceVersion, CreationTimestamp: node.CreationTimestamp,
		},
		Spec: corev1.NodeSpec{PodCIDR: node.Spec.PodCIDR, PodCIDRs: node.Spec.PodCIDRs},
	}
	for key, value := range node.Annotations {
		if strings.HasPrefix(key, annotationPrefix) {
			if small.Annotations == nil {
				small.Annotations = make(map[string]string)
			}
			small.Annotations[key] = value
		}
	}
	return small, nil
}

// same says that two states of a Node, stripped, mean the same here. Nodes change often in what is of no interest.
func same(was, is any) bool {
	a, ok := was.(*corev1.Node)
	b, okb := is.(*corev1.Node)
	if !ok || !okb || a.UID != b.UID || !slices.Equal(cidrs(a), cidrs(b)) || len(a.Annotations) != len(b.Annotations) {
		return false
	}
	for key, value := range a.Annotations {
		if other, has := b.Annotations[key]; !has || other != value {
			return false
		}
	}
	return true
}

func cidrs(n *corev1.Node) []string {
	if len(n.Spec.PodCIDRs) == 0 && n.Spec.PodCIDR != "" {
		return []string{n.Spec.PodCIDR}
	}
	return n.Spec.PodCIDRs
}

// share reads a Node's ranges of pod addresses; ones outside of the cluster's network are left out and told.
func share(n *corev1.Node, networks prefixes) (prefixes, error) {
	var all prefixes
	var errs []error
	for _, text := range cidrs(n) {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			errs = append(errs, fmt.Errorf("pod CIDR of node %s: %w", n.Name, err))
			continue
		}
		f := familyOf(p.Addr())
		if !networks[f].IsValid() {
			continue
		}
		if !within(networks[f], p) {
			errs = append(errs, fmt.Errorf("pod CIDR %v of node %s is not within the cluster's %v", p, n.Name, networks[f]))
			continue
		}
		all[f] = p.Masked()
	}
	return all, errors.Join(errs...)
}

// ownShare is the share of the node itself, complete.
func ownShare(n *corev1.Node, networks prefixes) (prefixes, error) {
	own, err := share(n, networks)
	if err != nil {
		return prefixes{}, err
	}
	for f, p := range networks {
		if p.IsValid() && !own[f].IsValid() {
			return prefixes{}, fmt.Errorf("waiting for the node's share of %v", p)
		}
	}
	return own, nil
}

// peer is another node, as its Node describes it.
type peer struct {
	node    string
	backend string
	share   prefixes
	public  addresses
	data    [2]string // JSON of its back-end
}

// peersOf are the other nodes that said where they are. A share must have the size that the cluster gives, and of two that
// overlap the older Node's counts: the cluster gives no address twice, and a Node that came later must not take the pods
// of another. Nodes that make no sense are told by the error and left out.
func peersOf(all []*corev1.Node, own string, ownShare, networks prefixes) ([]peer, error) {
	byAge := slices.Clone(all)
	slices.SortFunc(byAge, func(a, b *corev1.Node) int {
		return cmp.Or(a.CreationTimestamp.Time.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Name, b.Name))
	})
	taken := ownShare.list()
	var peers []peer
	var errs []error
	for _, n := range byAge {
		if n.Name == own {
			continue
		}
		ranges, err := share(n, networks)
		errs = append(errs, err)
		p := peer{node: n.Name, backend: n.Annotations[backendAnnotation]}
		managed := n.Annotations[managedAnnotation] == "true"
		for f, r := range ranges {
			text := n.Annotations[publicAnnotation(family(f))]
			if !r.IsValid() {
				continue
			}
			if err := checkShare(r, ownShare[f], networks[f], taken); err != nil {
				errs = append(errs, fmt.Errorf("pod CIDR %v of node %s: %w", r, n.Name, err))
				continue
			}
			taken = append(taken, r) // also of a node that did not say yet where it is
			if text == "" || !managed {
				continue
			}
			a, err := netip.ParseAddr(text)
			if err != nil || familyOf(a) != family(f) {
				errs = append(errs, fmt.Errorf("node %s says that its %v address is %q", n.Name, family(f), text))
				continue
			}
			p.share[f], p.public[f], p.data[f] = r, a, n.Annotations[dataAnnotation(family(f))]
		}
		if p.share != (prefixes{}) {
			peers = append(peers, p)
		}
	}
	slices.SortFunc(peers, func(a, b peer) int { return cmp.Compare(a.node, b.node) })
	return peers, errors.Join(errs...)
}

// checkShare refuses a share that the cluster did not give. own is the node's own: an operator may have set another size
// than Cairn's (node-cidr-mask-size of the controller manager).
func checkShare(r, own, network netip.Prefix, taken []netip.Prefix) error {
	if want := membership.NodeMask(network); r.Bits() != want && r.Bits() != own.Bits() {
		return fmt.Errorf("the cluster gives nodes a /%d", want)
	}
	if i := slices.IndexFunc(taken, r.Overlaps); i >= 0 {
		return fmt.Errorf("it overlaps %v, which an older node has", taken[i])
	}
	return nil
}
