package cluster

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

// voters answers questions as configured: a term, or an error for 0.
type voters struct {
	mu    sync.Mutex
	terms map[uint64]uint64
	asked int
}

func (v *voters) ask(_ context.Context, id uint64) (view, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.asked++
	if v.terms[id] == 0 {
		return view{}, errors.New("unreachable")
	}
	return view{term: v.terms[id]}, nil
}

func TestConfirm(t *testing.T) {
	for _, x := range []struct {
		name   string
		voters [][]uint64
		terms  map[uint64]uint64 // 1 is the leader itself, 7 if not given
		want   error
		lost   bool
	}{
		{"alone", [][]uint64{{1}}, nil, nil, false},
		{"all agree", [][]uint64{{1, 2, 3}}, map[uint64]uint64{2: 7, 3: 7}, nil, false},
		{"one is down", [][]uint64{{1, 2, 3}}, map[uint64]uint64{3: 7}, nil, false},
		{"one lags behind", [][]uint64{{1, 2, 3}}, map[uint64]uint64{2: 6, 3: 7}, nil, false},
		{"nobody is there", [][]uint64{{1, 2, 3}}, nil, rpctypes.ErrGRPCTimeoutDueToConnectionLost, false},
		{"a newer term", [][]uint64{{1, 2, 3}}, map[uint64]uint64{2: 8}, rpctypes.ErrGRPCLeaderChanged, true},
		{"two of five are not enough", [][]uint64{{1, 2, 3, 4, 5}}, map[uint64]uint64{2: 7}, rpctypes.ErrGRPCTimeoutDueToConnectionLost, false},
		{"two voters need both", [][]uint64{{1, 2}}, nil, rpctypes.ErrGRPCTimeoutDueToConnectionLost, false},
		{"while voters change: both majorities", [][]uint64{{1}, {1, 2}}, map[uint64]uint64{2: 7}, nil, false},
		{"while voters change: the new one is missing", [][]uint64{{1}, {1, 2}}, nil, rpctypes.ErrGRPCTimeoutDueToConnectionLost, false},
		{"while voters change: the old one is missing", [][]uint64{{1, 2}, {1}}, nil, rpctypes.ErrGRPCTimeoutDueToConnectionLost, false},
		{"voted for another, whom the one that answers has not heard of", [][]uint64{{1, 2, 3}}, map[uint64]uint64{1: 8, 2: 7}, rpctypes.ErrGRPCLeaderChanged, true},
		{"no voters at all", nil, nil, rpctypes.ErrGRPCTimeoutDueToConnectionLost, false},
	} {
		t.Run(x.name, func(t *testing.T) {
			t.Parallel()
			v := &voters{terms: x.terms}
			var lost atomic.Bool
			own := func() (uint64, error) { return max(7, x.terms[1]), nil }
			c := &confirmer{self: 1, term: 7, own: own, ask: v.ask, lost: func() { lost.Store(true) }}
			c.setVoters(x.voters...)
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			defer cancel()
			if err := c.confirm(ctx); !errors.Is(err, x.want) {
				t.Errorf("confirm: %v; want %v", err, x.want)
			}
			if lost.Load() != x.lost {
				t.Errorf("lost = %t; want %t", lost.Load(), x.lost)
			}
		})
	}
}

// TestConfirmNeverJoinsARunningRound: what was asked before a reader came
// proves nothing for it.
func TestConfirmNeverJoinsARunningRound(t *testing.T) {
	began, finish := make(chan struct{}), make(chan struct{})
	var rounds atomic.Int64
	c := &confirmer{self: 1, term: 7, lost: func() {}, own: func() (uint64, error) { return 7, nil }, ask: func(context.Context, uint64) (view, error) {
		if rounds.Add(1) == 1 {
			close(began)
			<-finish
			return view{term: 7}, nil
		}
		return view{term: 8}, nil // Another leader was elected meanwhile.
	}}
	c.setVoters([]uint64{1, 2})
	first := make(chan error, 1)
	go func() { first <- c.confirm(t.Context()) }()
	<-began
	late := make(chan error, 10)
	for range cap(late) {
		go func() { late <- c.confirm(t.Context()) }()
	}
	time.Sleep(50 * time.Millisecond) // They wait for the second round by now, or come later still.
	close(finish)
	if err := <-first; err != nil {
		t.Errorf("first reader: %v; want nil", err)
	}
	for range cap(late) {
		if err := <-late; !errors.Is(err, rpctypes.ErrGRPCLeaderChanged) {
			t.Errorf("late reader: %v; want a lost leadership", err)
		}
	}
}

// connected returns both ends of a TCP connection: a pipe has no buffers.
func connected(t *testing.T) (near, far net.Conn) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Error(err)
		return nil, nil
	}
	defer l.Close()
	if near, err = net.Dial("tcp", l.Addr().String()); err == nil {
		far, err = l.Accept()
	}
	if err != nil {
		t.Error(err)
	}
	return near, far
}

// TestAsk has many ask one peer over one connection that breaks now and then:
// each gets a view that was taken after it asked, or an error.
func TestAsk(t *testing.T) {
	var clock atomic.Uint64
	var dials atomic.Int64
	a := &asker{dial: func(context.Context) (net.Conn, error) {
		dials.Add(1)
		near, far := connected(t)
		go func() {
			_ = answerViews(far, func() (view, error) { return view{term: clock.Load(), leader: 3}, nil })
			_ = far.Close()
		}()
		return near, nil
	}}
	defer a.close()
	var wg sync.WaitGroup
	var answered atomic.Int64
	for w := range 8 {
		wg.Go(func() {
			for i := range 200 {
				asked := clock.Add(1)
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
				v, err := a.ask(ctx)
				cancel()
				if err == nil {
					answered.Add(1)
				}
				if err == nil && (v.term < asked || v.leader != 3) {
					t.Errorf("answer %+v to a question at %d: older than the question", v, asked)
				}
				if w == 0 && i%50 == 49 {
					a.close()
				}
			}
		})
	}
	wg.Wait()
	if answered.Load() < 1000 || dials.Load() < 4 {
		t.Errorf("%d answers over %d connections; want nearly all of 1600, over at least 4", answered.Load(), dials.Load())
	}
}

// TestAskStoppedPeer: a peer that takes questions and never answers is given
// up, and whoever asks later gets a new connection.
func TestAskStoppedPeer(t *testing.T) {
	var dials atomic.Int64
	a := &asker{dial: func(context.Context) (net.Conn, error) {
		near, far := connected(t)
		silent := dials.Add(1) == 1
		go func() {
			if silent {
				buf := make([]byte, 1)
				for {
					if _, err := far.Read(buf); err != nil {
						return
					}
				}
			}
			_ = answerViews(far, func() (view, error) { return view{term: 7, leader: 1}, nil })
		}()
		return near, nil
	}}
	defer a.close()
	deadline := time.Now().Add(10 * answerLimit)
	for {
		ctx, cancel := context.WithTimeout(t.Context(), answerLimit/4)
		_, err := a.ask(ctx)
		cancel()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("no answer: %v", err)
		}
	}
}
