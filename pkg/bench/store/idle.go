package store

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/cairn-os/cairn/pkg/bench"
	"github.com/cairn-os/cairn/pkg/build/image"
	"github.com/cairn-os/cairn/pkg/build/progress"
)

// settling is how long a machine is left alone before it counts as idle.
const settling = 3 * time.Minute

// usage is what a store has used up to a moment.
type usage struct {
	at       time.Time
	cpu      time.Duration
	written  int64 // bytes
	revision int64
	memory
}

// idler is a machine whose apiserver, with nothing to do, uses a store of
// ours.
type idler struct {
	*machine
	system     *system
	start, end usage
}

// Idle measures what an idle apiserver makes the stores do for so long: two
// machines, alike but for the store, run beside each other. Their files go
// below dir.
func Idle(ctx context.Context, p Programs, built *image.Output, dir string, long time.Duration) (report *bench.Report, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	finish, err := startReport(ctx, p)
	if err != nil {
		return nil, err
	}
	step := progress.FromContext(ctx).Start(fmt.Sprintf("idle: two machines for %s", long))
	defer step.Done(&err)
	var both []*idler
	defer func() {
		for _, i := range both {
			err = errors.Join(err, i.close(), i.system.stop(context.WithoutCancel(ctx)))
		}
	}()
	for n, k := range []kind{cairn{p.Store}, etcd{p.Etcd}} {
		step.Update("start " + k.name())
		address := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 88, 0, byte(31 + n)}), 24)
		i, err := startIdler(ctx, k, built, address, filepath.Join(dir, "idle-"+k.name()))
		if err != nil {
			return nil, err
		}
		both = append(both, i)
	}
	step.Update("settle")
	if err := pause(ctx, settling); err != nil {
		return nil, err
	}
	for _, i := range both {
		if i.start, err = i.usage(ctx); err != nil {
			return nil, err
		}
	}
	step.Update("measure")
	if err := pause(ctx, long); err != nil {
		return nil, err
	}
	for _, i := range both {
		if i.end, err = i.usage(ctx); err != nil {
			return nil, err
		}
	}
	report = finish()
	report.Figures = idleFigures(both[0], both[1])
	report.Notes = append(report.Notes, fmt.Sprintf("measured for %s, after %s of settling; figures per hour and day are scaled from that", long, settling),
		"one single-server machine each, idle: no pods, no clients but its own components")
	return report, nil
}

// startIdler boots a machine and gives its apiserver a new store of kind k.
func startIdler(ctx context.Context, k kind, built *image.Output, address netip.Prefix, dir string) (*idler, error) {
	m, err := startMachine(ctx, built, "idle-"+k.name(), address, dir)
	if err != nil {
		return nil, err
	}
	i := &idler{machine: m}
	fail := func(err error) (*idler, error) { return nil, errors.Join(err, m.close()) }
	data := filepath.Join(dir, "store")
	if err := os.RemoveAll(data); err != nil {
		return fail(err)
	}
	if i.system, err = newSystem(k, 1, data); err != nil {
		return fail(err)
	}
	i.system.members[0].socket = m.socket
	if err = m.setAside(); err == nil {
		err = i.system.start(ctx)
	}
	if err == nil {
		// The new store is empty: the node registers when its kubelet starts.
		err = m.restart(ctx, "control", "node")
	}
	if err != nil {
		return fail(errors.Join(err, i.system.stop(context.WithoutCancel(ctx))))
	}
	return i, nil
}

func (i *idler) usage(ctx context.Context) (u usage, err error) {
	m := i.system.members[0]
	if err := m.failure(); err != nil {
		return u, err
	}
	u.at = time.Now()
	if u.cpu, err = m.cpu(); err != nil {
		return u, err
	}
	if u.written, err = m.written(); err != nil {
		return u, err
	}
	if u.memory, err = m.memory(); err != nil {
		return u, err
	}
	c, err := m.connect()
	if err != nil {
		return u, err
	}
	defer c.Close()
	resp, err := c.Get(ctx, registry+"none")
	if err != nil {
		return u, err
	}
	u.revision = resp.Header.Revision
	return u, nil
}

// idleFigures are those of a (Cairn) beside b.
func idleFigures(a, b *idler) []bench.Figure {
	hour := func(i *idler, amount float64) float64 { return amount / i.end.at.Sub(i.start.at).Hours() }
	figure := func(name, unit string, budget bench.Budget, value func(*idler) float64) bench.Figure {
		return bench.Figure{Name: name, Unit: unit, Cairn: value(a), Peer: value(b), Budget: budget}
	}
	written := func(i *idler) float64 { return hour(i, megabytes(i.end.written-i.start.written)) }
	return []bench.Figure{
		figure("idle: processor time per hour", "s", bench.Budget{}, func(i *idler) float64 { return hour(i, (i.end.cpu - i.start.cpu).Seconds()) }),
		figure("idle: written per hour", "MB", bench.Budget{}, written),
		figure("idle: written per day", "MB", bench.AtMostPeer(0.5), func(i *idler) float64 { return 24 * written(i) }),
		figure("idle: revisions per hour", "1", bench.Budget{}, func(i *idler) float64 { return hour(i, float64(i.end.revision-i.start.revision)) }),
		figure("idle: resident", "MB", bench.AtMost(90), func(i *idler) float64 { return megabytes(i.end.resident) }),
		figure("idle: resident, anonymous", "MB", bench.Budget{}, func(i *idler) float64 { return megabytes(i.end.anonymous) }),
	}
}

func megabytes(n int64) float64 { return float64(n) / 1e6 }
