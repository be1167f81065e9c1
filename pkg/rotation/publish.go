package rotation

import (
	"context"
	"fmt"
	"os"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/cairn-os/cairn/pkg/pki"
)

const (
	// rootConfigMap is in every namespace; Kubernetes' controllers write it.
	rootConfigMap = "kube-root-ca.crt"
	rootKey       = "ca.crt"
	// trustConfigMap tells apiservers that extend this one whom to believe. Kubernetes' apiserver adds its authorities to it
	// and takes none away before they end.
	trustConfigMap = "extension-apiserver-authentication"
)

// publish returns the ConfigMaps that still publish old authorities. It takes them out of where nobody else would.
func publish(ctx context.Context, client kubernetes.Interface, dir string) (stale []string, err error) {
	roots, err := os.ReadFile(pki.CertFile(dir, pki.ServerCA))
	if err != nil {
		return nil, fmt.Errorf("authority of servers: %w", err)
	}
	maps, err := client.CoreV1().ConfigMaps(metav1.NamespaceAll).List(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + rootConfigMap})
	if err != nil {
		return nil, fmt.Errorf("list config maps %s: %w", rootConfigMap, err)
	}
	for _, m := range maps.Items {
		if m.Name == rootConfigMap && m.Data[rootKey] != string(roots) {
			stale = append(stale, m.Namespace+"/"+m.Name)
		}
	}
	changed, err := publishTrust(ctx, client, dir)
	if changed { // looked at again: an apiserver that has not reread its files yet would put it back
		stale = append(stale, metav1.NamespaceSystem+"/"+trustConfigMap)
	}
	slices.Sort(stale)
	return stale, err
}

func publishTrust(ctx context.Context, client kubernetes.Interface, dir string) (changed bool, err error) {
	maps := client.CoreV1().ConfigMaps(metav1.NamespaceSystem)
	m, err := maps.Get(ctx, trustConfigMap, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return false, nil // the apiserver makes it with what it trusts
	}
	if err != nil {
		return false, fmt.Errorf("read config map %s: %w", trustConfigMap, err)
	}
	for key, authority := range map[string]string{"client-ca-file": pki.ClientCA, "requestheader-client-ca-file": pki.RequestHeaderCA} {
		want, err := os.ReadFile(pki.CertFile(dir, authority))
		if err != nil {
			return false, fmt.Errorf("authority %s: %w", authority, err)
		}
		if have, ok := m.Data[key]; ok && have != string(want) {
			m.Data[key] = string(want)
			changed = true
		}
	}
	if !changed {
		return false, nil
	}
	if _, err := maps.Update(ctx, m, metav1.UpdateOptions{}); err != nil && !apierrors.IsConflict(err) {
		return true, fmt.Errorf("write config map %s: %w", trustConfigMap, err)
	}
	return true, nil
}
