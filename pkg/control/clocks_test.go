package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/cairn-os/cairn/pkg/control/apiservertest"
)

func TestCompareClocks(t *testing.T) {
	const day = 24 * time.Hour
	server := func(name string, ahead time.Duration) otherClock { return otherClock{name, true, ahead} }
	agent := func(name string, ahead time.Duration) otherClock { return otherClock{name, false, ahead} }
	for _, tt := range []struct {
		name   string
		others []otherClock
		want   comparison
	}{
		{"alone", nil, comparison{}},
		{"all agree", []otherClock{server("b", -9*time.Second), server("c", time.Minute)}, comparison{off: time.Minute, by: []string{"b", "c"}}},
		{"two of three say so", []otherClock{server("b", -3*day), server("c", -3*day-9*time.Second)},
			comparison{differ: true, wrong: true, off: -3 * day, by: []string{"b", "c"}}},
		{"behind", []otherClock{server("b", day), server("c", day)}, comparison{differ: true, wrong: true, off: day, by: []string{"b", "c"}}},
		{"one of three is another's", []otherClock{server("b", 0), server("c", day)}, comparison{differ: true, off: day, by: []string{"c"}}},
		{"three opinions", []otherClock{server("b", day), server("c", 2*day)}, comparison{differ: true, off: 2 * day, by: []string{"c"}}},
		{"two servers, nobody to ask", []otherClock{server("b", day)}, comparison{differ: true, off: day, by: []string{"b"}}},
		{"two servers, an agent decides", []otherClock{server("b", day), agent("x", day)},
			comparison{differ: true, wrong: true, off: day, by: []string{"b", "x"}}},
		{"two servers, an agent agrees with this one", []otherClock{server("b", day), agent("x", 0)},
			comparison{differ: true, off: day, by: []string{"b"}}},
		{"agents alone do not count", []otherClock{server("b", 0), agent("x", day), agent("y", day), agent("z", day)},
			comparison{off: day, by: []string{"x", "y", "z"}}},
		{"agents do not outvote two servers", []otherClock{server("b", 0), server("c", day), agent("x", day), agent("y", day), agent("z", day)},
			comparison{differ: true, off: day, by: []string{"c", "x", "y", "z"}}},
		{"no other server lives", []otherClock{agent("x", day), agent("y", day)}, comparison{off: day, by: []string{"x", "y"}}},
		{"within what is allowed", []otherClock{server("b", 9*time.Minute), server("c", 9*time.Minute)},
			comparison{off: 9 * time.Minute, by: []string{"b", "c"}}},
	} {
		if d := cmp.Diff(tt.want, compareClocks(tt.others), cmp.AllowUnexported(comparison{})); d != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, d)
		}
	}
}

// beatLease renews the Lease of a machine by a clock that is ahead, until the function that it returns is called.
func beatLease(t *testing.T, client *fake.Clientset, namespace, name, host string, ahead time.Duration) (stop func()) {
	t.Helper()
	lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace}}
	if host != "" {
		lease.Labels = map[string]string{"apiserver.kubernetes.io/identity": "kube-apiserver", corev1.LabelHostname: host}
	}
	write := func(do func(context.Context, *coordinationv1.Lease) error) {
		at := metav1.NewMicroTime(time.Now().Add(ahead))
		lease.Spec.RenewTime = &at
		if err := do(context.Background(), lease.DeepCopy()); err != nil {
			t.Error(err)
		}
	}
	leases := client.CoordinationV1().Leases(namespace)
	write(func(ctx context.Context, l *coordinationv1.Lease) error {
		_, err := leases.Create(ctx, l, metav1.CreateOptions{})
		return err
	})
	done := make(chan struct{})
	var beating sync.WaitGroup
	beating.Go(func() {
		tick := time.NewTicker(30 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
			}
			write(func(ctx context.Context, l *coordinationv1.Lease) error {
				_, err := leases.Update(ctx, l, metav1.UpdateOptions{})
				return err
			})
		}
	})
	stop = sync.OnceFunc(func() { close(done); beating.Wait() })
	t.Cleanup(stop)
	return stop
}

func quickClocks() clockTimes {
	return clockTimes{
		soon: 100 * time.Millisecond, interval: 200 * time.Millisecond, stands: 500 * time.Millisecond, patience: 2 * time.Second, again: time.Minute,
	}
}

// TestWrongClock has a leader with a clock that others' differ from, or not: it gives the lead away when they do and one of
// them could lead, and only then.
func TestWrongClock(t *testing.T) {
	const day = 24 * time.Hour
	for _, tt := range []struct {
		name    string
		servers []time.Duration // how far the clocks of the others are ahead
		agents  []time.Duration
		silent  bool // the others' Leases are old and are not renewed
		yields  bool
	}{
		{"two others agree", []time.Duration{-3 * day, -3 * day}, nil, false, true},
		{"all are wrong in the same way", []time.Duration{0, 0}, []time.Duration{-3 * day}, false, false},
		{"single", nil, []time.Duration{day, day}, false, false},
		{"one other", []time.Duration{day}, nil, false, false},
		{"one other and an agent", []time.Duration{day}, []time.Duration{day}, false, true},
		{"the others were switched off days ago", []time.Duration{-3 * day, -3 * day}, nil, true, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var terms atomic.Int32
			l, client := testLeadershipOf(t, "", func(ctx context.Context, started func()) error {
				terms.Add(1)
				return willing(ctx, started)
			})
			l.clocks.client, l.clocks.times = client, quickClocks()
			var said atomic.Value
			said.Store("")
			l.clocks.say = func(text string) { said.Store(text) }
			for i, ahead := range tt.servers {
				stop := beatLease(t, client, "kube-system", fmt.Sprint("apiserver-", i), fmt.Sprint("Server-", i), ahead)
				if tt.silent {
					stop()
				}
			}
			for i, ahead := range tt.agents {
				beatLease(t, client, "kube-node-lease", fmt.Sprint("agent-", i), "", ahead)
			}
			beatLease(t, client, "kube-node-lease", "shop-1", "", 0) // the own one says nothing
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			done := make(chan error, 1)
			go func() { done <- l.run(ctx) }()
			if err := l.awaitSettled(ctx); err != nil {
				t.Fatal(err)
			}
			free := func() bool {
				lease, err := client.CoordinationV1().Leases(leaseNamespace).Get(t.Context(), leaseName, metav1.GetOptions{})
				return err == nil && lease.Spec.HolderIdentity != nil && *lease.Spec.HolderIdentity == ""
			}
			if !tt.yields {
				<-time.After(2 * time.Second)
				if free() || said.Load() != "" || terms.Load() != 1 {
					t.Errorf("lease free: %t, status %q, %d terms; want it to go on leading", free(), said.Load(), terms.Load())
				}
				cancel()
				if err := <-done; err != nil {
					t.Error(err)
				}
				return
			}
			eventually(t, 5*time.Second, "lead given away", free)
			gone := time.Now()
			told := func() bool {
				events, err := client.CoreV1().Events("default").List(t.Context(), metav1.ListOptions{})
				return err == nil && len(events.Items) == 1 && events.Items[0].Message == said.Load()
			}
			eventually(t, 3*time.Second, "event with the text of the status", told)
			text, _ := said.Load().(string)
			if !strings.Contains(text, "the clock of this server is") {
				t.Errorf("status %q; want it to tell of the clock", text)
			}
			t.Log(text)
			// Nobody takes the lease: then a wrong clock is better than no controllers, and there is no end of it.
			eventually(t, 20*time.Second, "second term", func() bool { return terms.Load() == 2 })
			if d := time.Since(gone); d < l.times.lasts+l.clocks.times.patience {
				t.Errorf("it took the free lease after %v; want it left to others for %v more than the %v of every hand-over", d, l.clocks.times.patience, l.times.lasts)
			}
			<-time.After(time.Second)
			if free() || terms.Load() != 2 {
				t.Error("it gave the lead away again at once")
			}
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
}

// TestClockIsSet lets a server lead again whose clock was set.
func TestClockIsSet(t *testing.T) {
	l, client := testLeadershipOf(t, "", willing)
	l.clocks.client, l.clocks.times = client, quickClocks()
	var ahead atomic.Int64
	ahead.Store(int64(24 * time.Hour))
	l.clocks.now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	beatLease(t, client, "kube-system", "apiserver-1", "server-1", 0)
	beatLease(t, client, "kube-system", "apiserver-2", "server-2", 0)
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	running.Go(func() { l.clocks.run(ctx) })
	if wrong := l.clocks.awaitWrong(ctx); !strings.Contains(wrong, "ahead of that of server-1, server-2") {
		t.Errorf("wrong = %q", wrong)
	}
	lock := l.newLock()
	if err := lock.mayTake(time.Now()); !errors.Is(err, errWrongClock) {
		t.Errorf("mayTake = %v; want %v", err, errWrongClock)
	}
	ahead.Store(0)
	eventually(t, 3*time.Second, "right clock", func() bool { return lock.mayTake(time.Now()) == nil })
}

// jumpyMachine is a machine whose clock is set at some time.
type jumpyMachine struct {
	server        bool
	before, after time.Duration // how far its clock is ahead of the right one
	set           time.Duration // when it is set
}

func (m jumpyMachine) clock(begin, at time.Time) time.Time {
	if at.Sub(begin) >= m.set {
		return at.Add(m.after).Round(0)
	}
	return at.Add(m.before).Round(0)
}

// jumpyCluster has the Leases of machines that renew them every 10 s, each at its own moment.
func jumpyCluster(begin time.Time, all []jumpyMachine) *fake.Clientset {
	client := &fake.Clientset{}
	client.AddReactor("list", "leases", func(a clienttesting.Action) (bool, runtime.Object, error) {
		list := &coordinationv1.LeaseList{}
		for number, m := range all {
			lease := coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("machine-", number), Namespace: corev1.NamespaceNodeLease}}
			if m.server {
				lease.Namespace = metav1.NamespaceSystem
				lease.Labels = map[string]string{"apiserver.kubernetes.io/identity": "kube-apiserver", corev1.LabelHostname: lease.Name}
			}
			if lease.Namespace != a.GetNamespace() {
				continue
			}
			since := time.Since(begin) - time.Duration(number)*1700*time.Millisecond
			at := metav1.NewMicroTime(m.clock(begin, time.Now().Add(-(since+time.Minute)%(10*time.Second))))
			lease.Spec.RenewTime = &at
			list.Items = append(list.Items, lease)
		}
		return true, list, nil
	})
	return client
}

// TestClocksThatJump has time servers set the clocks of machines that began with a wrong one. The first server's is
// compared with the others', at the times of a node, for ten minutes.
func TestClocksThatJump(t *testing.T) {
	const old, never = -100 * 24 * time.Hour, time.Hour
	server := func(set time.Duration) jumpyMachine { return jumpyMachine{server: true, before: old, set: set} }
	agent := func(set time.Duration) jumpyMachine { return jumpyMachine{before: old, set: set} }
	right := jumpyMachine{server: true}
	for _, tt := range []struct {
		name     string
		machines []jumpyMachine
		doubted  bool          // at some time: a free lease is left to others
		wrong    time.Duration // since when, at the latest; 0: never
	}{
		{"all at the same second", []jumpyMachine{server(65 * time.Second), server(65 * time.Second), server(65 * time.Second)}, false, 0},
		{"the leader first, the others a minute later",
			[]jumpyMachine{server(60 * time.Second), server(120 * time.Second), server(120 * time.Second), agent(119 * time.Second), agent(121 * time.Second)}, true, 0},
		{"the leader a minute after the others",
			[]jumpyMachine{server(120 * time.Second), server(60 * time.Second), server(60 * time.Second)}, true, 0},
		{"the leader never", []jumpyMachine{server(never), server(60 * time.Second), server(61 * time.Second)}, true, 5 * time.Minute},
		{"the leader is set to another day", []jumpyMachine{{server: true, after: old, set: time.Minute}, right, right}, true, 5 * time.Minute},
		{"the kubelets agree with the leader", []jumpyMachine{{server: true}, {server: true, before: old, set: never}, {server: true, before: old, set: never},
			{}, {}, {}}, false, 0},
	} {
		for _, phase := range []time.Duration{0, 3 * time.Second, 7 * time.Second, 11 * time.Second, 17 * time.Second, 23 * time.Second} {
			t.Run(fmt.Sprint(tt.name, "/", phase), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { followClocks(t, tt.machines, phase, tt.doubted, tt.wrong) })
			})
		}
	}
}

// followClocks compares the first machine's clock with the others', from when these have run for that long.
func followClocks(t *testing.T, all []jumpyMachine, phase time.Duration, mayDoubt bool, wrongBy time.Duration) {
	begin := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	time.Sleep(phase)
	var said []string
	o := DefaultOptions("machine-0")
	o.Status = func(text string) { said = append(said, text) }
	c := newClocks(o, jumpyCluster(begin, all), slog.New(slog.DiscardHandler))
	c.now = func() time.Time { return all[0].clock(begin, time.Now()) }
	go c.run(ctx)
	doubted, wrong := time.Duration(0), time.Duration(0)
	for ctx.Err() == nil {
		time.Sleep(time.Second)
		if doubted == 0 && c.doubt() {
			doubted = time.Since(begin)
		}
		if text, _ := c.state(); wrong == 0 && text != "" {
			wrong = time.Since(begin)
		}
	}
	synctest.Wait()
	t.Logf("doubted after %v, wrong after %v", doubted, wrong)
	if !mayDoubt && doubted != 0 {
		t.Errorf("doubted after %v; want it never", doubted)
	}
	if (wrong != 0) != (wrongBy != 0) || wrong > wrongBy {
		t.Errorf("wrong after %v; want it by %v (0: never)", wrong, wrongBy)
	}
	if wrong != 0 && wrong-doubted < time.Minute {
		t.Errorf("wrong %v after it was doubted; want it to stand for long", wrong-doubted)
	}
	if told := len(said) > 0; told != (wrongBy != 0) || (told && said[0] == "") {
		t.Errorf("status %q; want it to tell of a wrong clock: %t", said, wrongBy != 0)
	}
}

// TestLookThatListsNodesFirst gives no verdict while nothing of the kubelets can be known.
func TestLookThatListsNodesFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := jumpyCluster(time.Now(), []jumpyMachine{{server: true}, {server: true, before: time.Hour, set: 24 * time.Hour}, {}, {}})
		c := newClocks(DefaultOptions("machine-0"), client, slog.New(slog.DiscardHandler))
		heard := [][]string{nil, nil, {"machine-1", "machine-2", "machine-3"}, {"machine-1", "machine-2", "machine-3"}, nil, nil, {"machine-1", "machine-2", "machine-3"}}
		for i, want := range heard {
			if i == 4 { // the own clock is set
				c.now = func() time.Time { return time.Now().Add(30 * time.Minute) }
			}
			all, fresh, err := c.look(t.Context())
			if err != nil || fresh != (want != nil) {
				t.Errorf("look %d: fresh %t, %v; want %t", i, fresh, err, want != nil)
			}
			var got []string
			for _, o := range all {
				got = append(got, o.machine)
			}
			if d := cmp.Diff(want, got); fresh && d != "" {
				t.Errorf("look %d (-want +got):\n%s", i, d)
			}
			time.Sleep(c.times.soon)
		}
	})
}

// TestClearsOwnStatusOnly leaves a status line alone that is not of here.
func TestClearsOwnStatusOnly(t *testing.T) {
	var said []string
	o := DefaultOptions("shop-1")
	o.Status = func(text string) { said = append(said, text) }
	c := newClocks(o, &fake.Clientset{}, slog.New(slog.DiscardHandler))
	c.times.stands = 0
	wrong := comparison{differ: true, wrong: true, off: time.Hour, by: []string{"b", "c"}}
	for range 3 {
		c.conclude(t.Context(), comparison{})
	}
	if len(said) != 0 {
		t.Errorf("said %q before anything was wrong", said)
	}
	for _, v := range []comparison{wrong, {}, wrong, wrong, {}, wrong, {}, {}, {}, {}} {
		c.conclude(t.Context(), v)
	}
	if want := []string{wrong.text(), ""}; !cmp.Equal(said, want) {
		t.Errorf("said %q; want %q", said, want)
	}
}

// TestApiserverLeases hears the clock of a real apiserver.
func TestApiserverLeases(t *testing.T) {
	if testing.Short() {
		t.Skip("starts an apiserver")
	}
	t.Parallel()
	server := apiservertest.Start(t)
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	c := newClocks(DefaultOptions("shop-1"), server.Client(t, apiservertest.Admin), slog.New(slog.DiscardHandler))
	c.now = func() time.Time { return time.Now().Add(48 * time.Hour) }
	var heard []otherClock
	eventually(t, 40*time.Second, "renewal of the apiserver's Lease", func() bool {
		all, _, err := c.look(t.Context())
		if err != nil {
			t.Error(err)
		}
		heard = all
		return len(all) > 0
	})
	if len(heard) != 1 || heard[0].machine != strings.ToLower(host) || !heard[0].server || (heard[0].ahead+48*time.Hour).Abs() > time.Minute {
		t.Errorf("clocks %+v; want that of %s alone, 48 h behind", heard, host)
	}
}

// TestStuckControllersEndFirst has controllers that do not end, on a server whose store is away, with the times of a node:
// the process ends before the lease of another server can begin, which is lasts after the last renewal.
func TestStuckControllersEndFirst(t *testing.T) {
	t.Parallel()
	l, client := testLeadershipOf(t, "", func(_ context.Context, started func()) error {
		started()
		<-t.Context().Done() // not asked
		return nil
	})
	l.times = nodeLease()
	var away atomic.Bool
	var renewed atomic.Pointer[time.Time]
	client.PrependReactor("update", "leases", func(clienttesting.Action) (bool, runtime.Object, error) {
		if away.Load() {
			return true, nil, errors.New("no leader")
		}
		now := time.Now()
		renewed.Store(&now)
		return false, nil, nil
	})
	done := make(chan error, 1)
	go func() { done <- l.run(t.Context()) }()
	eventually(t, 10*time.Second, "renewal", func() bool { return renewed.Load() != nil })
	away.Store(true)
	select {
	case err := <-done:
		d := time.Since(*renewed.Load())
		if !errors.Is(err, errControllersStuck) || d >= l.times.lasts {
			t.Errorf("run = %v %v after the last renewal; want %v before %v", err, d, errControllersStuck, l.times.lasts)
		}
		t.Logf("ended %v after the last renewal: %v", d.Round(time.Millisecond), err)
	case <-time.After(30 * time.Second):
		t.Error("still running")
	}
}

// TestLeaseTimes wants all of controllersGrace for the controllers, however late it is noticed that the lease is lost.
func TestLeaseTimes(t *testing.T) {
	l := nodeLease()
	rest := l.lasts - (l.renew + l.retry + l.deadline)
	if want := controllersGrace + leaseMargin; rest < want {
		t.Errorf("when the lease is lost %v are left; want %v", rest, want)
	}
	for _, tt := range []struct {
		name string
		ago  time.Duration
		kept bool
		want time.Duration
	}{
		{"soonest", l.deadline, false, l.lasts - l.deadline - leaseMargin},
		{"latest", l.renew + l.retry + l.deadline, false, 5500 * time.Millisecond},
		{"the machine stood still", time.Hour, false, leastGrace},
		{"alone, and kept", time.Minute, true, controllersGrace},
	} {
		now := time.Now()
		k := &lock{times: l, written: now.Add(-tt.ago), kept: tt.kept}
		if got := k.left(now); got != tt.want {
			t.Errorf("%s: left = %v; want %v", tt.name, got, tt.want)
		}
	}
}
