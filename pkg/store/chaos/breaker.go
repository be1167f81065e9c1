package chaos

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/cairn-os/cairn/pkg/store/chaos/history"
	"github.com/cairn-os/cairn/pkg/store/chaos/nodes"
)

// restartDelay is how long a supervisor waits before it starts a program that
// ended by itself.
const restartDelay = 500 * time.Millisecond

// breaker brings a plan's faults upon nodes.
type breaker struct {
	set     *nodes.Set
	target  Target
	history *history.History

	mu     sync.Mutex
	losses map[int][]nodes.Loss // by the number of the fault, while it lasts
	down   map[int]int          // node to the number of faults that keep it down
	paused map[int]int
	full   map[int]int
	slow   map[int]int
	told   []told // what happened, for the report
	faults map[FaultKind]int
}

// told is something that happened.
type told struct {
	at   time.Duration
	text string
}

func newBreaker(set *nodes.Set, target Target, h *history.History) *breaker {
	return &breaker{
		set: set, target: target, history: h,
		losses: map[int][]nodes.Loss{}, down: map[int]int{}, paused: map[int]int{}, full: map[int]int{}, slow: map[int]int{},
		faults: map[FaultKind]int{},
	}
}

// run carries out a plan. When it returns, all is healed and every program
// has been started.
func (b *breaker) run(ctx context.Context, plan []Fault) error {
	var faults sync.WaitGroup
	problems := make([]error, len(plan))
	for i, f := range plan {
		faults.Go(func() {
			if pause(ctx, f.At-b.history.Now()) == nil {
				problems[i] = b.bring(ctx, i, f)
			}
		})
	}
	faults.Wait()
	return errors.Join(append(problems, b.startAll(ctx))...)
}

// supervise starts programs again that ended by themselves.
func (b *breaker) supervise(ctx context.Context) error {
	for pause(ctx, restartDelay) == nil {
		if err := b.startAll(ctx); err != nil && ctx.Err() == nil {
			return err
		}
	}
	return nil
}

func (b *breaker) startAll(ctx context.Context) error {
	for _, n := range b.set.Nodes {
		if err := b.start(ctx, n); err != nil {
			return err
		}
	}
	return nil
}

// start starts a node's program, unless it runs or a fault keeps it down.
func (b *breaker) start(ctx context.Context, n *nodes.Node) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.down[n.Index] > 0 {
		return nil
	}
	return n.Start(ctx)
}

// bring breaks something, waits, and heals it.
func (b *breaker) bring(ctx context.Context, number int, f Fault) error {
	victim := b.victim(ctx, f)
	b.tell(f, victim)
	heal, err := b.inflict(ctx, number, f, victim)
	if errors.Is(err, nodes.ErrClock) {
		b.note("%v", err)
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s: %w", f, err)
	}
	_ = pause(ctx, f.For) // What was broken is healed in any case.
	if err := heal(context.WithoutCancel(ctx)); err != nil {
		return fmt.Errorf("end of %s: %w", f, err)
	}
	return nil
}

// victim is the node that a fault is to break.
func (b *breaker) victim(ctx context.Context, f Fault) *nodes.Node {
	if f.Leader {
		if leader, _ := leader(ctx, b.target, b.set.Nodes); leader != nil {
			return leader
		}
	}
	return b.set.Nodes[f.Victim]
}

// leader asks all nodes who leads, and returns its status too; nil: none says
// that it does, and the status holds the newest term that was told.
func leader(ctx context.Context, target Target, all []*nodes.Node) (*nodes.Node, Status) {
	ctx, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	defer cancel()
	answers := make([]Status, len(all))
	var wg sync.WaitGroup
	for i, n := range all {
		wg.Go(func() {
			if s, err := target.Status(ctx, n); err == nil {
				answers[i] = s
			}
		})
	}
	wg.Wait()
	var found *nodes.Node
	var status Status
	for i, s := range answers {
		if s.Leads && (found == nil || s.Term > status.Term) {
			found, status = all[i], s
		}
	}
	if found == nil {
		for _, s := range answers {
			status.Term = max(status.Term, s.Term)
		}
	}
	return found, status
}

func (b *breaker) inflict(ctx context.Context, number int, f Fault, n *nodes.Node) (heal func(context.Context) error, err error) {
	switch f.Kind {
	case Kill:
		return b.end(n, n.Kill), nil
	case Terminate:
		return b.end(n, func() { n.Stop(10 * time.Second) }), nil
	case KillAll:
		var heals []func(context.Context) error
		for _, each := range b.set.Nodes {
			heals = append(heals, b.end(each, each.Kill))
		}
		return func(ctx context.Context) error {
			var errs []error
			for _, heal := range heals {
				errs = append(errs, heal(ctx))
			}
			return errors.Join(errs...)
		}, nil
	case Pause:
		return b.hold(b.paused, n.Index, n.Pause, n.Resume)
	case FillDisk:
		return b.hold(b.full, n.Index, n.Fill, n.Free)
	case Slow:
		return b.hold(b.slow, n.Index, func() error { return n.Throttle(true) }, func() error { return n.Throttle(false) })
	case Clock:
		return func(context.Context) error { return n.SetClock(0) }, n.SetClock(time.Duration(f.Amount) * time.Second)
	default:
		lost := lossesOf(f, n.Index, len(b.set.Nodes))
		return func(ctx context.Context) error { return b.lose(ctx, number, nil) }, b.lose(ctx, number, lost)
	}
}

// end ends a node's process by stop and keeps it down.
func (b *breaker) end(n *nodes.Node, stop func()) (heal func(context.Context) error) {
	b.mu.Lock()
	b.down[n.Index]++
	b.mu.Unlock()
	stop()
	return func(ctx context.Context) error {
		b.mu.Lock()
		b.down[n.Index]--
		b.mu.Unlock()
		return b.start(ctx, n)
	}
}

// hold applies a fault that two of the plan's may share: the last one heals.
func (b *breaker) hold(held map[int]int, node int, apply, heal func() error) (func(context.Context) error, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	held[node]++
	return func(context.Context) error {
		b.mu.Lock()
		defer b.mu.Unlock()
		if held[node]--; held[node] > 0 {
			return nil
		}
		return heal()
	}, apply()
}

// lossesOf spells a network fault of a node of count.
func lossesOf(f Fault, victim, count int) []nodes.Loss {
	percent := 100
	if f.Kind == Lossy {
		percent = f.Amount
	}
	var all []nodes.Loss
	for i := range count {
		if i == victim || f.Kind == Cut && i != (victim+f.Other)%count {
			continue
		}
		if f.Kind != Deafen {
			all = append(all, nodes.Loss{From: victim, To: i, Percent: percent})
		}
		if f.Kind != Mute {
			all = append(all, nodes.Loss{From: i, To: victim, Percent: percent})
		}
	}
	return all
}

func (b *breaker) lose(ctx context.Context, number int, losses []nodes.Loss) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.losses[number] = losses
	var all []nodes.Loss
	for _, l := range b.losses {
		all = append(all, l...)
	}
	return b.set.Lose(ctx, all)
}

func (b *breaker) tell(f Fault, n *nodes.Node) {
	b.mu.Lock()
	b.faults[f.Kind]++
	b.mu.Unlock()
	b.note("%s: node %d", f, n.Index)
}

func (b *breaker) note(format string, args ...any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.told = append(b.told, told{b.history.Now(), fmt.Sprintf(format, args...)})
}
