package storetest

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/anishathalye/porcupine"
	clientv3 "go.etcd.io/etcd/client/v3"
)

var concurrency = []test{
	{"ConcurrentIncrements", func(s *suite) {
		const clients, increments = 16, 25
		first := s.mustCreate("/t/n", "0") + 1
		w := s.watch("/t/", clientv3.WithPrefix(), clientv3.WithRev(first))
		var wg sync.WaitGroup
		for range clients {
			wg.Go(func() {
				for range increments {
					s.increment("/t/n")
				}
			})
		}
		wg.Wait()
		s.same("sum", string(s.get("/t/n").Kvs[0].Value), fmt.Sprint(clients*increments))
		s.inOrder(w, first, first+clients*increments-1)
	}},
	{"ConcurrentCreatesOneWins", func(s *suite) {
		for round := range 10 {
			key := fmt.Sprintf("/t/%d", round)
			var mu sync.Mutex
			var wg sync.WaitGroup
			won := 0
			for range 16 {
				wg.Go(func() {
					if s.create(key, "1").Succeeded {
						mu.Lock()
						won++
						mu.Unlock()
					}
				})
			}
			wg.Wait()
			s.same("winners", won, 1)
		}
	}},
	{"WatchersSeeEveryRevisionOnce", func(s *suite) {
		const writers, writes = 8, 60
		first := s.get("/t/none").Header.Revision + 1
		var wg sync.WaitGroup
		for i := range writers {
			wg.Go(func() {
				for j := range writes {
					s.mustCreate(fmt.Sprintf("/t/%d/%d", i, j), "1")
				}
			})
		}
		// Watches begin while the writers run, from the start or amid.
		for i := range 20 {
			from := first
			if i%2 == 1 {
				from = max(first, s.get("/t/none").Header.Revision)
			}
			w := s.watch("/t/", clientv3.WithPrefix(), clientv3.WithRev(from))
			wg.Go(func() { s.inOrder(w, from, first+writers*writes-1) })
		}
		wg.Wait()
	}},
	// A page's revision is what the next page and a watch go on from.
	{"PageIsAsOfItsRevision", func(s *suite) {
		rev := s.fill("/t/", 2)
		ctx, cancel := context.WithCancel(s.ctx)
		var wg sync.WaitGroup
		defer wg.Wait()
		defer cancel()
		wg.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				key := "/t/000"
				resp := s.get(key)
				s.mustUpdate(key, strconv.Itoa(n), resp.Kvs[0].ModRevision)
			}
		})
		for range 200 {
			page := s.list("/t/", clientv3.WithLimit(1))
			again := s.list("/t/", clientv3.WithLimit(1), clientv3.WithRev(page.Header.Revision))
			s.same("page at its revision", pairs(page), pairs(again))
			if page.Header.Revision < rev || s.Failed() {
				s.Errorf("revision of a page = %d; want no less than %d", page.Header.Revision, rev)
				return
			}
			rev = page.Header.Revision
		}
	}},
	{"ListThenWatchIsComplete", func(s *suite) {
		const writes = 300
		defer s.fillAside("/t/", writes)()
		for range 10 {
			resp := s.list("/t/")
			w := s.watch("/t/", clientv3.WithPrefix(), clientv3.WithRev(resp.Header.Revision+1))
			if missing := writes - len(resp.Kvs); missing > 0 {
				w.events(missing)
			}
		}
	}},
	{"Linearizable", func(s *suite) {
		if r := porcupine.CheckOperationsTimeout(register, s.history(), patience); r != porcupine.Ok {
			s.Errorf("history is %v; want Ok", r)
		}
	}},
}

func (s *suite) increment(key string) {
	kv := s.get(key).Kvs[0]
	value, rev := string(kv.Value), kv.ModRevision
	for {
		n, err := strconv.Atoi(value)
		s.check(err)
		resp := s.update(key, fmt.Sprint(n+1), rev)
		if resp.Succeeded {
			return
		}
		kv := resp.Responses[0].GetResponseRange().Kvs[0]
		value, rev = string(kv.Value), kv.ModRevision
	}
}

// operation is an input of the history: a read, or a compare-and-swap of the
// revision that was read before.
type operation struct {
	swap bool
	at   int64
}

// answer is an output: the revision that the key has, and whether a swap
// took place.
type answer struct {
	revision int64
	swapped  bool
}

// history lets clients read and swap one key at random.
func (s *suite) history() []porcupine.Operation {
	rev := s.mustCreate("/t/k", "0")
	var (
		mu  sync.Mutex
		ops []porcupine.Operation
		wg  sync.WaitGroup
	)
	start := time.Now()
	record := func(client int, in operation, call func() answer) answer {
		called := time.Since(start).Nanoseconds()
		out := call()
		op := porcupine.Operation{ClientId: client, Input: in, Call: called, Output: out, Return: time.Since(start).Nanoseconds()}
		mu.Lock()
		ops = append(ops, op)
		mu.Unlock()
		return out
	}
	ops = append(ops, porcupine.Operation{ClientId: 99, Input: operation{swap: true}, Output: answer{rev, true}, Call: -2, Return: -1})
	for c := range 6 {
		wg.Go(func() {
			known := rev
			for i := range 40 {
				if (i+c)%3 == 0 {
					known = record(c, operation{}, func() answer {
						return answer{revision: s.get("/t/k").Kvs[0].ModRevision}
					}).revision
					continue
				}
				known = record(c, operation{true, known}, func() answer {
					resp := s.update("/t/k", fmt.Sprint(c), known)
					if resp.Succeeded {
						return answer{resp.Header.Revision, true}
					}
					return answer{resp.Responses[0].GetResponseRange().Kvs[0].ModRevision, false}
				}).revision
			}
		})
	}
	wg.Wait()
	return ops
}

// register is the model: a revision, which a swap that names it replaces.
var register = porcupine.Model{
	Init: func() any { return int64(0) },
	Step: func(state, input, output any) (bool, any) {
		now, in, out := state.(int64), input.(operation), output.(answer)
		if in.swap && in.at == now {
			return out.swapped && out.revision > now, out.revision
		}
		return !out.swapped && out.revision == now, now
	},
}
