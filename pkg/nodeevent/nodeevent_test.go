package nodeevent

import (
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
)

func TestCreate(t *testing.T) {
	at := time.Date(2026, 11, 22, 3, 0, 0, 0, time.UTC)
	for _, tt := range []struct {
		name, message string
		warning       bool
		kind          string
	}{
		{"normal", "all is well", false, corev1.EventTypeNormal},
		{"warning", "the clock is wrong", true, corev1.EventTypeWarning},
		{"too long, cut in a rune", strings.Repeat("ä", maxMessage), true, corev1.EventTypeWarning},
	} {
		t.Run(tt.name, func(t *testing.T) {
			client := fake.NewClientset()
			if err := Create(t.Context(), client, Event{"till-1", tt.warning, "Because", tt.message, at}); err != nil {
				t.Fatal(err)
			}
			list, err := client.CoreV1().Events("").List(t.Context(), metav1.ListOptions{})
			if err != nil || len(list.Items) != 1 {
				t.Fatalf("events: %v, %v; want one", list, err)
			}
			e := list.Items[0]
			want := corev1.ObjectReference{APIVersion: "v1", Kind: "Node", Name: "till-1", UID: "till-1"}
			if diff := cmp.Diff(want, e.InvolvedObject); diff != "" {
				t.Errorf("about (-want +got):\n%s", diff)
			}
			if e.Type != tt.kind || e.Reason != "Because" || !strings.HasPrefix(tt.message, e.Message) || !e.FirstTimestamp.Time.Equal(at) {
				t.Errorf("event = %v", e)
			}
			if len(e.Message) > maxMessage || len(e.Message) < min(len(tt.message), maxMessage-4) || !utf8.ValidString(e.Message) {
				t.Errorf("the message has %d bytes", len(e.Message))
			}
		})
	}
}
