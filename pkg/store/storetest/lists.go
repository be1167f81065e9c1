package storetest

import (
	"errors"
	"fmt"
	"strings"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// fill creates keys prefix+"000"... and returns the last revision.
func (s *suite) fill(prefix string, n int) (rev int64) {
	s.Helper()
	for i := range n {
		rev = s.mustCreate(fmt.Sprintf("%s%03d", prefix, i), fmt.Sprint(i))
	}
	return rev
}

// fillAside is fill while others go on; what it returns waits for its end. An event can come before the answer to its
// write, so the events alone do not tell that.
func (s *suite) fillAside(prefix string, n int) (wait func()) {
	filled := make(chan struct{})
	go func() {
		defer close(filled)
		s.fill(prefix, n)
	}()
	return func() { <-filled }
}

var lists = []test{
	{"ListPrefix", func(s *suite) {
		for _, key := range []string{"/t/b/2", "/t/b", "/t/b/1", "/t/c/1", "/t/b0", "/t/a/1", "/t/b/1/x"} {
			s.mustCreate(key, "v")
		}
		resp := s.list("/t/b/")
		s.same("keys", pairs(resp), []string{"/t/b/1=v", "/t/b/1/x=v", "/t/b/2=v"})
		s.same("count", resp.Count, int64(3))
		s.same("more", resp.More, false)
		s.same("nothing", len(s.list("/t/d/").Kvs), 0)
	}},
	{"ListSkipsDeletedAndOld", func(s *suite) {
		a := s.mustCreate("/t/a", "1")
		b := s.mustCreate("/t/b", "1")
		s.mustCreate("/t/c", "1")
		s.mustUpdate("/t/a", "2", a)
		s.mustRemove("/t/b", b)
		s.same("keys", pairs(s.list("/t/")), []string{"/t/a=2", "/t/c=1"})
	}},
	{"ListRangeEnds", func(s *suite) {
		s.fill("/t/", 5)
		s.same("end excluded", pairs(s.get("/t/001", clientv3.WithRange("/t/003"))), []string{"/t/001=1", "/t/002=2"})
		s.same("empty range", len(s.get("/t/003", clientv3.WithRange("/t/003")).Kvs), 0)
		s.same("reversed", len(s.get("/t/003", clientv3.WithRange("/t/001")).Kvs), 0)
		s.same("from key", pairs(s.get("/t/003", clientv3.WithFromKey())), []string{"/t/003=3", "/t/004=4"})
		s.same("start between keys", pairs(s.get("/t/002\x00", clientv3.WithRange("/t/004"))), []string{"/t/003=3"})
	}},
	{"ListPages", func(s *suite) {
		last := s.fill("/t/", 25)
		first := s.list("/t/", clientv3.WithLimit(10))
		s.same("page", len(first.Kvs), 10)
		s.same("more", first.More, true)
		s.same("count", first.Count, int64(25))
		s.same("revision", first.Header.Revision, last)

		// Between the pages the world goes on; the list does not.
		s.mustRemove("/t/015", s.get("/t/015").Kvs[0].ModRevision)
		s.mustUpdate("/t/016", "changed", s.get("/t/016").Kvs[0].ModRevision)
		s.mustCreate("/t/0155", "new")
		all := pairs(first)
		for resp := first; resp.More; {
			from := string(resp.Kvs[len(resp.Kvs)-1].Key) + "\x00"
			resp = s.get(from, clientv3.WithRange(clientv3.GetPrefixRangeEnd("/t/")),
				clientv3.WithLimit(10), clientv3.WithRev(first.Header.Revision))
			s.same("count of the rest", resp.Count, int64(25-len(all)))
			all = append(all, pairs(resp)...)
		}
		var want []string
		for i := range 25 {
			want = append(want, fmt.Sprintf("/t/%03d=%d", i, i))
		}
		s.same("all pages", all, want)
	}},
	{"ListLimitEqualToCount", func(s *suite) {
		s.fill("/t/", 10)
		resp := s.list("/t/", clientv3.WithLimit(10))
		s.same("page", len(resp.Kvs), 10)
		s.same("more", resp.More, false)
	}},
	{"ListAtRevision", func(s *suite) {
		a := s.mustCreate("/t/a", "1")
		b := s.mustCreate("/t/b", "1")
		a2 := s.mustUpdate("/t/a", "2", a)
		gone := s.mustRemove("/t/b", b)
		s.mustCreate("/t/b", "2")
		at := func(rev int64) []string { return pairs(s.list("/t/", clientv3.WithRev(rev))) }
		s.same("at 1", at(a), []string{"/t/a=1"})
		s.same("at 2", at(b), []string{"/t/a=1", "/t/b=1"})
		s.same("at 3", at(a2), []string{"/t/a=2", "/t/b=1"})
		s.same("at 4", at(gone), []string{"/t/a=2"})
		s.same("at 5", at(gone+1), []string{"/t/a=2", "/t/b=2"})
		s.same("get at 2", string(s.get("/t/a", clientv3.WithRev(b)).Kvs[0].Value), "1")
		s.same("get at 4", len(s.get("/t/b", clientv3.WithRev(gone)).Kvs), 0)
		s.same("header is the current revision", s.list("/t/", clientv3.WithRev(a)).Header.Revision, gone+1)
	}},
	{"FutureRevision", func(s *suite) {
		rev := s.mustCreate("/t/a", "1")
		for name, opts := range map[string][]clientv3.OpOption{
			"get":   {clientv3.WithRev(rev + 100)},
			"list":  {clientv3.WithRev(rev + 100), clientv3.WithPrefix()},
			"count": {clientv3.WithRev(rev + 100), clientv3.WithPrefix(), clientv3.WithCountOnly()},
		} {
			if _, err := s.client.Get(s.ctx, "/t/a", opts...); !errors.Is(err, rpctypes.ErrFutureRev) {
				s.Errorf("%s at a future revision: %v; want %v", name, err, rpctypes.ErrFutureRev)
			}
		}
	}},
	{"CountOnly", func(s *suite) {
		rev := s.fill("/t/", 7)
		s.mustRemove("/t/003", s.get("/t/003").Kvs[0].ModRevision)
		resp := s.list("/t/", clientv3.WithCountOnly())
		s.same("count", resp.Count, int64(6))
		s.same("keys", len(resp.Kvs), 0)
		s.same("count before", s.list("/t/", clientv3.WithCountOnly(), clientv3.WithRev(rev)).Count, int64(7))
	}},
	{"KeysOnly", func(s *suite) {
		rev := s.mustCreate("/t/a", "1")
		s.same("list", pairs(s.list("/t/", clientv3.WithKeysOnly())), []string{"/t/a="})
		resp := s.get("/t/a", clientv3.WithKeysOnly())
		s.same("get", pairs(resp), []string{"/t/a="})
		s.same("revision", resp.Kvs[0].ModRevision, rev)
	}},
	// A 1.36 apiserver learns the revision for a consistent list this way.
	{"MissingKeyTellsTheCurrentRevision", func(s *suite) {
		for i := range 50 {
			rev := s.mustCreate(fmt.Sprintf("/t/%d", i), "1")
			s.same("revision", s.get("/t/none").Header.Revision, rev)
			s.same("list's revision", s.list("/none/").Header.Revision, rev)
		}
	}},
	{"BigList", func(s *suite) {
		value := strings.Repeat("x", 100<<10)
		for i := range 60 {
			s.mustCreate(fmt.Sprintf("/t/%02d", i), value)
		}
		resp := s.list("/t/")
		s.same("count", len(resp.Kvs), 60)
		for _, kv := range resp.Kvs {
			if string(kv.Value) != value {
				s.Fatalf("%s has %d bytes; want %d", kv.Key, len(kv.Value), len(value))
			}
		}
	}},
}
