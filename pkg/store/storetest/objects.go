package storetest

import (
	"fmt"
	"math/rand/v2"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// protobufPrefix begins what the apiserver stores as protobuf.
const protobufPrefix = "k8s\x00\n\x0b\n\x02v1\x12\x03Pod"

// Object returns what an apiserver stores for a pod of number i, changed for
// the n-th time: some 1.5 kB of protobuf. Its parts repeat, from object to
// object and within, as those of a real one do, and no more.
func Object(i, n int64) string {
	r := rand.New(rand.NewPCG(uint64(i), 1))
	changed := rand.New(rand.NewPCG(uint64(i), uint64(n)))
	at := metav1.NewTime(time.Unix(1_790_000_000+n*10, 0))
	pod := fmt.Sprintf("%s-%08x-%05x", []string{"coredns", "till", "inventory", "metrics-server", "price-board"}[r.IntN(5)], r.Uint32(), r.IntN(1<<20))
	p := corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name: pod, Namespace: "shop", GenerateName: pod[:len(pod)-5], UID: uid(r), ResourceVersion: "", CreationTimestamp: metav1.NewTime(time.Unix(1_780_000_000+i, 0)),
			Labels:          map[string]string{"app": pod[:4], "pod-template-hash": fmt.Sprintf("%08x", r.Uint32()), "app.kubernetes.io/name": pod[:4]},
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: pod[:len(pod)-6], UID: uid(r)}},
			ManagedFields: []metav1.ManagedFieldsEntry{{
				Manager: "kubelet", Operation: "Update", APIVersion: "v1", Time: &at, FieldsType: "FieldsV1", Subresource: "status",
				FieldsV1: &metav1.FieldsV1{Raw: []byte(`{"f:status":{"f:conditions":{"k:{\"type\":\"ContainersReady\"}":{".":{},"f:lastTransitionTime":{},"f:status":{},"f:type":{}},"k:{\"type\":\"Ready\"}":{".":{},"f:lastTransitionTime":{},"f:status":{},"f:type":{}}},"f:containerStatuses":{},"f:phase":{},"f:podIP":{},"f:startTime":{}}}`)},
			}},
		},
		Spec: corev1.PodSpec{
			NodeName: fmt.Sprintf("store-%02d", r.IntN(5)), ServiceAccountName: "default", SchedulerName: "default-scheduler", DNSPolicy: "ClusterFirst", RestartPolicy: "Always",
			Containers: []corev1.Container{{
				Name: pod[:4], Image: fmt.Sprintf("registry.example/shop/%s@sha256:%016x%016x%016x%016x", pod[:4], r.Uint64(), r.Uint64(), r.Uint64(), r.Uint64()),
				ImagePullPolicy: "IfNotPresent", TerminationMessagePath: "/dev/termination-log", TerminationMessagePolicy: "File",
				Ports:     []corev1.ContainerPort{{ContainerPort: 8080, Protocol: "TCP"}},
				Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{"cpu": resource.MustParse("100m"), "memory": resource.MustParse("64Mi")}},
			}},
		},
		Status: corev1.PodStatus{
			Phase: "Running", PodIP: fmt.Sprintf("10.42.%d.%d", r.IntN(5), r.IntN(255)), StartTime: &at,
			Conditions: []corev1.PodCondition{
				{Type: "Ready", Status: "True", LastTransitionTime: at}, {Type: "ContainersReady", Status: "True", LastTransitionTime: at},
				{Type: "PodScheduled", Status: "True", LastTransitionTime: at},
			},
			ContainerStatuses: []corev1.ContainerStatus{{
				Name: pod[:4], Ready: true, RestartCount: int32(n), ContainerID: fmt.Sprintf("containerd://%016x%016x%016x%016x", changed.Uint64(), changed.Uint64(), changed.Uint64(), changed.Uint64()),
			}},
		},
	}
	data, err := p.Marshal()
	if err != nil {
		return err.Error() // Of no consequence: a benchmark's filling.
	}
	return protobufPrefix + string(data)
}

func uid(r *rand.Rand) types.UID {
	return types.UID(fmt.Sprintf("%08x-%04x-4%03x-a%03x-%012x", r.Uint32(), r.IntN(1<<16), r.IntN(1<<12), r.IntN(1<<12), r.Uint64()>>16))
}
