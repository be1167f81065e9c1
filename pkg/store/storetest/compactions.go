package storetest

import (
	"errors"
	"fmt"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// settle gives a store time to remove what a compaction left unreadable. The
// checks around it hold before, during and after.
const settle = 300 * time.Millisecond

func (s *suite) compact(rev int64) {
	s.Helper()
	_, err := s.client.Compact(s.ctx, rev)
	s.check(err)
}

var compactions = []test{
	{"CompactedReads", func(s *suite) {
		a := s.mustCreate("/t/a", "1")
		b := s.mustCreate("/t/b", "1")
		a2 := s.mustUpdate("/t/a", "2", a)
		gone := s.mustRemove("/t/b", b)
		last := s.mustCreate("/t/c", "1")
		s.compact(a2)
		for range 2 {
			for name, opts := range map[string][]clientv3.OpOption{
				"get":   {clientv3.WithRev(b)},
				"list":  {clientv3.WithRev(b), clientv3.WithPrefix()},
				"count": {clientv3.WithRev(b), clientv3.WithPrefix(), clientv3.WithCountOnly()},
			} {
				if _, err := s.client.Get(s.ctx, "/t/", opts...); !errors.Is(err, rpctypes.ErrCompacted) {
					s.Errorf("%s at a compacted revision: %v; want %v", name, err, rpctypes.ErrCompacted)
				}
			}
			s.same("at the compact revision", pairs(s.list("/t/", clientv3.WithRev(a2))), []string{"/t/a=2", "/t/b=1"})
			s.same("after it", pairs(s.list("/t/", clientv3.WithRev(gone))), []string{"/t/a=2"})
			s.same("now", pairs(s.list("/t/")), []string{"/t/a=2", "/t/c=1"})
			s.same("current revision", s.get("/t/none").Header.Revision, last)
			s.pause(settle)
		}
	}},
	{"CompactErrors", func(s *suite) {
		rev := s.mustUpdate("/t/a", "2", s.mustCreate("/t/a", "1"))
		s.compact(rev)
		if _, err := s.client.Compact(s.ctx, rev); !errors.Is(err, rpctypes.ErrCompacted) {
			s.Errorf("compact twice: %v; want %v", err, rpctypes.ErrCompacted)
		}
		if _, err := s.client.Compact(s.ctx, rev+10); !errors.Is(err, rpctypes.ErrFutureRev) {
			s.Errorf("compact the future: %v; want %v", err, rpctypes.ErrFutureRev)
		}
	}},
	{"CompactKeepsTheRevision", func(s *suite) {
		rev := s.mustRemove("/t/a", s.mustCreate("/t/a", "1"))
		s.compact(rev)
		s.pause(settle)
		s.same("current revision", s.get("/t/a").Header.Revision, rev)
		s.same("next revision", s.mustCreate("/t/a", "2"), rev+1)
		s.compact(rev + 1)
		s.pause(settle)
		s.same("value", pairs(s.get("/t/a")), []string{"/t/a=2"})
		s.same("next", s.mustUpdate("/t/a", "3", rev+1), rev+2)
	}},
	{"WatchOfCompacted", func(s *suite) {
		rev := s.mustCreate("/t/a", "1")
		for i := range 5 {
			rev = s.mustUpdate("/t/a", fmt.Sprint(i), rev)
		}
		s.compact(rev)
		ch := s.client.Watch(s.ctx, "/t/", clientv3.WithPrefix(), clientv3.WithRev(rev-2))
		resp := (&watcher{s, ch}).response()
		s.same("cancelled", resp.Canceled, true)
		s.same("compact revision", resp.CompactRevision, rev)
		if !errors.Is(resp.Err(), rpctypes.ErrCompacted) {
			s.Errorf("watch: %v; want %v", resp.Err(), rpctypes.ErrCompacted)
		}
	}},
	{"WatchAfterCompaction", func(s *suite) {
		a := s.mustCreate("/t/a", "1")
		b := s.mustCreate("/t/b", "1")
		a2 := s.mustUpdate("/t/a", "2", a)
		gone := s.mustRemove("/t/b", b)
		s.compact(a2)
		s.pause(settle)
		w := s.watch("/t/", clientv3.WithPrefix(), clientv3.WithRev(gone))
		s.same("events", w.events(1), []string{fmt.Sprintf("delete /t/b= @%d before /t/b=1 @%d", gone, b)})
	}},
	{"SyncedWatchOutlivesCompaction", func(s *suite) {
		rev := s.mustCreate("/t/a", "0")
		first := rev + 1
		w := s.watch("/t/", clientv3.WithPrefix(), clientv3.WithRev(first))
		for i := range 100 {
			rev = s.mustUpdate("/t/a", fmt.Sprint(i), rev)
			if i%10 == 9 {
				s.compact(rev)
			}
		}
		s.inOrder(w, first, rev)
	}},
	{"PagesEndAtCompaction", func(s *suite) {
		rev := s.fill("/t/", 20)
		resp := s.list("/t/", clientv3.WithLimit(5))
		s.compact(s.mustCreate("/t/x", "1"))
		_, err := s.client.Get(s.ctx, string(resp.Kvs[4].Key)+"\x00", clientv3.WithRange(clientv3.GetPrefixRangeEnd("/t/")),
			clientv3.WithLimit(5), clientv3.WithRev(rev))
		if !errors.Is(err, rpctypes.ErrCompacted) {
			s.Errorf("next page: %v; want %v", err, rpctypes.ErrCompacted)
		}
	}},
	// k8s.io/apiserver/pkg/storage/etcd3/compact.go: servers agree on who
	// compacts by the version of a key.
	{"CompactTransaction", func(s *suite) {
		try := func(version int64, value string) *clientv3.TxnResponse {
			resp, err := s.client.KV.Txn(s.ctx).
				If(clientv3.Compare(clientv3.Version("compact_rev_key"), "=", version)).
				Then(clientv3.OpPut("compact_rev_key", value)).
				Else(clientv3.OpGet("compact_rev_key")).Commit()
			s.check(err)
			return resp
		}
		s.same("first", try(0, "10").Succeeded, true)
		lost := try(0, "11")
		s.same("second", lost.Succeeded, false)
		kv := lost.Responses[0].GetResponseRange().Kvs[0]
		s.same("version", kv.Version, int64(1))
		s.same("value", string(kv.Value), "10")
		s.same("third", try(1, "12").Succeeded, true)
		s.same("read", pairs(s.get("compact_rev_key")), []string{"compact_rev_key=12"})
	}},
	{"CompactKeyWatch", func(s *suite) {
		w := s.watch("compact_rev_key")
		_, err := s.client.KV.Txn(s.ctx).
			If(clientv3.Compare(clientv3.Version("compact_rev_key"), "=", 0)).
			Then(clientv3.OpPut("compact_rev_key", "7")).
			Else(clientv3.OpGet("compact_rev_key")).Commit()
		s.check(err)
		resp := w.response()
		s.check(resp.Err())
		s.same("value", string(resp.Events[0].Kv.Value), "7")
	}},
}

var leases = []test{
	{"LeaseExpires", func(s *suite) {
		lease, err := s.client.Grant(s.ctx, 2)
		s.check(err)
		w := s.watch("/t/", clientv3.WithPrefix())
		rev := s.mustCreate("/t/a", "1", clientv3.WithLease(lease.ID))
		s.mustCreate("/t/b", "1")
		kv := s.get("/t/a").Kvs[0]
		s.same("lease", clientv3.LeaseID(kv.Lease), lease.ID)
		events := w.events(3)
		s.same("expiry", events[2], fmt.Sprintf("delete /t/a= @%d before /t/a=1 @%d", rev+2, rev))
		s.same("left", pairs(s.list("/t/")), []string{"/t/b=1"})
	}},
	{"UpdateReplacesTheLease", func(s *suite) {
		lease, err := s.client.Grant(s.ctx, 2)
		s.check(err)
		rev := s.mustCreate("/t/a", "1", clientv3.WithLease(lease.ID))
		marker := s.mustCreate("/t/m", "1", clientv3.WithLease(lease.ID))
		s.mustUpdate("/t/a", "2", rev)
		w := s.watch("/t/m", clientv3.WithRev(marker+1))
		w.events(1) // The marker's expiry: the key's would have come before.
		s.pause(settle)
		s.same("left", pairs(s.list("/t/")), []string{"/t/a=2"})
	}},
	{"UpdateRenewsTheLease", func(s *suite) {
		first, err := s.client.Grant(s.ctx, 2)
		s.check(err)
		second, err := s.client.Grant(s.ctx, 5)
		s.check(err)
		start := time.Now()
		rev := s.mustCreate("/t/a", "1", clientv3.WithLease(first.ID))
		resp := s.update("/t/a", "2", rev, clientv3.WithLease(second.ID))
		w := s.watch("/t/a", clientv3.WithRev(resp.Header.Revision+1))
		w.events(1)
		if took := time.Since(start); took < 4*time.Second {
			s.Errorf("expired after %s; want 5s", took)
		}
	}},
}
