package join

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/cairn-os/cairn/pkg/membership"
)

// Objects of the cluster, all in Namespace.
const (
	Namespace = metav1.NamespaceSystem

	// TokenType is the type of Secrets that hold a token, TokenPrefix what their names begin with.
	TokenType   corev1.SecretType = "cairn-os.io/token"
	TokenPrefix                   = "cairn-token-"
	// NodeType is the type of Secrets that say whose a node's name is, NodePrefix what their names begin with.
	NodeType   corev1.SecretType = "cairn-os.io/node"
	NodePrefix                   = "cairn-node-"
	// SettingsName is the ConfigMap of the cluster's settings.
	SettingsName = "cairn-cluster"
	// RotationName is the Secret that is there while the cluster's authorities are replaced. No server joins meanwhile: it
	// would get authorities of which the others may not have heard.
	RotationName = "cairn-rotation"

	settingsKey = "settings.json"
)

// conflictTries bounds how often an update is repeated because somebody else was faster.
const conflictTries = 8

// LoadSettings returns the cluster's settings. The error is the apiserver's NotFound before Found has been called.
func LoadSettings(ctx context.Context, client kubernetes.Interface) (membership.Settings, error) {
	var s membership.Settings
	m, err := client.CoreV1().ConfigMaps(Namespace).Get(ctx, SettingsName, metav1.GetOptions{})
	if err != nil {
		return s, fmt.Errorf("read the cluster's settings: %w", err)
	}
	if err := json.Unmarshal([]byte(m.Data[settingsKey]), &s); err != nil {
		return s, fmt.Errorf("read the cluster's settings: %w", err)
	}
	if err := s.Validate(); err != nil {
		return s, fmt.Errorf("the cluster's settings: %w", err)
	}
	return s, nil
}

// createSettings writes the cluster's settings unless they are there: they are fixed when the cluster begins.
func createSettings(ctx context.Context, client kubernetes.Interface, s membership.Settings) error {
	if err := s.Validate(); err != nil {
		return fmt.Errorf("the cluster's settings: %w", err)
	}
	data, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("the cluster's settings: %w", err)
	}
	m := &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: SettingsName, Namespace: Namespace},
		Data:       map[string]string{settingsKey: string(data)},
	}
	_, err = client.CoreV1().ConfigMaps(Namespace).Create(ctx, m, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("write the cluster's settings: %w", err)
	}
	return nil
}

// ensureNamespace makes the namespace that the apiserver makes too, some time after it began to serve.
func ensureNamespace(ctx context.Context, client kubernetes.Interface) error {
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: Namespace}}
	_, err := client.CoreV1().Namespaces().Create(ctx, ns, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("create namespace %s: %w", Namespace, err)
	}
	return nil
}

// errUnchanged makes change leave the Secret as it is.
var errUnchanged = errors.New("unchanged")

// change reads the Secret, lets edit change it, and writes it unless somebody else wrote in between: then it starts over.
// edit gets nil when there is no Secret and returns the one to create. Its errors are returned as they are.
func change(ctx context.Context, client kubernetes.Interface, name string, edit func(*corev1.Secret) (*corev1.Secret, error)) error {
	secrets := client.CoreV1().Secrets(Namespace)
	var last error
	for range conflictTries {
		have, err := secrets.Get(ctx, name, metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
			have = nil
		case err != nil:
			return fmt.Errorf("read secret %s: %w", name, err)
		}
		want, err := edit(have.DeepCopy())
		if errors.Is(err, errUnchanged) {
			return nil
		}
		if err != nil {
			return err
		}
		if have == nil {
			_, last = secrets.Create(ctx, want, metav1.CreateOptions{})
		} else {
			_, last = secrets.Update(ctx, want, metav1.UpdateOptions{})
		}
		if last == nil {
			return nil
		}
		if !apierrors.IsConflict(last) && !apierrors.IsAlreadyExists(last) && !apierrors.IsNotFound(last) {
			break
		}
	}
	return fmt.Errorf("write secret %s: %w", name, last)
}

func newSecret(name string, kind corev1.SecretType) *corev1.Secret {
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: Namespace},
		Type:       kind,
		Data:       make(map[string][]byte),
	}
}

// listSecrets returns the Secrets of a type. It reads them all whatever is looked for, so that the time it takes says
// nothing about a name.
func listSecrets(ctx context.Context, client kubernetes.Interface, kind corev1.SecretType) ([]corev1.Secret, error) {
	l, err := client.CoreV1().Secrets(Namespace).List(ctx, metav1.ListOptions{FieldSelector: "type=" + string(kind)})
	if err != nil {
		return nil, fmt.Errorf("list secrets of type %s: %w", kind, err)
	}
	var all []corev1.Secret
	for _, s := range l.Items {
		if s.Type == kind {
			all = append(all, s)
		}
	}
	return all, nil
}
