package control

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/rest"
	clienttesting "k8s.io/client-go/testing"
)

// testLeadershipOf returns one that works on a fake cluster, whose lease the holder has if it is not empty.
func testLeadershipOf(t *testing.T, lease string, controllers func(context.Context, func()) error) (*leadership, *fake.Clientset) {
	t.Helper()
	o := DefaultOptions("shop-1")
	o.lease = shortLease()
	l, err := newLeadership(o, &rest.Config{Host: "http://127.0.0.1:1"}, slog.New(slog.NewTextHandler(t.Output(), nil)), controllers)
	if err != nil {
		t.Fatal(err)
	}
	client := fake.NewClientset()
	l.client = client
	if lease != "" {
		seconds, now := int32(4), metav1.NowMicro()
		_, err := client.CoordinationV1().Leases(leaseNamespace).Create(t.Context(), &coordinationv1.Lease{
			ObjectMeta: metav1.ObjectMeta{Name: leaseName, Namespace: leaseNamespace},
			Spec:       coordinationv1.LeaseSpec{HolderIdentity: &lease, LeaseDurationSeconds: &seconds, RenewTime: &now, AcquireTime: &now},
		}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
	}
	return l, client
}

// willing are controllers that begin and end at once.
func willing(ctx context.Context, started func()) error {
	started()
	<-ctx.Done()
	return nil
}

// TestLeaseOfOwnNode takes over at once what a dead process of the same node held, and waits for that of another one.
func TestLeaseOfOwnNode(t *testing.T) {
	for _, tt := range []struct {
		held           string
		atLeast, limit time.Duration
	}{
		{"", 0, time.Second},
		{"shop-1_dead", 0, time.Second},
		{"shop-10_x", 3 * time.Second, 10 * time.Second},
	} {
		t.Run(tt.held, func(t *testing.T) {
			t.Parallel()
			leading := make(chan struct{})
			l, client := testLeadershipOf(t, tt.held, func(ctx context.Context, started func()) error {
				close(leading)
				return willing(ctx, started)
			})
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			begin := time.Now()
			go func() { done <- l.run(ctx) }()
			if tt.atLeast > 0 { // another server's lease: this one is a follower, and ready
				if err := l.awaitSettled(ctx); err != nil || time.Since(begin) > time.Second || l.leader() != "shop-10" {
					t.Errorf("settled with %v after %s, following %q", err, time.Since(begin), l.leader())
				}
			}
			select {
			case <-leading:
			case <-time.After(tt.limit):
				t.Fatalf("not leading after %s", tt.limit)
			}
			if took := time.Since(begin); took < tt.atLeast {
				t.Errorf("leading after %s; want at least %s", took, tt.atLeast)
			}
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
			lease, err := client.CoordinationV1().Leases(leaseNamespace).Get(t.Context(), leaseName, metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if h := lease.Spec.HolderIdentity; h != nil && *h != "" {
				t.Errorf("after an orderly stop %q has the lease; want nobody", *h)
			}
		})
	}
}

// TestLeaseWrites counts how often a leader writes.
func TestLeaseWrites(t *testing.T) {
	l, client := testLeadershipOf(t, "", willing)
	l.times = leaseTimes{lasts: 3 * time.Second, deadline: 2 * time.Second, retry: 100 * time.Millisecond, renew: 450 * time.Millisecond}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if err := l.run(ctx); err != nil {
		t.Fatal(err)
	}
	writes := 0
	for _, a := range client.Actions() {
		if a.GetVerb() == "update" {
			writes++
		}
	}
	// 20 tries in 2 s, of which each fifth is written, and the release.
	if writes < 3 || writes > 6 {
		t.Errorf("%d writes in 2 s; want about 4", writes)
	}
}

func TestControllersThatDoNotEnd(t *testing.T) {
	boom := errors.New("controller shutdown timeout reached")
	l, client := testLeadershipOf(t, "", func(ctx context.Context, started func()) error {
		started()
		<-ctx.Done()
		return boom
	})
	done := make(chan error, 1)
	go func() { done <- l.run(t.Context()) }()
	if err := l.awaitSettled(t.Context()); err != nil {
		t.Fatal(err)
	}
	client.PrependReactor("update", "leases", func(clienttesting.Action) (bool, runtime.Object, error) { // the store is away
		return true, nil, errors.New("no leader")
	})
	select {
	case err := <-done:
		if !errors.Is(err, errControllersStuck) || !errors.Is(err, boom) {
			t.Errorf("run = %v; want it to end the process", err)
		}
	case <-time.After(20 * time.Second):
		t.Error("still running: controllers of two servers could be at work")
	}
}

// TestAloneKeepsLease has a store that does not answer for longer than the lease lasts: the only server of a cluster goes
// on, one of several ends its controllers.
func TestAloneKeepsLease(t *testing.T) {
	for _, tt := range []struct {
		name    string
		servers []string
		keeps   bool
	}{{"alone", []string{"192.0.2.1"}, true}, {"one of two", []string{"192.0.2.1", "192.0.2.2"}, false}} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var over atomic.Bool
			l, client := testLeadershipOf(t, "", func(ctx context.Context, started func()) error {
				defer over.Store(true)
				return willing(ctx, started)
			})
			_, err := client.DiscoveryV1().EndpointSlices("default").Create(t.Context(), &discoveryv1.EndpointSlice{
				ObjectMeta: metav1.ObjectMeta{Name: "kubernetes"}, Endpoints: []discoveryv1.Endpoint{{Addresses: tt.servers}},
			}, metav1.CreateOptions{})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- l.run(ctx) }()
			if err := l.awaitSettled(ctx); err != nil {
				t.Fatal(err)
			}
			<-time.After(l.times.renew + 3*l.times.retry) // it has looked around
			client.PrependReactor("*", "*", func(clienttesting.Action) (bool, runtime.Object, error) {
				return true, nil, errors.New("the store does not answer")
			})
			<-time.After(l.times.lasts + 2*time.Second)
			if over.Load() == tt.keeps {
				t.Errorf("the controllers ended: %v; want %v", over.Load(), !tt.keeps)
			}
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
}

// TestHandOver gives the lease away when a controller asks for it, and leaves it to others for a while.
func TestHandOver(t *testing.T) {
	var terms atomic.Int32
	l, client := testLeadershipOf(t, "", func(ctx context.Context, started func()) error {
		terms.Add(1)
		started()
		return errors.Join(errors.New("node shop-1 is being deleted"), ErrHandOver)
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- l.run(ctx) }()
	eventually(t, 3*time.Second, "release", func() bool {
		lease, err := client.CoordinationV1().Leases(leaseNamespace).Get(t.Context(), leaseName, metav1.GetOptions{})
		return err == nil && lease.Spec.HolderIdentity != nil && *lease.Spec.HolderIdentity == "" && terms.Load() == 1
	})
	select {
	case err := <-done:
		t.Errorf("run = %v; want it to go on as a follower", err)
	case <-time.After(2 * time.Second):
	}
	if terms.Load() != 1 {
		t.Errorf("leading %d times; want the others to have their chance", terms.Load())
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestNodeOfHolder(t *testing.T) {
	for identity, want := range map[string]string{"shop-1_ab12": "shop-1", "": "", "a.b_c": "a.b"} {
		if got := nodeOfHolder(identity); got != want {
			t.Errorf("nodeOfHolder(%q) = %q; want %q", identity, got, want)
		}
	}
}
