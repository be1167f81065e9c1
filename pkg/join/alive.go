package join

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/cairn-os/cairn/pkg/membership"
)

const (
	// aliveWithin is how long a server looks at a node of which nothing is heard before it takes it for dead.
	aliveWithin = time.Minute
	// maxGap is how far two looks may be apart to be one: in between the cluster may have been away, and the node could
	// not have been heard. A machine that waits for a name asks every 30 s.
	maxGap = 45 * time.Second
	// settling is how long a name belongs to the machine that got it last, though nothing has been heard of its node yet:
	// of two machines that ask for one name at the same moment, one gets it.
	settling = 5 * time.Minute
	// maxSeen bounds the memory of who was looked at.
	maxSeen = 4096
)

// heard is what a server knows of the node that has a name. No clock but the server's own measures anything in it, and
// that one only how long it looked.
type heard struct {
	lease  string        // resourceVersion of the Lease that the kubelet renews every 10 s; empty: there is none
	node   bool          // there is a Node of that name
	lost   bool          // the cluster's controllers heard nothing of it for 50 s
	online bool          // the store's member of that name is
	quiet  time.Duration // how long this server has looked and seen nothing change
}

// state is what follows from heard.
type state int

const (
	dead     state = iota // the name and the addresses are free
	starting              // the machine that joined last has not been heard of yet
	alive
)

// state decides. have is who has the name, nil for nobody.
func (h heard) state(have *record, now time.Time) state {
	if h.online {
		return alive
	}
	if have != nil && h.lease == have.heard {
		// Nothing was heard since the machine got the name. The time at which it did is of another server's clock, so this
		// server looks for a minute as well.
		if age := now.Sub(have.Joined); (age < settling && age > -maxSkew) || h.quiet < aliveWithin {
			return starting
		}
		return dead
	}
	// Without controllers at work nobody says that a node is lost, and looking is all there is.
	if !h.node || h.lost || h.quiet >= aliveWithin {
		return dead
	}
	return alive
}

// look is when a server first and last saw a node as it is.
type look struct {
	signs       string
	first, last time.Time
}

// watch remembers what a server saw of nodes. A server that starts begins to look anew. Methods may be called at any time.
type watch struct {
	mu   sync.Mutex
	now  func() time.Time
	seen map[string]*look
}

// quiet returns for how long the signs of life of a node have been these.
func (w *watch) quiet(name, signs string) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := w.now()
	l := w.seen[name]
	if l == nil || l.signs != signs || now.Sub(l.last) > maxGap {
		if w.seen == nil || len(w.seen) >= maxSeen {
			w.seen = make(map[string]*look)
		}
		l = &look{signs: signs, first: now}
		w.seen[name] = l
	}
	l.last = now
	return now.Sub(l.first)
}

// hear asks the cluster and the store for the node of that name. have is who has it, nil for nobody.
func (s *Server) hear(ctx context.Context, name string, have *record) (heard, error) {
	h, err := hearNode(ctx, s.Client, name)
	if err != nil {
		return h, err
	}
	if have != nil && have.Role != membership.Agent && s.MemberOnline != nil {
		if h.online, err = s.MemberOnline(ctx, name); err != nil {
			return h, fmt.Errorf("ask the store about %s: %w", name, err)
		}
	}
	if have == nil && !h.node {
		return h, nil
	}
	signs := h.lease
	if have != nil {
		signs += " " + have.version // changes when the machine joins or gets a certificate
	}
	h.quiet = s.watch.quiet(name, signs)
	return h, nil
}

func hearNode(ctx context.Context, client kubernetes.Interface, name string) (heard, error) {
	var h heard
	l, err := client.CoordinationV1().Leases(corev1.NamespaceNodeLease).Get(ctx, name, metav1.GetOptions{})
	switch {
	case err == nil:
		h.lease = l.ResourceVersion
	case !apierrors.IsNotFound(err):
		return h, fmt.Errorf("read lease of node %s: %w", name, err)
	}
	n, err := client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
	switch {
	case err == nil:
		h.node = true
		h.lost = slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
			return c.Type == corev1.NodeReady && c.Status == corev1.ConditionUnknown
		})
	case !apierrors.IsNotFound(err):
		return h, fmt.Errorf("read node %s: %w", name, err)
	}
	return h, nil
}
