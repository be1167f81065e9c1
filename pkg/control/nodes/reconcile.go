package nodes

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"github.com/cairn-os/cairn/pkg/node/declared"
)

// reconcile does one step or all that a Node needs.
func (c *Controller) reconcile(ctx context.Context, k key) error {
	if k.gone != "" {
		return c.reap(ctx, k)
	}
	node, err := c.nodes.Get(k.name)
	switch {
	case apierrors.IsNotFound(err):
		return nil
	case err != nil:
		return err
	case !node.DeletionTimestamp.IsZero():
		return c.remove(ctx, node)
	}
	return c.apply(ctx, node)
}

// apply gives the Node what its machine declared.
func (c *Controller) apply(ctx context.Context, node *corev1.Node) error {
	w := want{server: c.role(node.Name) == roleServer}
	if text, ok := node.Annotations[declared.Annotation]; ok {
		d, err := declared.Parse(text)
		if err != nil {
			c.tell(ctx, node, corev1.EventTypeWarning, "InvalidDeclaration",
				"labels and taints stay as they are: annotation "+declared.Annotation+": "+oneLine(err))
		} else {
			w.declared = &d
		}
	}
	if w.declared != nil && !w.server {
		allowed, refused := withoutRestricted(*w.declared)
		w.declared = &allowed
		if len(refused) > 0 {
			c.tell(ctx, node, corev1.EventTypeWarning, "RestrictedLabel", "labels that a node which is no server cannot give itself "+
				"are left out: "+strings.Join(refused, ", ")+". Set them with kubectl label")
		}
	}
	patch, err := nodePatch(node, w)
	if err != nil || patch == nil {
		return err
	}
	if err := c.patch(ctx, node, patch); err != nil {
		return err
	}
	c.o.Log.Info("node brought to what its configuration wants", "node", node.Name, "patch", string(patch))
	return nil
}

func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }

func (c *Controller) patch(ctx context.Context, node *corev1.Node, patch []byte) error {
	ctx, cancel := context.WithTimeout(ctx, requestLimit)
	defer cancel()
	_, err := c.o.Client.CoreV1().Nodes().Patch(ctx, node.Name, types.MergePatchType, patch, metav1.PatchOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("patch node %s: %w", node.Name, err)
	}
	return nil
}

// remove takes the machine of a deleted Node out of the cluster, as the package's comment says.
func (c *Controller) remove(ctx context.Context, node *corev1.Node) error {
	if !slices.Contains(node.Finalizers, Finalizer) {
		return nil // Its identity goes when it is gone.
	}
	if err := c.mayGo(ctx, node); err != nil {
		return err
	}
	identity, err := c.identity(ctx, node.Name)
	if err != nil {
		return err
	}
	// A machine that joined with the name since has nothing to do with the one that is removed; the store takes out the
	// old member itself when it takes in one of the same name.
	if identity == nil || !joined(identity).After(node.DeletionTimestamp.Time) {
		if err := c.removeMachine(ctx, node, identity); err != nil {
			return err
		}
	}
	rest := slices.DeleteFunc(slices.Clone(node.Finalizers), func(f string) bool { return f == Finalizer })
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"resourceVersion": node.ResourceVersion, "finalizers": rest}})
	if err != nil {
		return err
	}
	if err := c.patch(ctx, node, patch); err != nil {
		return err
	}
	c.o.Log.Info("server removed", "node", node.Name)
	return nil
}

// removeMachine takes the machine's member out of the store and then its identity, if there are such, out of the cluster.
func (c *Controller) removeMachine(ctx context.Context, node *corev1.Node, identity *corev1.Secret) error {
	if c.o.Store != nil {
		if err := c.removeMember(ctx, node); err != nil {
			return err
		}
	}
	if identity == nil {
		return nil
	}
	if err := c.forget(ctx, identity); err != nil {
		return err
	}
	c.tell(ctx, node, corev1.EventTypeNormal, "IdentityDeleted", "the machine's identity is forgotten: its certificates are not renewed any more")
	return nil
}

// mayGo returns nil when there is a server beside the one that is removed, and this is not that one.
func (c *Controller) mayGo(ctx context.Context, node *corev1.Node) error {
	others, ready, err := c.otherServers(node.Name)
	switch {
	case err != nil:
		return err
	case others == 0:
		c.tell(ctx, node, corev1.EventTypeWarning, "LastServer", "the last server cannot be removed: it goes on, and is removed as soon as "+
			"another server has joined and holds a copy of the store")
		return errLater
	case c.o.Store == nil || node.Name != c.o.Node:
		return nil
	case ready == 0:
		c.tell(ctx, node, corev1.EventTypeWarning, "WaitingForServer", "no other server is Ready that could go on without this one")
		return errLater
	}
	c.tell(ctx, node, corev1.EventTypeNormal, "LeadHandedOver", "the controllers move to another server, which removes this one")
	return ErrHandOver
}

// otherServers counts the servers that are to stay, and those of them that are Ready.
func (c *Controller) otherServers(not string) (others, ready int, err error) {
	identities, err := c.secrets.List(labels.Everything())
	if err != nil {
		return 0, 0, err
	}
	for _, s := range identities {
		if string(s.Data[roleKey]) != roleServer || nodeOf(s) == not {
			continue
		}
		node, err := c.nodes.Get(nodeOf(s))
		if err != nil || !node.DeletionTimestamp.IsZero() {
			continue
		}
		others++
		for _, cond := range node.Status.Conditions { // only Ready is kept
			if cond.Status == corev1.ConditionTrue {
				ready++
			}
		}
	}
	return others, ready, nil
}

// removeMember takes the machine's member out of the store, a step at a time; nil says that there is none any more.
func (c *Controller) removeMember(ctx context.Context, node *corev1.Node) error {
	ctx, cancel := context.WithTimeout(ctx, storeLimit)
	defer cancel()
	status, err := c.o.Store.Status(ctx)
	if err != nil {
		return c.wait(ctx, node, fmt.Errorf("the store does not answer: %w", err))
	}
	step, id, err := nextStep(status, node.Name)
	switch {
	case err != nil:
		return c.wait(ctx, node, err)
	case step == gone:
		return nil
	case step == handOver:
		if err := c.o.Store.Lead(ctx, 0); err != nil {
			return c.wait(ctx, node, fmt.Errorf("the store's leader stays: %w", err))
		}
		c.tell(ctx, node, corev1.EventTypeNormal, "StoreLeadHandedOver", "another server leads the store")
		return errAgain
	}
	if err := c.o.Store.Remove(ctx, id); err != nil {
		return c.wait(ctx, node, fmt.Errorf("the store keeps its member %s: %w", id, err))
	}
	c.tell(ctx, node, corev1.EventTypeNormal, "StoreMemberRemoved", fmt.Sprintf("member %s is out of the store", id))
	return errAgain // What the store says now decides; it may have had two of the name.
}

// wait tells why the removal does not go on yet.
func (c *Controller) wait(ctx context.Context, node *corev1.Node, why error) error {
	c.tell(ctx, node, corev1.EventTypeWarning, "RemovalWaits", "the server is not removed yet: "+oneLine(why))
	return errLater
}
