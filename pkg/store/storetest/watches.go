package storetest

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

var watches = []test{
	{"WatchKey", func(s *suite) {
		rev := s.mustCreate("/t/a", "0")
		w := s.watch("/t/a", clientv3.WithRev(rev+1))
		s.mustCreate("/t/b", "x")
		s.mustCreate("/t/a/b", "x")
		second := s.mustUpdate("/t/a", "1", rev)
		third := s.mustRemove("/t/a", second)
		fourth := s.mustCreate("/t/a", "2")
		s.same("events", w.events(3), []string{
			fmt.Sprintf("update /t/a=1 @%d created %d version 2 before /t/a=0 @%d", second, rev, rev),
			fmt.Sprintf("delete /t/a= @%d before /t/a=1 @%d", third, second),
			fmt.Sprintf("create /t/a=2 @%d created %d version 1", fourth, fourth),
		})
	}},
	{"WatchPrefix", func(s *suite) {
		w := s.watch("/t/b/", clientv3.WithPrefix())
		s.mustCreate("/t/b", "x")
		one := s.mustCreate("/t/b/1", "v")
		s.mustCreate("/t/b0", "x")
		two := s.mustCreate("/t/b/2", "v")
		s.same("events", w.events(2), []string{
			fmt.Sprintf("create /t/b/1=v @%d created %d version 1", one, one),
			fmt.Sprintf("create /t/b/2=v @%d created %d version 1", two, two),
		})
	}},
	{"WatchRanges", func(s *suite) {
		middle := s.watch("/t/001", clientv3.WithRange("/t/003"))
		from := s.watch("/t/003", clientv3.WithFromKey())
		s.fill("/t/", 5)
		s.same("events", []int{len(middle.events(2)), len(from.events(2))}, []int{2, 2})
	}},
	{"WatchFromThePast", func(s *suite) {
		first := s.mustCreate("/t/a", "1")
		second := s.mustUpdate("/t/a", "2", first)
		third := s.mustRemove("/t/a", second)
		w := s.watch("/t/", clientv3.WithPrefix(), clientv3.WithRev(first))
		s.same("events", w.events(3), []string{
			fmt.Sprintf("create /t/a=1 @%d created %d version 1", first, first),
			fmt.Sprintf("update /t/a=2 @%d created %d version 2 before /t/a=1 @%d", second, first, first),
			fmt.Sprintf("delete /t/a= @%d before /t/a=2 @%d", third, second),
		})
		later := s.watch("/t/", clientv3.WithPrefix(), clientv3.WithRev(third))
		s.same("from the last", later.events(1), []string{fmt.Sprintf("delete /t/a= @%d before /t/a=2 @%d", third, second)})
	}},
	{"WatchFromNow", func(s *suite) {
		rev := s.mustCreate("/t/a", "1")
		w := s.watch("/t/", clientv3.WithPrefix())
		second := s.mustUpdate("/t/a", "2", rev)
		s.same("events", w.events(1), []string{fmt.Sprintf("update /t/a=2 @%d created %d version 2 before /t/a=1 @%d", second, rev, rev)})
	}},
	{"WatchFromTheFuture", func(s *suite) {
		rev := s.mustCreate("/t/a", "1")
		w := s.watch("/t/", clientv3.WithPrefix(), clientv3.WithRev(rev+3))
		for i := range 4 {
			rev = s.mustUpdate("/t/a", fmt.Sprint(i), rev)
		}
		s.same("first event", strings.Fields(w.events(2)[0])[:2], []string{"update", "/t/a=2"})
	}},
	{"WatchLongHistory", func(s *suite) {
		rev := s.mustCreate("/t/a", strings.Repeat("x", 20<<10))
		first := rev
		for range 400 {
			rev = s.mustUpdate("/t/a", strings.Repeat("x", 20<<10), rev)
		}
		s.inOrder(s.watch("/t/", clientv3.WithPrefix(), clientv3.WithRev(first)), first, rev)
	}},
	{"WatchBigEvents", func(s *suite) {
		w := s.watch("/t/", clientv3.WithPrefix())
		rev := s.mustCreate("/t/a", strings.Repeat("x", 1200<<10))
		second := s.mustUpdate("/t/a", strings.Repeat("y", 1200<<10), rev)
		s.same("events", w.events(2)[1], fmt.Sprintf("update /t/a=1228800 bytes @%d created %d version 2 before /t/a=1228800 bytes @%d", second, rev, rev))
	}},
	{"ManyWatchers", func(s *suite) {
		const n, changes = 100, 50
		first := s.get("/t/none").Header.Revision + 1
		all := make([]*watcher, n)
		for i := range all {
			// Half of them begin while writers run, at an old revision.
			if i < n/2 {
				all[i] = s.watch("/t/", clientv3.WithPrefix(), clientv3.WithRev(first))
			}
		}
		defer s.fillAside("/t/", changes)()
		for i := n / 2; i < n; i++ {
			all[i] = s.watch("/t/", clientv3.WithPrefix(), clientv3.WithRev(first))
		}
		var wg sync.WaitGroup
		for _, w := range all {
			wg.Go(func() { s.inOrder(w, first, first+changes-1) })
		}
		wg.Wait()
	}},
	{"SlowWatcherMissesNothing", func(s *suite) {
		ctx, cancel := context.WithCancel(s.ctx)
		defer cancel()
		first := s.get("/t/none").Header.Revision + 1
		// A client of its own, whose stream fills up because nobody reads.
		w := &watcher{s, s.client.Watch(ctx, "/t/", clientv3.WithPrefix(), clientv3.WithPrevKV(), clientv3.WithRev(first))}
		rev := s.mustCreate("/t/a", strings.Repeat("x", 60<<10))
		for range 300 {
			rev = s.mustUpdate("/t/a", strings.Repeat("x", 60<<10), rev)
		}
		s.inOrder(w, first, rev)
	}},
	{"WatchCancel", func(s *suite) {
		ctx, cancel := context.WithCancel(s.ctx)
		ch := s.client.Watch(ctx, "/t/", clientv3.WithPrefix())
		kept := s.watch("/t/", clientv3.WithPrefix())
		cancel()
		for range ch {
		}
		s.mustCreate("/t/a", "1")
		kept.events(1)
	}},
	{"ProgressRequested", func(s *suite) {
		ctx, cancel := context.WithCancel(s.ctx)
		defer cancel()
		w := &watcher{s, s.client.Watch(ctx, "/t/", clientv3.WithPrefix(), clientv3.WithProgressNotify(), clientv3.WithCreatedNotify())}
		w.response()
		for round := range 10 {
			mine := s.mustCreate(fmt.Sprintf("/t/%d", round), "1")
			rev := s.mustCreate(fmt.Sprintf("/else/%d", round), "1")
			seen := int64(0)
			for deadline := time.Now().Add(patience); ; {
				s.check(s.client.RequestProgress(ctx))
				resp := w.response()
				s.check(resp.Err())
				for _, e := range resp.Events {
					seen = e.Kv.ModRevision
				}
				if resp.IsProgressNotify() && resp.Header.Revision >= mine && seen != mine {
					s.Fatalf("progress to %d before the event at %d", resp.Header.Revision, mine)
				}
				if resp.IsProgressNotify() && resp.Header.Revision >= rev {
					break
				}
				if time.Now().After(deadline) {
					s.Fatalf("no progress to %d within %s", rev, patience)
				}
			}
		}
	}},
	{"ProgressNeverOvertakesEvents", func(s *suite) {
		ctx, cancel := context.WithCancel(s.ctx)
		defer cancel()
		w := s.client.Watch(ctx, "/t/", clientv3.WithPrefix(), clientv3.WithProgressNotify(), clientv3.WithCreatedNotify())
		<-w
		const writes = 300
		go func() {
			for ctx.Err() == nil {
				_ = s.client.RequestProgress(ctx)
				s.pause(5 * time.Millisecond)
			}
		}()
		defer s.fillAside("/t/", writes)()
		progress, events := int64(0), 0
		for resp := range w {
			s.check(resp.Err())
			for _, e := range resp.Events {
				if events++; e.Kv.ModRevision <= progress {
					s.Fatalf("event at %d after progress to %d", e.Kv.ModRevision, progress)
				}
			}
			if resp.IsProgressNotify() {
				progress = resp.Header.Revision
			}
			if events == writes {
				return
			}
		}
	}},
	{"ProgressOfASharedStream", func(s *suite) {
		// One context is one stream: progress is told to all watches at once.
		ctx, cancel := context.WithCancel(s.ctx)
		defer cancel()
		go func() {
			for ctx.Err() == nil {
				_ = s.client.RequestProgress(ctx)
				s.pause(2 * time.Millisecond)
			}
		}()
		const watches, writes = 8, 150
		first := s.get("/t/none").Header.Revision + 1
		var wg sync.WaitGroup
		defer wg.Wait()
		for i := range watches {
			prefix := fmt.Sprintf("/t/%d/", i)
			wg.Go(func() { s.fill(prefix, writes) })
			s.pause(10 * time.Millisecond) // Watches begin while others run.
			w := s.client.Watch(ctx, prefix, clientv3.WithPrefix(), clientv3.WithProgressNotify(), clientv3.WithRev(first))
			wg.Go(func() {
				progress := int64(0)
				for events := 0; events < writes; {
					resp := <-w
					if resp.Err() != nil {
						s.Error(resp.Err())
						return
					}
					for _, e := range resp.Events {
						if events++; e.Kv.ModRevision <= progress {
							s.Errorf("watch of %s: event at %d after progress to %d", prefix, e.Kv.ModRevision, progress)
							return
						}
					}
					if resp.IsProgressNotify() {
						progress = resp.Header.Revision
					}
				}
			})
		}
	}},
}

// inOrder expects a watch to see exactly one event at each revision.
func (s *suite) inOrder(w *watcher, first, last int64) {
	for next := first; next <= last; {
		resp, ok := <-w.ch
		if !ok || resp.Err() != nil {
			s.Errorf("watch ended before %d: %v", next, resp.Err())
			return
		}
		for _, e := range resp.Events {
			if e.Kv.ModRevision != next {
				s.Errorf("event at %d; want %d", e.Kv.ModRevision, next)
				return
			}
			next++
		}
	}
}
