package nodes

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	kubeletapis "k8s.io/kubelet/pkg/apis"

	"github.com/cairn-os/cairn/pkg/node/declared"
)

const (
	// ownedLabels and ownedTaints remember on a Node what was set here, so that what a configuration drops is taken off
	// the Node, and what others set is left alone.
	ownedLabels = "cairn-os.io/labels"
	ownedTaints = "cairn-os.io/taints"
	// sealLabel holds the hash of both. A kubelet may write annotations, and could so have the taint of an administrator
	// taken off its Node, which it must not do itself. Labels of this name space it can neither set nor change.
	sealLabel = "cairn." + corev1.LabelNamespaceNodeRestriction + "/owned"

	controlPlaneLabel = "node-role.kubernetes.io/control-plane"
)

// want is what a Node should have.
type want struct {
	server bool
	// declared is what the configuration wants; nil when it is not known, and then all stays that it wanted before.
	declared *declared.Declaration
}

// restricted reports whether only a server's word is taken for a label: by it a node would attract what is meant for
// others. It is what Kubernetes forbids kubelets to give their own Nodes, and its names are Kubernetes' own.
func restricted(key string) bool {
	namespace, _, ok := strings.Cut(key, "/")
	if !ok {
		return false
	}
	of := func(domain string) bool { return namespace == domain || strings.HasSuffix(namespace, "."+domain) }
	return of(corev1.LabelNamespaceNodeRestriction) || (of("kubernetes.io") || of("k8s.io")) && !kubeletapis.IsKubeletLabel(key)
}

// withoutRestricted returns d without the labels that are not taken from agents, and their names.
func withoutRestricted(d declared.Declaration) (allowed declared.Declaration, refused []string) {
	allowed = declared.Declaration{Labels: map[string]string{}, Taints: d.Taints}
	for _, key := range slices.Sorted(maps.Keys(d.Labels)) {
		if restricted(key) {
			refused = append(refused, key)
			continue
		}
		allowed.Labels[key] = d.Labels[key]
	}
	return allowed, refused
}

// owned is what was set on a Node by its configuration.
type owned struct{ labels, taints []string }

func (o owned) seal() string {
	sum := sha256.Sum256([]byte(strings.Join(o.labels, " ") + "\n" + strings.Join(o.taints, " ")))
	return hex.EncodeToString(sum[:16])
}

// ownedBy reads what is remembered on node; first says that nothing was set on it yet.
func ownedBy(node *corev1.Node) (o owned, first bool) {
	seal, sealed := node.Labels[sealLabel]
	if !sealed {
		return owned{}, true
	}
	o = owned{strings.Fields(node.Annotations[ownedLabels]), strings.Fields(node.Annotations[ownedTaints])}
	if o.seal() != seal {
		return owned{}, false
	}
	return o, false
}

// nodePatch returns the merge patch that brings node to what is wanted, or nil. A patch of a node that changed since is
// a conflict.
func nodePatch(node *corev1.Node, w want) ([]byte, error) {
	labels, notes := map[string]any{}, map[string]any{}
	taints := node.Spec.Taints
	if w.declared != nil {
		taints = w.apply(node, labels, notes)
	} else if w.server && node.Labels[controlPlaneLabel] != "true" {
		labels[controlPlaneLabel] = "true"
	}
	meta, patch := map[string]any{}, map[string]any{}
	if len(labels) > 0 {
		meta["labels"] = labels
	}
	if len(notes) > 0 {
		meta["annotations"] = notes
	}
	if w.server && !slices.Contains(node.Finalizers, Finalizer) {
		meta["finalizers"] = append(slices.Clone(node.Finalizers), Finalizer)
	}
	if !sameTaints(taints, node.Spec.Taints) {
		patch["spec"] = map[string]any{"taints": taints}
	}
	if len(meta) == 0 && len(patch) == 0 {
		return nil, nil
	}
	meta["resourceVersion"] = node.ResourceVersion
	patch["metadata"] = meta
	return json.Marshal(patch)
}

// apply puts into labels and notes what must change of those and of the annotations for the declaration, and returns the
// taints that the node should have.
func (w want) apply(node *corev1.Node, labels, notes map[string]any) []corev1.Taint {
	wanted := maps.Clone(w.declared.Labels)
	if w.server {
		if wanted == nil {
			wanted = map[string]string{}
		}
		wanted[controlPlaneLabel] = "true"
	}
	had, first := ownedBy(node)
	for _, name := range had.labels {
		_, keep := wanted[name]
		if _, there := node.Labels[name]; there && !keep {
			labels[name] = nil
		}
	}
	for name, value := range wanted {
		if have, ok := node.Labels[name]; !ok || have != value {
			labels[name] = value
		}
	}
	has := owned{labels: slices.Sorted(maps.Keys(wanted))}
	var taints []corev1.Taint
	taints, has.taints = wantTaints(node.Spec.Taints, w.declared.Taints, had.taints, first)
	if node.Labels[sealLabel] != has.seal() {
		labels[sealLabel] = has.seal()
	}
	for note, names := range map[string][]string{ownedLabels: has.labels, ownedTaints: has.taints} {
		text := strings.Join(names, " ")
		if have, ok := node.Annotations[note]; !ok || have != text {
			notes[note] = text
		}
	}
	return taints
}

// wantTaints returns the taints that a Node should have, and the names of those to remember as its configuration's.
// Those that it has when it registers are its own; later, one that somebody else set is neither changed nor owned.
func wantTaints(have, declare []corev1.Taint, had []string, first bool) (taints []corev1.Taint, mine []string) {
	var add []corev1.Taint
	for _, t := range declare {
		name := declared.Name(t)
		i := slices.IndexFunc(have, func(h corev1.Taint) bool { return declared.Name(h) == name })
		if i >= 0 && !first && !slices.Contains(had, name) {
			continue
		}
		mine = append(mine, name)
		if i < 0 || have[i].Value != t.Value {
			add = append(add, t)
		}
	}
	for _, h := range have {
		name := declared.Name(h)
		dropped := slices.Contains(had, name) && !slices.Contains(mine, name)
		replaced := slices.ContainsFunc(add, func(a corev1.Taint) bool { return declared.Name(a) == name })
		if !dropped && !replaced {
			taints = append(taints, h)
		}
	}
	slices.Sort(mine)
	return append(taints, add...), mine
}

// sameTaints compares without regard to the order: the controllers of Kubernetes add and drop theirs anywhere.
func sameTaints(a, b []corev1.Taint) bool {
	return len(a) == len(b) && !slices.ContainsFunc(a, func(t corev1.Taint) bool {
		return !slices.ContainsFunc(b, func(o corev1.Taint) bool { return o.MatchTaint(&t) && o.Value == t.Value })
	})
}
