// Package storetest is a conformance suite of etcd's semantics, as far as the
// Kubernetes apiserver uses them and kine's front offers them. It speaks to
// the store through etcd's own client only, so that a real etcd passes it too.
package storetest

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// patience is how long the suite waits for what must come.
const patience = 20 * time.Second

// Run runs the suite. Every test gets a store of its own from open, empty or
// with keys outside of "/t/" only; open cleans up by t.Cleanup.
func Run(t *testing.T, open func(t *testing.T) *clientv3.Client) {
	RunExcept(t, nil, open)
}

// RunExcept runs the suite without the tests named in exceptions, whose values
// are the reasons.
func RunExcept(t *testing.T, exceptions map[string]string, open func(t *testing.T) *clientv3.Client) {
	for _, group := range [][]test{transactions, lists, watches, compactions, leases, concurrency} {
		for _, x := range group {
			t.Run(x.name, func(t *testing.T) {
				if reason, ok := exceptions[x.name]; ok {
					t.Skip(reason)
				}
				ctx, cancel := context.WithTimeout(context.Background(), 3*patience)
				t.Cleanup(cancel)
				x.run(&suite{T: t, ctx: ctx, client: open(t)})
			})
		}
	}
}

type test struct {
	name string
	run  func(*suite)
}

// suite is a test with its client. The methods below issue requests in the
// exact forms of k8s.io/apiserver/pkg/storage/etcd3 and end the test on errors
// that the test does not expect.
type suite struct {
	*testing.T
	ctx    context.Context
	client *clientv3.Client
}

func (s *suite) check(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

func (s *suite) pause(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-s.ctx.Done():
	}
}

// create is the apiserver's OptimisticPut of a new key.
func (s *suite) create(key, value string, opts ...clientv3.OpOption) *clientv3.TxnResponse {
	s.Helper()
	resp, err := s.client.Txn(s.ctx).
		If(clientv3.Compare(clientv3.ModRevision(key), "=", 0)).
		Then(clientv3.OpPut(key, value, opts...)).Commit()
	s.check(err)
	return resp
}

// mustCreate returns the revision of a key that did not exist.
func (s *suite) mustCreate(key, value string, opts ...clientv3.OpOption) int64 {
	s.Helper()
	resp := s.create(key, value, opts...)
	if !resp.Succeeded {
		s.Fatalf("create %s failed; want success", key)
	}
	return resp.Header.Revision
}

// update is the apiserver's OptimisticPut of a key that it has read.
func (s *suite) update(key, value string, rev int64, opts ...clientv3.OpOption) *clientv3.TxnResponse {
	s.Helper()
	resp, err := s.client.Txn(s.ctx).
		If(clientv3.Compare(clientv3.ModRevision(key), "=", rev)).
		Then(clientv3.OpPut(key, value, opts...)).
		Else(clientv3.OpGet(key)).Commit()
	s.check(err)
	return resp
}

func (s *suite) mustUpdate(key, value string, rev int64) int64 {
	s.Helper()
	resp := s.update(key, value, rev)
	if !resp.Succeeded {
		s.Fatalf("update %s at %d failed; want success", key, rev)
	}
	return resp.Header.Revision
}

// remove is the apiserver's OptimisticDelete.
func (s *suite) remove(key string, rev int64) *clientv3.TxnResponse {
	s.Helper()
	resp, err := s.client.Txn(s.ctx).
		If(clientv3.Compare(clientv3.ModRevision(key), "=", rev)).
		Then(clientv3.OpDelete(key)).
		Else(clientv3.OpGet(key)).Commit()
	s.check(err)
	return resp
}

func (s *suite) mustRemove(key string, rev int64) int64 {
	s.Helper()
	resp := s.remove(key, rev)
	if !resp.Succeeded {
		s.Fatalf("delete %s at %d failed; want success", key, rev)
	}
	return resp.Header.Revision
}

func (s *suite) get(key string, opts ...clientv3.OpOption) *clientv3.GetResponse {
	s.Helper()
	resp, err := s.client.Get(s.ctx, key, opts...)
	s.check(err)
	return resp
}

// list is the apiserver's: from a key to the end of a prefix.
func (s *suite) list(prefix string, opts ...clientv3.OpOption) *clientv3.GetResponse {
	s.Helper()
	return s.get(prefix, append([]clientv3.OpOption{clientv3.WithRange(clientv3.GetPrefixRangeEnd(prefix))}, opts...)...)
}

// pairs spells a response as "key=value" in order.
func pairs(resp *clientv3.GetResponse) []string {
	var out []string
	for _, kv := range resp.Kvs {
		out = append(out, fmt.Sprintf("%s=%s", kv.Key, kv.Value))
	}
	return out
}

func (s *suite) same(what string, got, want any) {
	s.Helper()
	if d := cmp.Diff(want, got); d != "" {
		s.Errorf("%s: want -, got +\n%s", what, d)
	}
}

// watcher collects what a watch receives.
type watcher struct {
	s  *suite
	ch clientv3.WatchChan
}

// watch opens a watch on a stream of its own with the options that the
// apiserver's watches have.
func (s *suite) watch(key string, opts ...clientv3.OpOption) *watcher {
	s.Helper()
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(s.ctx))
	s.Cleanup(cancel)
	w := &watcher{s, s.client.Watch(ctx, key, append([]clientv3.OpOption{clientv3.WithPrevKV(), clientv3.WithCreatedNotify()}, opts...)...)}
	if resp := w.response(); !resp.Created {
		s.Fatalf("watch %s: first response %+v; want created", key, resp)
	}
	return w
}

func (w *watcher) response() clientv3.WatchResponse {
	w.s.Helper()
	select {
	case resp, ok := <-w.ch:
		if !ok {
			w.s.Fatal("watch: closed; want a response")
		}
		return resp
	case <-time.After(patience):
		w.s.Fatalf("watch: nothing within %s; want a response", patience)
	}
	return clientv3.WatchResponse{}
}

// events returns the next n events as "KIND key=value rev prev=value@rev".
func (w *watcher) events(n int) []string {
	w.s.Helper()
	var out []string
	for len(out) < n {
		resp := w.response()
		w.s.check(resp.Err())
		for _, e := range resp.Events {
			out = append(out, spell(e))
		}
	}
	return out
}

func spell(e *clientv3.Event) string {
	var b strings.Builder
	switch {
	case e.IsCreate():
		b.WriteString("create")
	case e.IsModify():
		b.WriteString("update")
	default:
		b.WriteString("delete")
	}
	fmt.Fprintf(&b, " %s=%s @%d", e.Kv.Key, short(e.Kv.Value), e.Kv.ModRevision)
	if e.Kv.CreateRevision != 0 {
		fmt.Fprintf(&b, " created %d version %d", e.Kv.CreateRevision, e.Kv.Version)
	}
	if e.PrevKv != nil {
		fmt.Fprintf(&b, " before %s=%s @%d", e.PrevKv.Key, short(e.PrevKv.Value), e.PrevKv.ModRevision)
	}
	return b.String()
}

func short(v []byte) string {
	if len(v) > 40 {
		return fmt.Sprintf("%d bytes", len(v))
	}
	return string(v)
}
