package rotation

import (
	"context"
	"log/slog"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
)

// event makes an Event of a Node, as the kubelet's are. That it cannot be made is no reason to stop.
func event(ctx context.Context, client kubernetes.Interface, log *slog.Logger, node string, at time.Time, kind, reason, message string) {
	const most = 1024 // of a message; the apiserver refuses longer ones
	now := metav1.NewTime(at)
	_, err := client.CoreV1().Events(metav1.NamespaceDefault).Create(ctx, &corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{Namespace: metav1.NamespaceDefault, GenerateName: node + ".authorities-"},
		InvolvedObject: corev1.ObjectReference{APIVersion: "v1", Kind: "Node", Name: node, UID: types.UID(node)},
		Type:           kind, Reason: reason, Message: message[:min(len(message), most)],
		Source: corev1.EventSource{Component: "cairn-control", Host: node}, FirstTimestamp: now, LastTimestamp: now, Count: 1,
	}, metav1.CreateOptions{})
	if err != nil && ctx.Err() == nil {
		log.Info("authorities: no event", "error", err)
	}
}
