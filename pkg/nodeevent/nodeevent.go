// Package nodeevent tells a cluster's operator about a node: as Events of the Node object, which `kubectl describe node`
// shows.
package nodeevent

import (
	"context"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
)

// maxMessage is the longest message, in bytes, that the apiserver takes.
const maxMessage = 1024

// Event is what is told.
type Event struct {
	Node    string
	Warning bool   // otherwise it is normal
	Reason  string // in CamelCase, for machines
	Message string // one that is too long is cut
	At      time.Time
}

// Create writes the Event. As the kubelet's, it names the Node by its name in place of its UID: kubectl looks for both, and
// the Node may not be there yet.
func Create(ctx context.Context, client kubernetes.Interface, e Event) error {
	const component = "cairn-control"
	kind := corev1.EventTypeNormal
	if e.Warning {
		kind = corev1.EventTypeWarning
	}
	message := e.Message
	if len(message) > maxMessage {
		message = strings.ToValidUTF8(message[:maxMessage], "")
	}
	at := metav1.NewTime(e.At)
	_, err := client.CoreV1().Events(metav1.NamespaceDefault).Create(ctx, &corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{Namespace: metav1.NamespaceDefault, GenerateName: e.Node + ".cairn-"},
		InvolvedObject: corev1.ObjectReference{APIVersion: "v1", Kind: "Node", Name: e.Node, UID: types.UID(e.Node)},
		Type:           kind, Reason: e.Reason, Message: message,
		Source: corev1.EventSource{Component: component, Host: e.Node}, ReportingController: component,
		FirstTimestamp: at, LastTimestamp: at, Count: 1,
	}, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("event %s of node %s: %w", e.Reason, e.Node, err)
	}
	return nil
}
