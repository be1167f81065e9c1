package cluster

import (
	"math"
	"strings"
	"testing"
	"time"

	"github.com/cairn-os/cairn/pkg/bench"
)

const mib = 1 << 20

// figure returns the figure of a name; each name is there once.
func figure(t *testing.T, all []bench.Figure, name string) bench.Figure {
	t.Helper()
	var found []bench.Figure
	for _, f := range all {
		if f.Name == name {
			found = append(found, f)
		}
	}
	if len(found) != 1 {
		t.Fatalf("%d figures %q", len(found), name)
	}
	return found[0]
}

func TestIdleFigures(t *testing.T) {
	r := &run{}
	both := pair[account]{
		{
			"init": {anonymous: 2 * mib, pss: 4 * mib, count: 1}, "cairnd": {anonymous: mib, pss: mib, count: 1},
			"control": {anonymous: 100 * mib, pss: 120 * mib, cpu: 3 * time.Second, count: 1},
			"store":   {anonymous: 10 * mib, pss: 20 * mib, cpu: time.Second, written: 1e6, count: 1},
			"sshd":    {anonymous: mib, pss: mib, count: 1},
			pauses:    {pss: 1000 * mib, count: 1},
		},
		{
			"kube-apiserver": {anonymous: 190 * mib, pss: 260 * mib, count: 1}, "kube-scheduler": {anonymous: 10 * mib, pss: 40 * mib, count: 1},
			"etcd": {anonymous: 30 * mib, pss: 60 * mib, written: 3e6, count: 1}, "kubelet": {written: 1e6, pss: mib, count: 1},
		},
	}
	r.idleFigures(roleName{server, singleServer}, pair[idled]{{both[0], 150 * mib}, {both[1], 300 * mib}}, 0.5)
	for _, tt := range []struct {
		name        string
		cairn, peer float64
		budget      string
	}{
		{"in use", 150, 300, ""},
		{"all, anonymous", 114, 230, ""},
		{"all, PSS", 146, 361, ""},
		{"all, processor time per hour", 8, 0, ""},
		{"written per day", 48, 192, ""},
		{"written per day, beside etcd alone", 48, 144, "≤ 0.5x"},
		{"store, PSS", 20, 60, ""},
		{"control plane, anonymous", 100, 200, ""},
		{"init and machine daemon, PSS", 5, math.NaN(), ""},
	} {
		f := figure(t, r.figures, "idle single server: "+tt.name)
		samePeer := f.Peer == tt.peer || math.IsNaN(f.Peer) && math.IsNaN(tt.peer)
		if f.Cairn != tt.cairn || !samePeer || f.Budget.String() != tt.budget {
			t.Errorf("%s: %v beside %v, budget %q; want %v beside %v, %q", f.Name, f.Cairn, f.Peer, f.Budget, tt.cairn, tt.peer, tt.budget)
		}
	}
	notes := strings.Join(r.notes, "\n")
	for _, want := range []string{"no process of Cairn for node", "sshd 1.0/1.0", "kube-scheduler 10.0/40.0"} {
		if !strings.Contains(notes, want) {
			t.Errorf("no %q in the notes:\n%s", want, notes)
		}
	}

	r = &run{}
	r.idleFigures(roleName{agent, "agent"}, pair[idled]{
		{account{"node": {pss: 190 * mib, count: 1}}, 90 * mib}, {account{"kubelet": {pss: 60 * mib, count: 1}}, 60 * mib},
	}, 1)
	if f := figure(t, r.figures, "idle agent: in use"); f.Budget.String() != "≤ 128" || !f.OK() {
		t.Errorf("an agent of 90 MiB: budget %q, ok %v; want ≤ 128 and kept", f.Budget, f.OK())
	}
	for _, f := range r.figures {
		if strings.Contains(f.Name, "etcd") {
			t.Errorf("an agent has no etcd: %s", f.Name)
		}
	}
}

func TestLoadFigures(t *testing.T) {
	r := &run{Options: Options{Plan: Plan{Pods: 50, Rounds: 2, Asked: 5 * time.Second}}}
	one := loaded{
		start: []time.Duration{time.Hour, 30 * time.Second, time.Second}, gone: []time.Duration{5 * time.Second},
		cpu: []time.Duration{9 * time.Second}, account: account{
			shims: {anonymous: 200e6, count: 50}, pauses: {anonymous: 50e6, count: 50}, "node": {anonymous: mib, pss: 2 * mib, count: 1},
		},
	}
	for kind := range requestKinds {
		for n := range 100 {
			one.latencies[kind] = append(one.latencies[kind], time.Duration(n+1)*time.Millisecond)
		}
	}
	r.loadFigures(pair[loaded]{one, one})
	for name, want := range map[string]float64{
		"50 pods: created to all Ready": 30, "50 pods: started per minute": 100, "50 pods: deleted to all gone": 5, "50 pods: processor time of the machine while they start": 9,
		"50 pods: shim and pause of each, anonymous": 5, "50 pods: 4 clients, GET of a pod, p50": 51,
		"50 pods: 4 clients, PATCH of a ConfigMap, p99": 100, "50 pods: 4 clients, requests": 40,
	} {
		if f := figure(t, r.figures, name); f.Cairn != want || f.Peer != want {
			t.Errorf("%s: %v beside %v; want %v", name, f.Cairn, f.Peer, want)
		}
	}
}
