package storetest

import (
	"bytes"
	"errors"
	"strings"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

var transactions = []test{
	{"EmptyStoreHasARevision", func(s *suite) {
		if rev := s.get("/t/none").Header.Revision; rev < 1 {
			s.Errorf("revision = %d; want at least 1", rev)
		}
	}},
	{"Create", func(s *suite) {
		before := s.get("/t/a").Header.Revision
		rev := s.mustCreate("/t/a", "1")
		s.same("revision", rev, before+1)
		kv := s.get("/t/a").Kvs[0]
		s.same("value", string(kv.Value), "1")
		s.same("create revision, revision, version", []int64{kv.CreateRevision, kv.ModRevision, kv.Version}, []int64{rev, rev, 1})
	}},
	{"CreateExisting", func(s *suite) {
		rev := s.mustCreate("/t/a", "1")
		resp := s.create("/t/a", "2")
		s.same("succeeded", resp.Succeeded, false)
		s.same("header revision", resp.Header.Revision, rev)
		s.same("after", pairs(s.list("/t/")), []string{"/t/a=1"})
	}},
	{"CreateAfterDelete", func(s *suite) {
		rev := s.mustRemove("/t/a", s.mustCreate("/t/a", "1"))
		again := s.mustCreate("/t/a", "2")
		s.same("revision", again, rev+1)
		kv := s.get("/t/a").Kvs[0]
		s.same("create revision, version", []int64{kv.CreateRevision, kv.Version}, []int64{again, 1})
	}},
	{"Update", func(s *suite) {
		first := s.mustCreate("/t/a", "1")
		second := s.mustUpdate("/t/a", "2", first)
		third := s.mustUpdate("/t/a", "3", second)
		s.same("revisions", []int64{second, third}, []int64{first + 1, first + 2})
		kv := s.get("/t/a").Kvs[0]
		s.same("value", string(kv.Value), "3")
		s.same("create revision, revision, version", []int64{kv.CreateRevision, kv.ModRevision, kv.Version}, []int64{first, third, 3})
	}},
	{"UpdateConflict", func(s *suite) {
		first := s.mustCreate("/t/a", "1")
		second := s.mustUpdate("/t/a", "2", first)
		resp := s.update("/t/a", "3", first)
		s.same("succeeded", resp.Succeeded, false)
		got := resp.Responses[0].GetResponseRange()
		s.same("current value", string(got.Kvs[0].Value), "2")
		s.same("current revision", got.Kvs[0].ModRevision, second)
	}},
	{"UpdateMissing", func(s *suite) {
		resp := s.update("/t/a", "1", 1)
		s.same("succeeded", resp.Succeeded, false)
		s.same("keys", len(resp.Responses[0].GetResponseRange().Kvs), 0)
	}},
	{"UpdateDeleted", func(s *suite) {
		rev := s.mustRemove("/t/a", s.mustCreate("/t/a", "1"))
		resp := s.update("/t/a", "2", rev)
		s.same("succeeded", resp.Succeeded, false)
		s.same("keys", len(resp.Responses[0].GetResponseRange().Kvs), 0)
	}},
	{"UpdateFromZero", func(s *suite) {
		rev := s.mustUpdate("/t/a", "1", 0)
		resp := s.update("/t/a", "2", 0)
		s.same("succeeded", resp.Succeeded, false)
		s.same("current revision", resp.Responses[0].GetResponseRange().Kvs[0].ModRevision, rev)
	}},
	{"Delete", func(s *suite) {
		rev := s.mustCreate("/t/a", "1")
		resp := s.remove("/t/a", rev)
		s.same("succeeded", resp.Succeeded, true)
		s.same("deleted", resp.Responses[0].GetResponseDeleteRange().Deleted, int64(1))
		s.same("revision", resp.Header.Revision, rev+1)
		s.same("keys", len(s.get("/t/a").Kvs), 0)
	}},
	{"DeleteConflict", func(s *suite) {
		rev := s.mustUpdate("/t/a", "2", s.mustCreate("/t/a", "1"))
		resp := s.remove("/t/a", rev-1)
		s.same("succeeded", resp.Succeeded, false)
		s.same("current value", string(resp.Responses[0].GetResponseRange().Kvs[0].Value), "2")
	}},
	{"DeleteMissing", func(s *suite) {
		resp := s.remove("/t/a", 5)
		s.same("succeeded", resp.Succeeded, false)
		s.same("keys", len(resp.Responses[0].GetResponseRange().Kvs), 0)
	}},
	{"DeleteTwice", func(s *suite) {
		rev := s.mustCreate("/t/a", "1")
		gone := s.mustRemove("/t/a", rev)
		resp := s.remove("/t/a", gone)
		s.same("succeeded", resp.Succeeded, false)
		s.same("header revision", resp.Header.Revision, gone)
	}},
	{"DeleteUnconditional", func(s *suite) {
		s.mustCreate("/t/a", "1")
		for _, want := range []int64{1, 0} {
			resp, err := s.client.Txn(s.ctx).Then(clientv3.OpGet("/t/a"), clientv3.OpDelete("/t/a")).Commit()
			s.check(err)
			s.same("succeeded", resp.Succeeded, true)
			deleted := resp.Responses[len(resp.Responses)-1].GetResponseDeleteRange()
			s.same("deleted", deleted.GetDeleted(), want)
		}
	}},
	{"Put", func(s *suite) {
		for _, v := range []string{"1", "2"} {
			resp, err := s.client.Put(s.ctx, "/t/a", v)
			s.check(err)
			s.mustCreate("/t/"+v, "x") // another key moves the revision on
			kv := s.get("/t/a").Kvs[0]
			s.same("value", string(kv.Value), v)
			s.same("revision", kv.ModRevision, resp.Header.Revision)
		}
		s.same("version", s.get("/t/a").Kvs[0].Version, int64(2))
	}},
	{"FailedTransactionsTakeNoRevision", func(s *suite) {
		rev := s.mustCreate("/t/a", "1")
		s.create("/t/a", "2")
		s.update("/t/a", "2", rev-1)
		s.remove("/t/b", 1)
		s.same("revision", s.mustCreate("/t/b", "1"), rev+1)
	}},
	{"EmptyValue", func(s *suite) {
		rev := s.mustCreate("/t/a", "")
		s.mustUpdate("/t/a", "", rev)
		kv := s.get("/t/a").Kvs[0]
		s.same("value", len(kv.Value), 0)
		s.same("version", kv.Version, int64(2))
	}},
	{"BinaryKeysAndValues", func(s *suite) {
		key, value := "/t/a\x00\xff\xfe\x00", "\x00\x01\xff\x00"
		s.mustCreate(key, value)
		s.mustCreate("/t/a", "short")
		s.same("value", s.get(key).Kvs[0].Value, []byte(value))
		s.same("order", pairs(s.list("/t/")), []string{"/t/a=short", key + "=" + value})
	}},
	{"EmptyKey", func(s *suite) {
		_, err := s.client.Txn(s.ctx).If(clientv3.Compare(clientv3.ModRevision(""), "=", 0)).Then(clientv3.OpPut("", "1")).Commit()
		if !errors.Is(err, rpctypes.ErrEmptyKey) {
			s.Errorf("create of an empty key: %v; want %v", err, rpctypes.ErrEmptyKey)
		}
	}},
	{"BigValue", func(s *suite) {
		value := strings.Repeat("0123456789abcdef", 1200<<10/16)
		rev := s.mustCreate("/t/a", value)
		s.mustUpdate("/t/a", "x"+value, rev)
		if got := s.get("/t/a").Kvs[0].Value; !bytes.Equal(got, []byte("x"+value)) {
			s.Errorf("value has %d bytes; want %d", len(got), len(value)+1)
		}
		if got := s.get("/t/a", clientv3.WithRev(rev)).Kvs[0].Value; !bytes.Equal(got, []byte(value)) {
			s.Errorf("value at %d has %d bytes; want %d", rev, len(got), len(value))
		}
	}},
	{"TooBigValue", func(s *suite) {
		rev := s.mustCreate("/t/a", "1")
		_, err := s.client.Txn(s.ctx).If(clientv3.Compare(clientv3.ModRevision("/t/a"), "=", rev)).
			Then(clientv3.OpPut("/t/a", strings.Repeat("x", 1600<<10))).Else(clientv3.OpGet("/t/a")).Commit()
		if !errors.Is(err, rpctypes.ErrRequestTooLarge) {
			s.Errorf("update of 1600 KiB: %v; want %v", err, rpctypes.ErrRequestTooLarge)
		}
		_, err = s.client.Txn(s.ctx).If(clientv3.Compare(clientv3.ModRevision("/t/b"), "=", 0)).
			Then(clientv3.OpPut("/t/b", strings.Repeat("x", 3<<20))).Commit()
		if code := status.Code(err); err == nil || (code != codes.ResourceExhausted && code != codes.Unknown) {
			s.Errorf("create of 3 MiB: %v (%v); want a refusal", err, code)
		}
		s.same("after", pairs(s.list("/t/")), []string{"/t/a=1"})
	}},
}
