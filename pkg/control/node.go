package control

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
)

const (
	// ownedLabels and ownedTaints remember on the node what its configuration set, so that what is taken out of the
	// configuration is taken off the node, and what others set is left alone.
	ownedLabels = "cairn-os.io/labels"
	ownedTaints = "cairn-os.io/taints"

	controlPlaneLabel = "node-role.kubernetes.io/control-plane"
)

// keepNode gives the own node its labels and taints as soon as it registers. A kubelet may set labels only when it
// registers, and some not even then.
func (o Options) keepNode(ctx context.Context, log *slog.Logger) {
	client, err := o.adminClient()
	if err != nil {
		log.Error("labels and taints not kept", "error", err)
		return
	}
	for ctx.Err() == nil {
		pause := 5 * time.Second
		err := o.watchNode(ctx, client)
		switch {
		case apierrors.IsConflict(err): // a starting kubelet and the controllers write often
			pause = 200 * time.Millisecond
		case err != nil && ctx.Err() == nil:
			log.Error("labels and taints not kept", "node", o.Node, "error", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

// watchNode patches the own node each time it appears, until the watch ends.
func (o Options) watchNode(ctx context.Context, client kubernetes.Interface) error {
	w, err := client.CoreV1().Nodes().Watch(ctx, metav1.ListOptions{
		FieldSelector: fields.OneTermEqualSelector(metav1.ObjectNameField, o.Node).String(),
	})
	if err != nil {
		return err
	}
	defer w.Stop()
	for e := range w.ResultChan() {
		node, ok := e.Object.(*corev1.Node)
		if !ok || e.Type != watch.Added {
			continue
		}
		patch, err := nodePatch(node, o.Labels, o.Taints)
		if err != nil {
			return err
		}
		if patch == nil {
			continue
		}
		if _, err := client.CoreV1().Nodes().Patch(ctx, o.Node, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
			return fmt.Errorf("patch node: %w", err)
		}
	}
	return nil
}

// nodePatch returns the merge patch that brings node to the labels and taints wanted, or nil.
func nodePatch(node *corev1.Node, labels map[string]string, taints []Taint) ([]byte, error) {
	change := map[string]any{}
	for key := range strings.FieldsSeq(node.Annotations[ownedLabels]) {
		if _, wanted := labels[key]; !wanted {
			change[key] = nil
		}
	}
	for key, value := range labels {
		if have, ok := node.Labels[key]; !ok || have != value {
			change[key] = value
		}
	}
	if _, ok := node.Labels[controlPlaneLabel]; !ok {
		change[controlPlaneLabel] = "true"
	}
	want, names := wantTaints(node, taints)
	keys := strings.Join(slices.Sorted(maps.Keys(labels)), " ")
	meta := map[string]any{"resourceVersion": node.ResourceVersion} // a conflict starts anew from the newer node
	patch := map[string]any{"metadata": meta}
	if len(change) > 0 {
		meta["labels"] = change
	}
	if keys != node.Annotations[ownedLabels] || names != node.Annotations[ownedTaints] {
		meta["annotations"] = map[string]any{ownedLabels: keys, ownedTaints: names}
	}
	if !slices.EqualFunc(want, node.Spec.Taints, func(a, b corev1.Taint) bool { return a.MatchTaint(&b) && a.Value == b.Value }) {
		patch["spec"] = map[string]any{"taints": want}
	}
	if len(meta) == 1 && len(patch) == 1 {
		return nil, nil
	}
	return json.Marshal(patch)
}

// wantTaints returns the node's taints with those of the configuration, and the names to remember.
func wantTaints(node *corev1.Node, taints []Taint) (want []corev1.Taint, names string) {
	owned := strings.Fields(node.Annotations[ownedTaints])
	var mine []string
	for _, t := range taints {
		mine = append(mine, t.Key+":"+t.Effect)
	}
	for _, t := range node.Spec.Taints {
		if name := t.Key + ":" + string(t.Effect); !slices.Contains(owned, name) && !slices.Contains(mine, name) {
			want = append(want, t)
		}
	}
	for _, t := range taints {
		want = append(want, corev1.Taint{Key: t.Key, Value: t.Value, Effect: corev1.TaintEffect(t.Effect)})
	}
	slices.Sort(mine)
	return want, strings.Join(mine, " ")
}
