// Package declared is what a machine's configuration wants of the machine's Node, and the form in which the machine
// writes it there for the control plane to read.
//
// A kubelet may set labels and taints when it registers, some labels not even then, and must not touch taints later. So
// the machine only declares them, in an annotation of its own Node, and the control plane decides what it applies.
package declared

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
)

const (
	// Annotation of a Node holds its machine's declaration.
	Annotation = "cairn-os.io/declared"
	// maxText bounds a declaration in bytes. All annotations of an object together may have 256 KiB.
	maxText = 64 << 10
)

// Declaration is what a configuration wants of a Node: no more labels and taints than these are kept on it.
type Declaration struct {
	Labels map[string]string
	Taints []corev1.Taint // key, value and effect; the time is not declared
}

// The names in the annotation.
type (
	wire struct {
		Labels map[string]string `json:"labels"`
		Taints []wireTaint       `json:"taints"`
	}
	wireTaint struct {
		Key    string `json:"key"`
		Value  string `json:"value"`
		Effect string `json:"effect"`
	}
)

// Text returns the annotation's value. Equal declarations have equal texts, in whatever order their taints are.
func (d Declaration) Text() (string, error) {
	w := wire{Labels: map[string]string{}, Taints: []wireTaint{}}
	maps.Copy(w.Labels, d.Labels)
	for _, t := range d.Taints {
		w.Taints = append(w.Taints, wireTaint{t.Key, t.Value, string(t.Effect)})
	}
	slices.SortFunc(w.Taints, func(a, b wireTaint) int {
		return cmp.Or(cmp.Compare(a.Key, b.Key), cmp.Compare(a.Effect, b.Effect), cmp.Compare(a.Value, b.Value))
	})
	text, err := json.Marshal(w)
	if err != nil {
		return "", fmt.Errorf("write declaration: %w", err)
	}
	return string(text), nil
}

// Parse reads an annotation's value, which a machine wrote that need not be trusted. An error names all that is wrong.
func Parse(text string) (Declaration, error) {
	if len(text) > maxText {
		return Declaration{}, fmt.Errorf("declaration of %d bytes; at most %d are taken", len(text), maxText)
	}
	var w wire
	d := json.NewDecoder(strings.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&w); err != nil {
		return Declaration{}, fmt.Errorf("read declaration: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return Declaration{}, errors.New("read declaration: text after its end")
	}
	out := Declaration{Labels: w.Labels}
	for _, t := range w.Taints {
		out.Taints = append(out.Taints, corev1.Taint{Key: t.Key, Value: t.Value, Effect: corev1.TaintEffect(t.Effect)})
	}
	return out, errors.Join(out.problems()...)
}

// problems lists what the apiserver would refuse.
func (d Declaration) problems() []error {
	var all []error
	found := func(what string, messages []string) {
		for _, m := range messages {
			all = append(all, fmt.Errorf("%s: %s", what, m))
		}
	}
	for _, key := range slices.Sorted(maps.Keys(d.Labels)) {
		found(fmt.Sprintf("label %q", key), validation.IsQualifiedName(key))
		found(fmt.Sprintf("label %q: value %q", key, d.Labels[key]), validation.IsValidLabelValue(d.Labels[key]))
	}
	seen := map[string]bool{}
	for _, t := range d.Taints {
		what := fmt.Sprintf("taint %q", Name(t))
		found(what, validation.IsQualifiedName(t.Key))
		found(fmt.Sprintf("%s: value %q", what, t.Value), validation.IsValidLabelValue(t.Value))
		switch t.Effect {
		case corev1.TaintEffectNoSchedule, corev1.TaintEffectPreferNoSchedule, corev1.TaintEffectNoExecute:
		default:
			found(what, []string{"the effect must be NoSchedule, PreferNoSchedule or NoExecute"})
		}
		if seen[Name(t)] {
			found(what, []string{"declared twice"})
		}
		seen[Name(t)] = true
	}
	return all
}

// Name is what tells one taint of a Node from another: a Node has at most one of each.
func Name(t corev1.Taint) string { return t.Key + ":" + string(t.Effect) }
