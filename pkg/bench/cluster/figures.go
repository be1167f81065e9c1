package cluster

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/cairn-os/cairn/pkg/bench"
)

func (r *run) add(name, unit string, budget bench.Budget, cairn, peer float64) {
	r.figures = append(r.figures, bench.Figure{Name: name, Unit: unit, Cairn: cairn, Peer: peer, Budget: budget})
}

func (r *run) addSeconds(name string, budget bench.Budget, cairn, peer time.Duration) {
	r.add(name, "s", budget, cairn.Seconds(), peer.Seconds())
}

// job is what processes of both systems do.
type job struct {
	name           string
	cairn, vanilla []string
}

// jobs are those that figures tell apart. A process of another name counts in
// the sums and is told by a note.
func jobs() []job {
	return []job{
		{"store", []string{"store"}, []string{"etcd"}},
		{"control plane", []string{"control"}, []string{"kube-apiserver", "kube-controller-manager", "kube-scheduler"}},
		{"node", []string{"node"}, []string{"kubelet", "kube-proxy"}},
		{"containerd", []string{"containerd"}, []string{"containerd"}},
		{"init and machine daemon", []string{"init", "cairnd"}, nil},
	}
}

// of is what the named processes use together; false when there is none.
func (a account) of(names []string) (sum usage, ok bool) {
	for _, name := range names {
		u, there := a[name]
		sum, ok = sum.plus(u), ok || there
	}
	return sum, ok
}

// idleFigures are those of a role: in sum, and by job.
func (r *run) idleFigures(role roleName, used pair[idled], hours float64) {
	label := "idle " + role.name + ": "
	memory := bench.Budget{}
	if role.role == agent {
		memory = bench.AtMost(agentMiB)
	}
	r.add(label+"in use", "MiB", memory, mebibytes(used[0].inUse), mebibytes(used[1].inUse))
	both := pair[account]{used[0].account, used[1].account}
	sum := pair[usage]{both[0].total(), both[1].total()}
	r.memoryFigures(label+"all", sum[0], sum[1], hours)
	perDay := func(u usage) float64 { return 24 * megabytes(u.written) / hours }
	r.add(label+"written per day", "MB", bench.Budget{}, perDay(sum[0]), perDay(sum[1]))
	if etcd, ok := both[1].of([]string{"etcd"}); ok && role.name == singleServer {
		r.add(label+"written per day, beside etcd alone", "MB", bench.AtMostPeer(halfOfEtcd), perDay(sum[0]), perDay(etcd))
	}
	for _, j := range jobs() {
		a, ours := both[0].of(j.cairn)
		b, theirs := both[1].of(j.vanilla)
		if ours {
			r.memoryFigures(label+j.name, a, b, hours)
		} else if theirs {
			r.notes = append(r.notes, fmt.Sprintf("%sno process of Cairn for %s", label, j.name))
		}
	}
	for i, system := range []string{"cairn", "vanilla"} {
		r.notes = append(r.notes, fmt.Sprintf("%s%s, MiB anonymous/PSS: %s", label, system, both[i]))
	}
}

// memoryFigures tell also of processor time. A peer that uses nothing at all
// has no such process.
func (r *run) memoryFigures(label string, cairn, peer usage, hours float64) {
	beside := func(value float64) float64 {
		if peer.count == 0 {
			return math.NaN()
		}
		return value
	}
	r.add(label+", anonymous", "MiB", bench.Budget{}, mebibytes(cairn.anonymous), beside(mebibytes(peer.anonymous)))
	r.add(label+", PSS", "MiB", bench.Budget{}, mebibytes(cairn.pss), beside(mebibytes(peer.pss)))
	r.add(label+", processor time per hour", "s", bench.Budget{}, cairn.cpu.Seconds()/hours, beside(peer.cpu.Seconds()/hours))
}

// String tells the memory of each process.
func (a account) String() string {
	var all []string
	for _, name := range slices.Sorted(maps.Keys(a)) {
		all = append(all, fmt.Sprintf("%s %.1f/%.1f", name, mebibytes(a[name].anonymous), mebibytes(a[name].pss)))
	}
	return strings.Join(all, ", ")
}

// loadFigures are those with pods.
func (r *run) loadFigures(l pair[loaded]) {
	n := r.Plan.Pods
	label := fmt.Sprintf("%d pods: ", n)
	median := func(of func(loaded) []time.Duration) (cairn, peer time.Duration) {
		return bench.Median(of(l[0])), bench.Median(of(l[1]))
	}
	cairn, peer := median(func(l loaded) []time.Duration { return l.start })
	r.addSeconds(label+"created to all Ready", bench.Budget{}, cairn, peer)
	r.add(label+"started per minute", "1/min", bench.Budget{}, float64(n)/cairn.Minutes(), float64(n)/peer.Minutes())
	cairn, peer = median(func(l loaded) []time.Duration { return l.cpu })
	r.addSeconds(label+"processor time of the machine while they start", bench.Budget{}, cairn, peer)
	cairn, peer = median(func(l loaded) []time.Duration { return l.gone })
	r.addSeconds(label+"deleted to all gone", bench.Budget{}, cairn, peer)
	perPod := func(a account) float64 { return megabytes(a[shims].plus(a[pauses]).anonymous) / float64(n) }
	r.add(label+"shim and pause of each, anonymous", "MB", bench.AtMost(perPodMB), perPod(l[0].account), perPod(l[1].account))
	sum := pair[usage]{l[0].account.total(), l[1].account.total()}
	r.add(label+"whole server, anonymous", "MiB", bench.Budget{}, mebibytes(sum[0].anonymous), mebibytes(sum[1].anonymous))
	r.add(label+"whole server, PSS", "MiB", bench.Budget{}, mebibytes(sum[0].pss), mebibytes(sum[1].pss))
	for kind, name := range requestNames() {
		took := pair[[]time.Duration]{l[0].latencies[kind], l[1].latencies[kind]}
		for _, p := range []float64{0.5, 0.99} {
			r.add(fmt.Sprintf("%s%d clients, %s, p%.0f", label, clients, name, 100*p), "ms", bench.Budget{},
				bench.Milliseconds(bench.Percentile(took[0], p)), bench.Milliseconds(bench.Percentile(took[1], p)))
		}
	}
	asked := time.Duration(r.Plan.Rounds) * r.Plan.Asked
	r.add(fmt.Sprintf("%s%d clients, requests", label, clients), "1/s", bench.Budget{}, l[0].latencies.rate(asked), l[1].latencies.rate(asked))
}

// rate is how many requests a second were answered.
func (l latencies) rate(long time.Duration) float64 {
	n := 0
	for _, all := range l {
		n += len(all)
	}
	return float64(n) / long.Seconds()
}

func mebibytes(n int64) float64 { return float64(n) / (1 << 20) }
func megabytes(n int64) float64 { return float64(n) / 1e6 }
