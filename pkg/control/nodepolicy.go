package control

import (
	"context"
	"fmt"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/cairn-os/cairn/pkg/pki"
)

// nodePolicyName is that of the policy and of its binding.
const nodePolicyName = "cairn-node-pod-cidrs"

// nodePolicy keeps kubelets from giving themselves the pod addresses of others: Kubernetes lets them write the field in
// their Nodes, which only the controller manager does. What the API server fills in is written out, to compare.
func nodePolicy() *admissionv1.ValidatingAdmissionPolicy {
	fail, equivalent, scope := admissionv1.Fail, admissionv1.Equivalent, admissionv1.AllScopes
	forbidden := metav1.StatusReasonForbidden
	same := func(field, none string) string {
		value := func(object string) string {
			return "(" + object + " != null && has(" + object + ".spec) && has(" + object + ".spec." + field + ") ? " + object + ".spec." + field + " : " + none + ")"
		}
		return value("object") + " == " + value("oldObject")
	}
	validation := func(field, none string) admissionv1.Validation {
		return admissionv1.Validation{
			Expression: same(field, none), Reason: &forbidden,
			Message: "a node cannot set or change spec." + field + ": the cluster gives it its pod addresses",
		}
	}
	return &admissionv1.ValidatingAdmissionPolicy{
		ObjectMeta: metav1.ObjectMeta{Name: nodePolicyName},
		Spec: admissionv1.ValidatingAdmissionPolicySpec{
			FailurePolicy: &fail,
			MatchConstraints: &admissionv1.MatchResources{
				MatchPolicy: &equivalent, NamespaceSelector: &metav1.LabelSelector{}, ObjectSelector: &metav1.LabelSelector{},
				ResourceRules: []admissionv1.NamedRuleWithOperations{{RuleWithOperations: admissionv1.RuleWithOperations{
					Operations: []admissionv1.OperationType{admissionv1.Create, admissionv1.Update},
					Rule:       admissionv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"nodes"}, Scope: &scope},
				}}},
			},
			MatchConditions: []admissionv1.MatchCondition{{Name: "nodes", Expression: "'" + pki.NodeGroup + "' in request.userInfo.groups"}},
			Validations:     []admissionv1.Validation{validation("podCIDR", "''"), validation("podCIDRs", "[]")},
		},
	}
}

func nodePolicyBinding() *admissionv1.ValidatingAdmissionPolicyBinding {
	return &admissionv1.ValidatingAdmissionPolicyBinding{
		ObjectMeta: metav1.ObjectMeta{Name: nodePolicyName},
		Spec: admissionv1.ValidatingAdmissionPolicyBindingSpec{
			PolicyName: nodePolicyName, ValidationActions: []admissionv1.ValidationAction{admissionv1.Deny},
		},
	}
}

// ensureNodePolicy makes the policy and its binding what they are to be.
func ensureNodePolicy(ctx context.Context, client kubernetes.Interface) error {
	policies, want := client.AdmissionregistrationV1().ValidatingAdmissionPolicies(), nodePolicy()
	_, err := policies.Create(ctx, want, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		var have *admissionv1.ValidatingAdmissionPolicy
		have, err = policies.Get(ctx, want.Name, metav1.GetOptions{})
		if err == nil && !apiequality.Semantic.DeepEqual(have.Spec, want.Spec) {
			have.Spec = want.Spec
			_, err = policies.Update(ctx, have, metav1.UpdateOptions{})
		}
	}
	if err != nil {
		return fmt.Errorf("write admission policy %s: %w", want.Name, err)
	}
	return ensureNodePolicyBinding(ctx, client)
}

func ensureNodePolicyBinding(ctx context.Context, client kubernetes.Interface) error {
	bindings, want := client.AdmissionregistrationV1().ValidatingAdmissionPolicyBindings(), nodePolicyBinding()
	_, err := bindings.Create(ctx, want, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		var have *admissionv1.ValidatingAdmissionPolicyBinding
		have, err = bindings.Get(ctx, want.Name, metav1.GetOptions{})
		if err == nil && !apiequality.Semantic.DeepEqual(have.Spec, want.Spec) {
			have.Spec = want.Spec
			_, err = bindings.Update(ctx, have, metav1.UpdateOptions{})
		}
	}
	if err != nil {
		return fmt.Errorf("write binding of admission policy %s: %w", want.Name, err)
	}
	return nil
}
