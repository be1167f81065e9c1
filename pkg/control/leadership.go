package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

// The lease kube-system/cairn-controllers says whose controllers are at work. Its holder is a node's name and a random
// part, separated by an underscore, which no name has.
const (
	leaseNamespace = metav1.NamespaceSystem
	leaseName      = "cairn-controllers"
)

// leaseTimes are those of the lease.
//
// A holder that cannot renew gives up while its controllers still have time to end before another one takes over: a
// renewal is written again after renew, at the next retry, and given up deadline after that, so that at least 20 s - 3 s -
// 2 s - 9 s = 6 s are left, and without leaseMargin more than controllersGrace; see lock.left. The deadline leaves time for
// a request that hangs for as long as leaseRequest and for another one: a store whose leader died, or whose disk pauses,
// answers again within it. The lease is written less often than client-go asks for, because each write reaches the flash of
// every server; a server that is alone writes each alone, as nobody could take over.
type leaseTimes struct {
	lasts    time.Duration // without a renewal, before another takes over
	deadline time.Duration // of trying to renew
	retry    time.Duration // between tries to take or to renew it
	renew    time.Duration // a renewal that is younger is not written again
	alone    time.Duration // the same of the cluster's only server
}

// nodeLease lets another server take over 20 s to 24 s after it saw the last renewal of one that died, and up to 5 s after
// one stopped in order.
func nodeLease() leaseTimes {
	return leaseTimes{
		lasts: 20 * time.Second, deadline: 9 * time.Second, retry: 2 * time.Second, renew: 3 * time.Second, alone: 7 * time.Second,
	}
}

const (
	// leaseRequest bounds a request for the lease.
	leaseRequest = 4 * time.Second
	// leaseMargin is between the end of the controllers, or of the process, and the earliest start of another server's.
	leaseMargin = 500 * time.Millisecond
	// leastGrace is what controllers get whose lease was over when that was noticed: another server's work already, after
	// this machine stood still for long.
	leastGrace = time.Second
)

// errControllersStuck ends the process: controllers that did not end must not work beside those of another server.
var errControllersStuck = errors.New("the controllers did not end in time when they had to")

// leadership runs this server's controllers while it holds the lease. Its states:
//
//	follower ── lease taken ──▶ leader ── lease lost ──▶ ending ── controllers ended ──▶ follower
//
// Nothing but the controllers notices: the apiserver, joining and tunnels go on in all states.
type leadership struct {
	node     string
	client   kubernetes.Interface
	log      *slog.Logger
	times    leaseTimes
	identity string
	// controllers works until its context ends, and calls started once it does its work.
	controllers func(ctx context.Context, started func()) error

	settled chan struct{} // closed once it is known who leads, and by a leader once its controllers work
	once    sync.Once
	elector atomic.Pointer[leaderelection.LeaderElector]
	clocks  *clocks
	lock    *lock     // of this term; run's alone
	offered time.Time // when the lead was given away last for a wrong clock; run's alone
}

func newLeadership(o Options, config *rest.Config, log *slog.Logger, controllers func(context.Context, func()) error) (*leadership, error) {
	times := o.lease
	if times == (leaseTimes{}) {
		times = nodeLease()
	}
	compare, err := kubernetes.NewForConfig(rest.AddUserAgent(rest.CopyConfig(config), "clocks")) // lists take longer
	if err != nil {
		return nil, err
	}
	config = rest.CopyConfig(config)
	config.Timeout = min(leaseRequest, times.deadline/2) // a request that hangs leaves time for another one
	config.QPS = -1                                      // the lease's own times are the limit
	client, err := kubernetes.NewForConfig(rest.AddUserAgent(config, "lease"))
	if err != nil {
		return nil, err
	}
	return &leadership{
		node: o.Node, client: client, log: log, times: times, controllers: controllers,
		identity: o.Node + "_" + rand.String(8), settled: make(chan struct{}), clocks: newClocks(o, compare, log),
	}, nil
}

// leader is the name of the node whose controllers are at work, as far as this server has seen.
func (l *leadership) leader() string {
	if e := l.elector.Load(); e != nil {
		return nodeOfHolder(e.GetLeader())
	}
	return ""
}

func nodeOfHolder(identity string) string {
	node, _, _ := strings.Cut(identity, "_")
	return node
}

// run takes part until ctx ends. An error says that the process must end.
func (l *leadership) run(ctx context.Context) error {
	comparing, stop := context.WithCancel(ctx)
	var compared sync.WaitGroup
	defer compared.Wait()
	defer stop()
	compared.Go(func() { l.clocks.run(comparing) })
	for ctx.Err() == nil {
		if err := l.term(ctx); err != nil {
			return err
		}
	}
	return nil
}

// term waits for the lease, leads, and returns when the lease is lost or ctx has ended, after the controllers.
func (l *leadership) term(ctx context.Context) error {
	leading := make(chan struct{})
	lock := l.newLock()
	l.lock = lock
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock: lock, Name: leaseName,
		LeaseDuration: l.times.lasts, RenewDeadline: l.times.deadline, RetryPeriod: l.times.retry,
		// Upstream would release while the controllers still work; release does it after them.
		ReleaseOnCancel: false,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(context.Context) { close(leading) },
			OnStoppedLeading: func() {},
			OnNewLeader:      l.observe,
		},
	})
	if err != nil {
		return fmt.Errorf("lease %s: %w", leaseName, err)
	}
	l.elector.Store(elector)
	// The lease is held on beyond the end of ctx, until the controllers have ended.
	hold, letGo := context.WithCancel(context.WithoutCancel(ctx))
	lost := make(chan struct{})
	go func() { elector.Run(hold); close(lost) }()
	defer func() { letGo(); <-lost }()
	select {
	case <-leading:
	case <-ctx.Done():
		return nil
	}
	err = l.leadOn(ctx, lost)
	if err != nil && !errors.Is(err, ErrHandOver) {
		return err
	}
	letGo()
	<-lost
	lock.release(l.times.deadline / 2)
	if err != nil {
		l.log.Warn("another server is to lead", "error", err)
		select { // long enough for the others to try
		case <-ctx.Done():
		case <-time.After(l.times.lasts):
		}
	}
	return nil
}

// leadOn runs the controllers again and again while they wish to begin anew. The lease is held all the time: nobody
// else's need begin for that.
func (l *leadership) leadOn(ctx context.Context, lost <-chan struct{}) error {
	for {
		l.log.Info("controllers start", "holder", l.identity)
		err := l.lead(ctx, lost)
		if !errors.Is(err, errBeginAnew) {
			return err
		}
		l.log.Info("controllers ended to begin anew", "why", err)
		select {
		case <-lost:
			return nil
		case <-ctx.Done():
			return nil
		default:
		}
	}
}

// lead runs the controllers until the lease is lost, the clock turns out to be wrong, or ctx ends.
func (l *leadership) lead(ctx context.Context, lost <-chan struct{}) error {
	work, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	done := make(chan error, 1)
	go func() { done <- l.controllers(work, l.settle) }()
	var wrong string
	select {
	case err := <-done:
		if err == nil {
			err = errors.New("ended without being asked to")
		}
		return fmt.Errorf("controllers: %w", err)
	case <-lost:
		l.log.Warn("the lease is lost, the controllers end", "lease", leaseName, "holder", l.identity)
	case wrong = <-l.wrongClock(work):
		l.offered = time.Now()
	case <-ctx.Done():
	}
	stop()
	if err := l.end(ctx, done, lost); err != nil || wrong == "" {
		return err
	}
	return fmt.Errorf("%w: %s", ErrHandOver, wrong)
}

// end waits for the controllers: while the lease is held for controllersGrace, and once it is lost no longer than until
// another server's may begin.
func (l *leadership) end(ctx context.Context, done <-chan error, lost <-chan struct{}) error {
	grace, late := controllersGrace, time.NewTimer(controllersGrace)
	defer late.Stop()
	for {
		select {
		case err := <-done:
			// A wish of the controllers that they had at this moment comes true anyway.
			if err != nil && ctx.Err() == nil && !errors.Is(err, errBeginAnew) && !errors.Is(err, ErrHandOver) {
				return fmt.Errorf("%w: %w", errControllersStuck, err)
			}
			l.log.Info("controllers ended")
			debug.FreeOSMemory() // a follower needs a fraction of what the controllers' caches took
			return nil
		case <-lost:
			lost = nil
			grace = min(grace, l.lock.left(time.Now()))
			late.Reset(grace)
		case <-late.C:
			return fmt.Errorf("%w: %s", errControllersStuck, grace.Round(time.Millisecond))
		}
	}
}

// wrongClock tells what is wrong with this server's clock: what it signs others would refuse, and another server has to
// lead. When none of them did, the lead is offered again only after a while.
func (l *leadership) wrongClock(ctx context.Context) <-chan string {
	found := make(chan string, 1)
	rest := time.Duration(0)
	if !l.offered.IsZero() {
		rest = time.Until(l.offered.Add(l.clocks.times.again))
	}
	go func() {
		select {
		case <-ctx.Done():
			return
		case <-time.After(rest):
		}
		if wrong := l.clocks.awaitWrong(ctx); wrong != "" {
			found <- wrong
		}
	}()
	return found
}

// observe hears who has the lease. A server that follows is ready as soon as it knows.
func (l *leadership) observe(identity string) {
	if identity != "" && identity != l.identity {
		l.log.Info("the controllers of another server are at work", "node", nodeOfHolder(identity))
		l.settle()
	}
}

func (l *leadership) settle() { l.once.Do(func() { close(l.settled) }) }

// awaitSettled returns when it is known who leads and, if that is this server, its controllers work.
func (l *leadership) awaitSettled(ctx context.Context) error {
	select {
	case <-l.settled:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// keptAtMost is how long a server that was alone keeps a lease without renewing it: another one may be back, on the other
// side of a cable.
const keptAtMost = 2 * time.Minute

// errWrongClock is why a free lease is not taken.
var errWrongClock = errors.New("the clock of this server is wrong: others are to lead")

// lock is client-go's, with four changes: what an earlier process of the same node held counts as free, not every
// renewal is written, a server that is alone keeps the lease while its store does not answer, and one whose clock is wrong
// leaves a free lease to others for a while.
type lock struct {
	*resourcelock.LeaseLock
	node    string
	alone   func(context.Context) (bool, error)
	times   leaseTimes
	kept    bool                              // without a renewal
	single  bool                              // the server was alone when the cluster last said something about that
	written time.Time                         // of the last renewal
	record  resourcelock.LeaderElectionRecord // as last written
	clocks  *clocks
	free    time.Time // since when the lease was left to others
	tried   time.Time // when it could have been taken last
	log     *slog.Logger
}

func (l *leadership) newLock() *lock {
	return &lock{
		LeaseLock: &resourcelock.LeaseLock{
			LeaseMeta:  metav1.ObjectMeta{Namespace: leaseNamespace, Name: leaseName},
			Client:     l.client.CoordinationV1(),
			LockConfig: resourcelock.ResourceLockConfig{Identity: l.identity},
		},
		node: l.node, times: l.times, alone: l.alone, clocks: l.clocks, log: l.log,
	}
}

// Get returns the record. After a power cut the lease is that of this node's dead process: waiting for its end would
// cost a single server 20 s of its start. There is no second process: it could not listen on the apiserver's port.
func (l *lock) Get(ctx context.Context) (*resourcelock.LeaderElectionRecord, []byte, error) {
	record, _, err := l.LeaseLock.Get(ctx)
	if err != nil {
		return nil, nil, err
	}
	if record.HolderIdentity != l.Identity() && nodeOfHolder(record.HolderIdentity) == l.node {
		record.HolderIdentity = ""
	}
	raw, err := json.Marshal(record) // client-go sees by it whether something changed
	return record, raw, err
}

// Create implements resourcelock.Interface.
func (l *lock) Create(ctx context.Context, r resourcelock.LeaderElectionRecord) error {
	now := time.Now()
	if err := l.mayTake(now); err != nil {
		return err
	}
	return l.wrote(now, r, l.LeaseLock.Create(ctx, r))
}

// Update implements resourcelock.Interface. A renewal soon after another one is taken for done: it would reach the disk
// of every server. So is one that fails on a server that is alone, unless somebody else wrote: nobody could have taken
// over, and a board whose disk pauses for some seconds need not start its controllers anew.
func (l *lock) Update(ctx context.Context, r resourcelock.LeaderElectionRecord) error {
	now := time.Now()
	renewal := r.HolderIdentity == l.Identity() && l.record.HolderIdentity == r.HolderIdentity
	if renewal {
		age := now.Sub(l.written)
		if age < l.times.renew {
			return nil
		}
		if alone, err := l.alone(ctx); err == nil {
			l.single = alone
		}
		if l.single && age < l.times.alone {
			return nil
		}
	} else if err := l.mayTake(now); err != nil {
		return err
	}
	err := l.wrote(now, r, l.LeaseLock.Update(ctx, r))
	if err != nil && renewal && l.single && now.Sub(l.written) < keptAtMost && !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) {
		if !l.kept {
			l.log.Warn("the lease is kept though it cannot be renewed: there is no other server", "error", err)
		}
		l.kept = true
		return nil
	}
	return err
}

// mayTake reports whether to take a lease that is free: with a wrong clock when nobody else did for a while.
func (l *lock) mayTake(now time.Time) error {
	if !l.clocks.doubt() {
		return nil
	}
	// Somebody had it in between: client-go tries at random, up to 2.2 times retry apart, and its requests may hang.
	if now.Sub(l.tried) > 8*l.times.retry {
		l.free = now
	}
	l.tried = now
	if now.Sub(l.free) < l.clocks.times.patience {
		return errWrongClock
	}
	return nil
}

// left is how long controllers may still work when the lease is lost: another server waits for as long as it lasts from
// when it saw the last renewal, which was not before this one sent it. A lease that was kept without a renewal was over
// long ago, and nobody wanted it; by now somebody may.
func (l *lock) left(now time.Time) time.Duration {
	if l.kept {
		return controllersGrace
	}
	return max(l.written.Add(l.times.lasts-leaseMargin).Sub(now), leastGrace)
}

func (l *lock) wrote(at time.Time, r resourcelock.LeaderElectionRecord, err error) error {
	if err == nil {
		l.written, l.record, l.kept = at, r, false
	}
	return err
}

// release lets another server take over at once. It is best effort: the lease ends by itself.
func (l *lock) release(limit time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	record, _, err := l.LeaseLock.Get(ctx)
	if err != nil || record.HolderIdentity != l.Identity() {
		return
	}
	now := metav1.Now()
	err = l.LeaseLock.Update(ctx, resourcelock.LeaderElectionRecord{
		LeaderTransitions: record.LeaderTransitions, LeaseDurationSeconds: 1, RenewTime: now, AcquireTime: now,
	})
	if err != nil {
		l.log.Info("lease not released", "error", err)
	}
}

// alone says that the cluster has no other server, as far as the Service default/kubernetes tells.
func (l *leadership) alone(ctx context.Context) (bool, error) {
	slice, err := l.client.DiscoveryV1().EndpointSlices(metav1.NamespaceDefault).Get(ctx, "kubernetes", metav1.GetOptions{ResourceVersion: "0"})
	if err != nil {
		return false, err
	}
	addresses := 0
	for _, e := range slice.Endpoints {
		addresses += len(e.Addresses)
	}
	return addresses == 1, nil
}
