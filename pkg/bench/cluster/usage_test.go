package cluster

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-os/cairn/pkg/containerd"
)

func TestPauseImage(t *testing.T) {
	if pauseImage != containerd.PauseImage {
		t.Errorf("vanilla's sandboxes are of %s; want Cairn's %s", pauseImage, containerd.PauseImage)
	}
}

func TestBelongs(t *testing.T) {
	const v1 = "4:memory:/cairn/bench-one/kubepods/besteffort/pod7/c\n3:cpu:/other\n0::/\n"
	for _, tt := range []struct {
		groups, node string
		inside, pod  bool
	}{
		{"5:memory:/cairn/bench-one\n0::/\n", "bench-one", true, false},
		{"5:memory:/cairn/bench-one\n", "bench", false, false},
		{"0::/cairn/bench-one/init\n", "bench-one", true, false},
		{"0::/cairn/bench-one/cairn/shims\n", "bench-one", true, false},
		{v1, "bench-one", true, true},
		{"0::/jobs/7/cairn/bench-one/kubepods/burstable/pod7/c\n", "bench-one", true, true},
		{"0::/user.slice\n", "bench-one", false, false},
		{"", "bench-one", false, false},
	} {
		if inside, pod := belongs(tt.groups, tt.node); inside != tt.inside || pod != tt.pod {
			t.Errorf("belongs(%q, %s) = %v, %v; want %v, %v", tt.groups, tt.node, inside, pod, tt.inside, tt.pod)
		}
	}
}

func TestProcessNames(t *testing.T) {
	for _, tt := range []struct {
		kind kind
		argv []string
		want string
	}{
		{&cairn{}, []string{"/usr/sbin/init", "--container"}, "init"},
		{&cairn{}, []string{"/usr/bin/cairn-kube", "control", "--config", "x"}, "control"},
		{&cairn{}, []string{"/usr/bin/cairn-store", "--config", "x"}, "store"},
		{&cairn{}, []string{"/usr/bin/cairnd"}, "cairnd"},
		{&cairn{}, []string{"/usr/bin/containerd-shim-runc-v2", "-namespace", "k8s.io"}, shims},
		{&vanilla{}, []string{"etcd", "--name=x"}, "etcd"},
		{&vanilla{}, []string{"/usr/bin/containerd-shim-runc-v2"}, shims},
		{&vanilla{}, []string{"/usr/bin/peerinit"}, ""},
	} {
		if got := tt.kind.process(tt.argv); got != tt.want {
			t.Errorf("%s: %q is %q; want %q", tt.kind.name(), tt.argv, got, tt.want)
		}
	}
}

func TestAccounts(t *testing.T) {
	before := account{
		"a": {anonymous: 9, pss: 10, cpu: time.Second, written: 100, count: 1},
		"c": {cpu: time.Minute, written: 1e6, count: 1},
	}
	after := account{
		"a":    {anonymous: 11, pss: 12, cpu: 3 * time.Second, written: 150, count: 1},
		"b":    {anonymous: 1, pss: 2, cpu: time.Second, written: 10, count: 2}, // began meanwhile
		"c":    {cpu: time.Second, written: 5, count: 1},                        // began anew
		inPods: {anonymous: 1000, pss: 1000, cpu: time.Hour, written: 1000, count: 3},
		pauses: {anonymous: 1000, pss: 1000, cpu: time.Hour, written: 1000, count: 3},
	}
	used := after.since(before)
	want := usage{anonymous: 12, pss: 14, cpu: 4 * time.Second, written: 65, count: 4}
	if got := used.total(); got != want {
		t.Errorf("total = %+v; want %+v", got, want)
	}
	half := mean([]account{{"a": {anonymous: 10, count: 1}}, {"a": {anonymous: 20, count: 1}, "b": {pss: 8, count: 1}}})
	if diff := cmp.Diff(account{"a": {anonymous: 15, count: 2}, "b": {pss: 4, count: 1}}, half, cmp.AllowUnexported(usage{})); diff != "" {
		t.Errorf("mean (-want +got):\n%s", diff)
	}
}

func TestTicks(t *testing.T) {
	if got := ticks(250); got != 2500*time.Millisecond {
		t.Errorf("ticks(250) = %s; want 2.5 s", got)
	}
}

func TestReclaimable(t *testing.T) {
	for _, tt := range []struct {
		stat string
		want int64
		bad  bool
	}{
		{"anon 5\nfile 90\nactive_file 30\ninactive_file 40\nslab_reclaimable 7\n", 77, false},
		{"active_file 1\ninactive_file 2\ntotal_active_file 30\ntotal_inactive_file 40\n", 70, false},
		{"anon 5\n", 0, true},
		{"active_file many\n", 0, true},
		{"", 0, true},
	} {
		got, err := reclaimable(tt.stat)
		if got != tt.want || (err != nil) != tt.bad {
			t.Errorf("reclaimable(%q) = %d, %v; want %d, an error: %v", tt.stat, got, err, tt.want, tt.bad)
		}
	}
}
