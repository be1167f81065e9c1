package nodes

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/resourceversion"

	"github.com/cairn-os/cairn/pkg/join"
	"github.com/cairn-os/cairn/pkg/membership"
)

// The Secrets in which the cluster remembers who has which name; pkg/join writes them.
const (
	identityType   = join.NodeType
	identityPrefix = join.NodePrefix
	roleKey        = "role"
	joinedKey      = "joined" // when the machine got the name last, RFC 3339

	roleServer = string(membership.Server)
	roleAgent  = string(membership.Agent)
)

const (
	sweepInterval = 10 * time.Minute
	// sweepAge is how long a machine that joined may take to register its Node: it may be switched off right after.
	sweepAge = 24 * time.Hour
)

func nodeOf(identity *corev1.Secret) string { return strings.TrimPrefix(identity.Name, identityPrefix) }

// joined is when the machine that has the name got it.
func joined(identity *corev1.Secret) time.Time {
	at, err := time.Parse(time.RFC3339, string(identity.Data[joinedKey]))
	if err != nil {
		return identity.CreationTimestamp.Time
	}
	return at
}

// role is what the machine joined as; "" when it never did, or was removed.
func (c *Controller) role(node string) string {
	s, err := c.secrets.Get(identityPrefix + node)
	if err != nil {
		return "" // A lister knows or does not.
	}
	return string(s.Data[roleKey])
}

// forget deletes the identity, as long as it is the one that is meant.
func (c *Controller) forget(ctx context.Context, s *corev1.Secret) error {
	ctx, cancel := context.WithTimeout(ctx, requestLimit)
	defer cancel()
	err := c.o.Client.CoreV1().Secrets(s.Namespace).Delete(ctx, s.Name, metav1.DeleteOptions{
		Preconditions: &metav1.Preconditions{UID: &s.UID, ResourceVersion: &s.ResourceVersion},
	})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("delete secret %s: %w", s.Name, err)
	}
	c.o.Log.Info("identity of a node deleted", "node", nodeOf(s), "role", string(s.Data[roleKey]))
	return nil
}

// identity reads who has the name, from the cluster itself; nil is nobody.
func (c *Controller) identity(ctx context.Context, node string) (*corev1.Secret, error) {
	ctx, cancel := context.WithTimeout(ctx, requestLimit)
	defer cancel()
	s, err := c.o.Client.CoreV1().Secrets(metav1.NamespaceSystem).Get(ctx, identityPrefix+node, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("get secret %s: %w", identityPrefix+node, err)
	}
	return s, nil
}

// exists asks the cluster itself whether there is a Node of that name.
func (c *Controller) exists(ctx context.Context, node string) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, requestLimit)
	defer cancel()
	_, err := c.o.Client.CoreV1().Nodes().Get(ctx, node, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("get node %s: %w", node, err)
	}
	return true, nil
}

// reap deletes the identity of an agent whose Node was deleted, unless a machine joined with the name since.
func (c *Controller) reap(ctx context.Context, k key) error {
	delete(c.said, k.name)
	if there, err := c.exists(ctx, k.name); err != nil || there {
		return err
	}
	s, err := c.identity(ctx, k.name)
	if err != nil || s == nil {
		return err
	}
	// What it cannot compare the sweep decides by age.
	if order, err := resourceversion.CompareResourceVersion(s.ResourceVersion, k.gone); err != nil || order > 0 {
		return nil
	}
	switch string(s.Data[roleKey]) {
	case roleAgent:
		return c.forget(ctx, s)
	case roleServer:
		c.o.Log.Warn("the Node of a server went without its finalizer: its store's member may be left; "+
			"see cairnctl store status", "node", k.name)
	}
	return nil
}

// sweepAlways deletes what nobody saw to be deletable, now and then, until ctx ends.
func (c *Controller) sweepAlways(ctx context.Context) {
	tick := time.NewTicker(sweepInterval)
	defer tick.Stop()
	for {
		if err := c.sweep(ctx); err != nil && ctx.Err() == nil {
			c.o.Log.Error("identities of former nodes not deleted", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// sweep deletes the identities of agents that have had no Node for long. A witness never has one. A server without one
// is told of alone: its member may serve the store.
func (c *Controller) sweep(ctx context.Context) error {
	identities, err := c.secrets.List(labels.Everything())
	if err != nil {
		return err
	}
	slices.SortFunc(identities, func(a, b *corev1.Secret) int { return strings.Compare(a.Name, b.Name) })
	for _, s := range identities {
		name, role := nodeOf(s), string(s.Data[roleKey])
		old := c.o.Now().Sub(joined(s)) > sweepAge
		if _, err := c.nodes.Get(name); err == nil || !old || name == c.o.Node || role != roleAgent && role != roleServer {
			continue
		}
		there, err := c.exists(ctx, name)
		switch {
		case err != nil:
			return err
		case there:
		case role == roleServer:
			c.o.Log.Warn("a server has no Node; when it is gone for good, remove its member of the store and "+
				"delete its Secret", "node", name, "secret", s.Namespace+"/"+s.Name)
		default:
			if err := c.forget(ctx, s); err != nil {
				return err
			}
		}
	}
	return nil
}
